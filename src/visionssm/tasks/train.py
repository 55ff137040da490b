"""Train a classifier from settings, or continue a run that was interrupted, and measure what comes out."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

from visionssm.data.digits import load_digits
from visionssm.data.folder import load_image_folder
from visionssm.data.images import LabeledImages, Splits
from visionssm.data.loader import ResumableLoader, make_loader, seed_everything
from visionssm.data.transforms import Preprocessing, eval_transform, train_transform
from visionssm.tasks.callbacks import (
    UNREADABLE,
    AtomicCheckpointIO,
    CtrlC,
    ProgressBar,
    RunFiles,
    TrainingInterrupted,
    UnreadableImages,
    best_row,
)
from visionssm.tasks.checkpoint import LAST, ModelCard, load_classifier, pick_device
from visionssm.tasks.classification import ClassificationTask
from visionssm.tasks.config import PRECISIONS, TrainConfig, with_defaults
from visionssm.tasks.evaluation import Evaluation, evaluate
from visionssm.tasks.figures import save_confusion_matrix, save_learning_curve
from visionssm.tasks.initial import build_initial_model
from visionssm.tasks.run import CONFUSION, LEARNING_CURVE, RESULTS, Run, open_run, write_text


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    folder: Path
    history: list[dict[str, Any]]  # one row per epoch
    final: Evaluation  # of the best weights on the test images, or on the validation images if there are none
    final_part: str  # "test" or "val"


def train(config: TrainConfig, force: bool = False) -> TrainResult:
    """Train, keep the best weights by validation accuracy, and evaluate them on images that training didn't use.

    Started again with the same settings, an interrupted run continues where its last checkpoint was taken, and ends
    with the same weights, bit by bit, as one that was never interrupted.

    Args:
        config: the settings; what is left open is chosen by `with_defaults`.
        force: continue a run although its settings or data have changed.

    Raises:
        ValueError, FileNotFoundError: settings, data or checkpoints that can't be used.
        OSError: the output can't be written.
        KeyboardInterrupt: Ctrl-C; `last.ckpt` holds the state.
    """
    config = with_defaults(config)
    splits = load_splits(config)
    device = pick_device(config.device)
    fingerprint = splits.fingerprint()
    run = open_run(config, fingerprint, force)

    seed_everything(config.seed)
    initial = build_initial_model(config, splits.class_names)
    card = ModelCard(
        model=config.model,
        model_kwargs=initial.arguments,
        class_names=splits.class_names,
        preprocessing=initial.preprocessing.to_dict(),
        config=config.to_dict(),
        fingerprint=fingerprint,
        version=_version(),
    )
    data = ClassificationData(splits, initial.preprocessing, config, pin_memory=device.type == "cuda")
    task = ClassificationTask(initial.model, config, card, batches_per_epoch=data.batches_per_epoch())
    _say_what_runs(config, splits, initial.model, run, device.type)
    fit(task, data, config, run, device.type)
    return finish(run.folder, splits, config, task.history, device.type)


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
    import os

    return 0 if config.data == "digits" else min(8, os.cpu_count() or 1)


def fit(task: ClassificationTask, data: ClassificationData, config: TrainConfig, run: Run, device: str) -> None:
    """Run Lightning's trainer to the end of the last epoch."""
    assert config.epochs is not None
    batches = task.batches_per_epoch * config.batch_size
    images_per_epoch = min(batches, len(data.splits.train.labels))
    parts = {"train": data.splits.train, "val": data.splits.val}
    limits = {part: max(5, int(config.max_unreadable * len(images.labels))) for part, images in parts.items()}
    with quiet_lightning(), CtrlC() as ctrl_c:
        trainer = Trainer(
            accelerator={"cuda": "gpu"}.get(device, device),
            devices=1,
            max_epochs=config.epochs,
            precision=PRECISIONS[config.precision],  # type: ignore[arg-type]
            accumulate_grad_batches=config.accumulate,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[AtomicCheckpointIO()],
            callbacks=[
                UnreadableImages(run.folder / UNREADABLE, limits),
                ProgressBar(config.epochs, images_per_epoch),
                RunFiles(run.folder, config.checkpoint_minutes, config.checkpoint_steps, ctrl_c),
            ],
        )
        try:
            trainer.fit(task, datamodule=data, ckpt_path=run.resume_from, weights_only=True)
        except (TrainingInterrupted, SystemExit) as interruption:
            # Lightning answers a second Ctrl-C with SystemExit.
            print(f"stopped; {run.folder / LAST} has the state: the same command continues from it")
            raise KeyboardInterrupt from interruption


def finish(
    folder: Path, splits: Splits, config: TrainConfig, history: list[dict[str, Any]], device: str
) -> TrainResult:
    """Evaluate the best weights, and write `results.json` and the figures."""
    classifier = load_classifier(folder, device)
    evaluation = evaluate(classifier, splits.final, config.batch_size, worker_count(config))
    part = "test" if splits.test is not None else "val"
    best = best_row(history)
    results = {
        "model": config.model,
        "best_epoch": best["epoch"],
        "val_top1": best["val_top1"],
        part: evaluation.to_dict(),
    }
    write_text(folder / RESULTS, json.dumps(results, indent=1))
    save_learning_curve(history, folder / LEARNING_CURVE)
    save_confusion_matrix(evaluation, folder / CONFUSION)
    return TrainResult(folder, history, evaluation, part)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advertisements and hints that don't apply here off the screen."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Digits are in memory: worker processes would slow them down.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*training_step. returned .None.*")
        # Lightning's own use of an old name in torch.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        # The averaged copy of the model is meant to be in eval mode.
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        try:
            yield
        finally:
            logger.setLevel(level)


def _say_what_runs(config: TrainConfig, splits: Splits, model: Any, run: Run, device: str) -> None:
    counts = [("training", splits.train), ("validation", splits.val), ("test", splits.test)]
    images = ", ".join(f"{len(part.labels)} {name}" for name, part in counts if part is not None)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"model     {config.model}, {parameters:,} parameters, on {device}")
    print(f"data      {splits.name}: {len(splits.class_names)} classes, {images} images")
    print(f"settings  {config.epochs} epochs, batch {config.batch_size}, {config.optimizer}, lr {config.lr}")
    print(f"run       {run.folder}")
    if run.resume_from is not None:
        print(f"continues the run in this folder: {run.epochs_done} of {config.epochs} epochs are done")


def _version() -> str:
    try:
        return metadata.version("visionssm")
    except metadata.PackageNotFoundError:
        return "not installed"
