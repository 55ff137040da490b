"""What happens around the steps of a run: files, interruption, images that can't be read, and the progress bar."""

import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from tqdm import tqdm

from visionssm.data.images import write_lines
from visionssm.data.loader import Batch, Unreadable
from visionssm.tasks.checkpoint import BEST, LAST, save_checkpoint
from visionssm.tasks.classification import ClassificationTask

METRICS, UNREADABLE = "metrics.csv", "unreadable_images.txt"


class TrainingInterrupted(Exception):
    """Ctrl-C was pressed, and the state was saved. Not a KeyboardInterrupt, which the engine would keep to itself."""


class CtrlC:
    """Inside a `with` block, Ctrl-C is only noted, so that a step can be finished and saved; a second one is obeyed."""

    def __init__(self) -> None:
        self.pressed = False
        self._previous: Any = None

    def __enter__(self) -> "CtrlC":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints under a temporary name, flushes them to the disk and renames them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one checkpoint, whole or not at all."""
        save_checkpoint(checkpoint, Path(path))


class RunFiles(Checkpoint):
    """Keeps `last.ckpt`, `best.ckpt` (see `best_row`) and `metrics.csv` in the run's folder.

    `last.ckpt` is written after every epoch, and in between every so many minutes or batches, and on Ctrl-C.
    """

    def __init__(self, folder: Path, minutes: float, batches: int | None, ctrl_c: "CtrlC"):
        self.folder = folder
        self.minutes = minutes
        self.batches = batches
        self.ctrl_c = ctrl_c
        self.saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save in the middle of an epoch, when it is time. The last batch leaves it to the end of the epoch."""
        assert isinstance(pl_module, ClassificationTask)
        if not pl_module.ends_step(batch_idx) or batch_idx + 1 == pl_module.batches_per_epoch:
            return
        due = time.monotonic() - self.saved_at > 60 * self.minutes
        due |= self.batches is not None and (batch_idx + 1) % self.batches == 0
        if due or self.ctrl_c.pressed:
            self._save(trainer, pl_module, LAST)
        self._leave_if_interrupted()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row of the epoch and the checkpoints."""
        assert isinstance(pl_module, ClassificationTask)
        history = pl_module.history
        columns = list(history[-1])
        rows = [",".join(_csv_text(row[column]) for column in columns) for row in history]
        if trainer.is_global_zero:
            write_lines(self.folder / METRICS, [",".join(columns), *rows])
        if best_row(history) is history[-1]:
            self._save(trainer, pl_module, BEST)
        self._save(trainer, pl_module, LAST)
        self._leave_if_interrupted()

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Leave at once: the steps since the last checkpoint are repeated when the run is continued."""
        self._leave_if_interrupted()

    def _save(self, trainer: Trainer, task: ClassificationTask, name: str) -> None:
        if not task.is_healthy():
            return  # the last good checkpoint stays
        trainer.save_checkpoint(self.folder / name, weights_only=False)
        self.saved_at = time.monotonic()

    def _leave_if_interrupted(self) -> None:
        if self.ctrl_c.pressed:
            raise TrainingInterrupted


class UnreadableImages(Callback):
    """Lists the images that can't be read in a file, and stops when they are too many.

    Args:
        file: the list, one line per image: its path, a tab, and the reason.
        limits: how many different images may be unreadable, for "train" and "val".
    """

    def __init__(self, file: Path, limits: dict[str, int]):
        self.file = file
        self.limits = limits
        self.found: dict[str, dict[str, str]] = {"train": {}, "val": {}}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Note the batch's images."""
        self._note("train", batch["unreadable"])

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, *args: Any
    ) -> None:
        """Note the batch's images."""
        self._note("val", batch["unreadable"])

    def state_dict(self) -> dict[str, Any]:
        """The list, for checkpoints."""
        return self.found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the list."""
        self.found = state_dict

    def _note(self, part: str, images: list[Unreadable]) -> None:
        new = {image.name: image.reason for image in images if image.name not in self.found[part]}
        if not new:
            return
        self.found[part] |= new
        everything = self.found["train"] | self.found["val"]
        write_lines(self.file, [f"{name}\t{reason}" for name, reason in sorted(everything.items())])
        for name, reason in new.items():
            tqdm.write(f"left out, can't be read: {name} ({reason})")
        count, limit = len(self.found[part]), self.limits[part]
        if count > limit:
            raise ValueError(
                f"more than {limit} of the {part} images can't be read (max_unreadable); {self.file} lists them"
            )


class ProgressBar(Callback):
    """One bar over the whole run: images done, images per second, time left; and one line per epoch."""

    def __init__(self, epochs: int, images_per_epoch: int):
        self.epochs = epochs
        self.images_per_epoch = images_per_epoch
        self.bar: tqdm | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start at the place where the run starts or continues."""
        assert isinstance(pl_module, ClassificationTask)
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        self.bar = tqdm(
            total=self.epochs * self.images_per_epoch,
            initial=round(batches / pl_module.batches_per_epoch * self.images_per_epoch),
            unit=" images",
            disable=not trainer.is_global_zero,
            mininterval=0.2 if sys.stderr.isatty() else 60,
            dynamic_ncols=True,
            smoothing=0.05,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the images of all processes."""
        assert self.bar is not None
        self.bar.update((len(batch["labels"]) + len(batch["unreadable"])) * trainer.world_size)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One line for the epoch that ends."""
        assert isinstance(pl_module, ClassificationTask)
        if self.bar is None or not trainer.is_global_zero:
            return
        self.bar.write(epoch_line(pl_module.history[-1], self.epochs))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bar as it stands, so that the message starts on a new line."""
        self.close()

    def close(self) -> None:
        """Stop drawing."""
        if self.bar is not None:
            self.bar.close()


def best_row(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The epoch with the highest validation accuracy; of equals, that with the lowest validation loss.

    Example:
        >>> best_row([{"val_top1": 0.9, "val_loss": 0.5}, {"val_top1": 0.9, "val_loss": 0.4}])
        {'val_top1': 0.9, 'val_loss': 0.4}
    """
    return max(history, key=lambda row: (row["val_top1"], -row["val_loss"] if row["val_loss"] is not None else 0.0))


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """One epoch in words.

    Example:
        >>> row = {"epoch": 3, "train_loss": 0.61234, "val_loss": 0.4, "val_top1": 0.9512, "skipped_steps": 0}
        >>> epoch_line(row, 20)
        'epoch  3/20  train loss 0.6123  val loss 0.4000  val top-1 95.12 %'
    """
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"]
    for name, column in (("train loss", "train_loss"), ("val loss", "val_loss")):
        parts.append(f"{name} {row[column]:.4f}" if row[column] is not None else f"{name} -")
    parts.append(f"val top-1 {100 * row['val_top1']:.2f} %")
    if row["skipped_steps"]:
        parts.append(f"{row['skipped_steps']} steps skipped")
    return "  ".join(parts)


def _csv_text(value: Any) -> str:
    return "" if value is None else repr(value)
