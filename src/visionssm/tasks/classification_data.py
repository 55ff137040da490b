"""The data of a classification run: its splits, and its loaders for any number of processes."""

import os
from typing import Any

from lightning.pytorch import LightningDataModule

from visionssm.data.digits import load_digits
from visionssm.data.folder import load_image_folder
from visionssm.data.images import LabeledImages, Splits
from visionssm.data.loader import ResumableLoader, make_loader
from visionssm.data.transforms import Preprocessing, eval_transform, train_transform
from visionssm.tasks.config import TrainConfig


def load_splits(config: TrainConfig) -> Splits:
    """The data that the settings name."""
    if config.data == "digits":
        return load_digits()
    return load_image_folder(config.data, config.val_share, config.split_seed)


class ClassificationData(LightningDataModule):
    """The loaders of a run, for any number of processes."""

    def __init__(self, splits: Splits, preprocessing: Preprocessing, config: TrainConfig, pin_memory: bool = False):
        super().__init__()
        self.splits = splits
        self.config = config
        self.pin_memory = pin_memory
        self.position: dict[str, int] | None = None
        assert config.scale is not None
        assert config.hflip is not None
        self.eval_transform = eval_transform(preprocessing)
        self.train_transform = train_transform(
            preprocessing,
            scale=config.scale,
            ratio=config.ratio,
            hflip=config.hflip,
            color_jitter=config.color_jitter,
            auto_augment=config.auto_augment,
            random_erasing=config.random_erasing,
        )

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled and augmented, full batches only; after a restart, it continues where the checkpoint was taken."""
        self.train_loader = self._loader(self.splits.train, training=True)
        if self.position is not None:
            self.train_loader.load_state_dict(self.position)
        return self.train_loader

    def val_dataloader(self) -> ResumableLoader:
        """In order."""
        return self._loader(self.splits.val, training=False)

    def state_dict(self) -> dict[str, Any]:
        """The position in the training data. Lightning keeps it too, but drops it at the end of an epoch."""
        return self.train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The position from which the next loader continues."""
        self.position = state_dict

    def batches_per_epoch(self) -> int:
        """Training batches of each process."""
        return len(self._loader(self.splits.train, training=True))

    def _loader(self, images: LabeledImages, training: bool) -> ResumableLoader:
        distributed = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size} if self.trainer else {}
        return make_loader(
            images,
            self.train_transform if training else self.eval_transform,
            self.config.batch_size,
            training=training,
            seed=self.config.seed,
            workers=worker_count(self.config),
            pin_memory=self.pin_memory,
            **distributed,
        )


def worker_count(config: TrainConfig) -> int:
    """Processes that load images: none for digits, which are in memory, else one per core up to eight."""
    if config.workers is not None:
        return config.workers
    return 0 if config.data == "digits" else min(8, os.cpu_count() or 1)
