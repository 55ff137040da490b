"""The data of a classification run: its splits, and its loaders for any number of processes."""

import os

from visionssm.data.images import Splits
from visionssm.data.loader import ResumableLoader, make_loader
from visionssm.data.source import load_data
from visionssm.data.transforms import Preprocessing, eval_transform, train_transform
from visionssm.tasks.base import TaskData
from visionssm.tasks.classification_config import ClassificationConfig
from visionssm.tasks.config import TrainConfig


def load_splits(config: ClassificationConfig) -> Splits:
    """The data that the settings name."""
    return load_data(config.data, config.val_share, config.split_seed)


class ClassificationData(TaskData):
    """Training images, shuffled and augmented, in full batches only; validation images in order."""

    config: ClassificationConfig

    def __init__(
        self, splits: Splits, preprocessing: Preprocessing, config: ClassificationConfig, pin_memory: bool = False
    ):
        super().__init__(config, {"train": len(splits.train.labels), "val": len(splits.val.labels)})
        self.splits = splits
        self.pin_memory = pin_memory
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
            interpolation=config.interpolation,
        )

    def loader(self, training: bool, rank: int, world_size: int) -> ResumableLoader:
        """The training or the validation loader of one of several processes."""
        return make_loader(
            self.splits.train if training else self.splits.val,
            self.train_transform if training else self.eval_transform,
            self.config.batch_size,
            training=training,
            seed=self.config.seed,
            workers=worker_count(self.config),
            pin_memory=self.pin_memory,
            rank=rank,
            world_size=world_size,
            repeats=self.config.repeated_augmentation if training else 1,
        )


def worker_count(config: TrainConfig) -> int:
    """Processes that load images: none for digits, which are in memory, else one per core up to eight."""
    if config.workers is not None:
        return config.workers
    return 0 if config.data == "digits" else min(8, os.cpu_count() or 1)
