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
from visionssm.data.loader import Unreadable
from visionssm.tasks.base import Task
from visionssm.tasks.checkpoint import BEST, LAST, save_checkpoint
from visionssm.tasks.config import TrainConfig
from visionssm.tasks.processes import all_values, any_process

METRICS, UNREADABLE, TENSORBOARD = "metrics.csv", "unreadable_images.txt", "tensorboard"


class TrainingInterrupted(Exception):
    """The run was told to stop, and its state was saved. Not a KeyboardInterrupt: the engine would keep it to itself."""


class StopSignals:
    """Inside a `with` block, Ctrl-C and SIGTERM (a cluster takes its machine back) are only noted, so that a step can be
    finished and saved; a second one is obeyed.
    """

    def __init__(self) -> None:
        self.noted = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted:
            raise KeyboardInterrupt
        self.noted = True


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints under a temporary name, flushes them to the disk and renames them.

    What the disk refuses is kept in `error`, for the caller to raise in all processes together: if one of several left
    alone, the others would wait for it.
    """

    error: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one checkpoint, whole or not at all."""
        try:
            save_checkpoint(checkpoint, Path(path))
        except OSError as error:
            self.error = error


class RunFiles(Checkpoint):
    """Keeps `last.ckpt`, `best.ckpt` (see `best_row`) and `metrics.csv` in the run's folder; says one line per epoch.

    `last.ckpt` is written after every epoch, and in between every so many minutes or batches, and when the run is told
    to stop.
    """

    def __init__(self, folder: Path, config: TrainConfig, files: AtomicCheckpointIO, stop: StopSignals):
        self.folder = folder
        self.config = config
        self.files = files
        self.stop = stop
        self.saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save in the middle of an epoch, when it is time. The last batch leaves it to the end of the epoch."""
        assert isinstance(pl_module, Task)
        if not pl_module.ends_step(batch_idx) or batch_idx + 1 == pl_module.batches_per_epoch:
            return
        stop = any_process(trainer, self.stop.noted)
        due = any_process(trainer, time.monotonic() - self.saved_at > 60 * self.config.checkpoint_minutes)
        due |= self.config.checkpoint_steps is not None and (batch_idx + 1) % self.config.checkpoint_steps == 0
        if due or stop:
            self._save(trainer, pl_module, LAST)
        if stop:
            raise TrainingInterrupted

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row of the epoch and the checkpoints."""
        assert isinstance(pl_module, Task)
        history = pl_module.history
        if trainer.is_global_zero:
            tqdm.write(epoch_line(history[-1], self.config.epochs or 0, pl_module.score, pl_module.score_name))
            try:
                self._write_metrics(history)
            except OSError as error:
                self.files.error = error
        if best_row(history, pl_module.score) is history[-1]:
            self._save(trainer, pl_module, BEST)
        self._save(trainer, pl_module, LAST)
        self._raise_together(trainer)
        self._leave_if_told_to(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Leave at once: the steps since the last checkpoint are repeated when the run is continued."""
        self._leave_if_told_to(trainer)

    def _write_metrics(self, history: list[dict[str, Any]]) -> None:
        columns = list(dict.fromkeys(column for row in history for column in row))
        rows = [",".join(_csv_text(row.get(column)) for column in columns) for row in history]
        write_lines(self.folder / METRICS, [",".join(columns), *rows])

    def _save(self, trainer: Trainer, task: Task, name: str) -> None:
        if any_process(trainer, not task.is_healthy()):
            return  # the last good checkpoint stays
        trainer.save_checkpoint(self.folder / name, weights_only=False)
        self._raise_together(trainer)
        self.saved_at = time.monotonic()

    def _raise_together(self, trainer: Trainer) -> None:
        """What the first process could not write ends the run in all of them."""
        for error in all_values(trainer, self.files.error):
            if error is not None:
                raise error

    def _leave_if_told_to(self, trainer: Trainer) -> None:
        if any_process(trainer, self.stop.noted):
            raise TrainingInterrupted


class TensorBoardLog(Callback):
    """Writes the course of training for TensorBoard: loss, gradient norm and learning rate every so many steps, and
    every column of `metrics.csv` once per epoch.
    """

    def __init__(self, folder: Path, every: int):
        self.folder = folder / TENSORBOARD
        self.every = every
        self.writer: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the log. What an interrupted run wrote after its last checkpoint is passed over when it is shown."""
        from torch.utils.tensorboard import SummaryWriter

        if trainer.is_global_zero:
            self.writer = SummaryWriter(str(self.folder), purge_step=trainer.global_step + 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One point, after every so many steps."""
        assert isinstance(pl_module, Task)
        if self.writer is not None and pl_module.ends_step(batch_idx) and trainer.global_step % self.every == 0:
            for name, value in pl_module.step_log.items():
                self.writer.add_scalar(f"step/{name}", value, trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The row of the epoch before."""
        assert isinstance(pl_module, Task)
        self._write_row(pl_module.history)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last row."""
        assert isinstance(pl_module, Task)
        self._write_row(pl_module.history)
        if self.writer is not None:
            self.writer.close()

    def _write_row(self, history: list[dict[str, Any]]) -> None:
        if self.writer is None or not history:
            return
        for name, value in history[-1].items():
            if value is not None and name not in ("epoch", "step"):
                self.writer.add_scalar(f"epoch/{name}", value, history[-1]["step"])


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
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch's images."""
        self._note(trainer, "train", batch["unreadable"])

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Note the batch's images."""
        self._note(trainer, "val", batch["unreadable"])

    def state_dict(self) -> dict[str, Any]:
        """The list, for checkpoints."""
        return self.found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the list."""
        self.found = state_dict

    def _note(self, trainer: Trainer, part: str, images: list[Unreadable]) -> None:
        """Every process has the same list, so that all stop together."""
        if not any_process(trainer, bool(images)):
            return
        of_all = [image for part_of_one in all_values(trainer, images) for image in part_of_one]
        new = {image.name: image.reason for image in of_all if image.name not in self.found[part]}
        self.found[part] |= new
        if trainer.is_global_zero and new:
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
    """One bar over the whole run: images done, images per second, time left."""

    def __init__(self, epochs: int, images_per_epoch: int):
        self.epochs = epochs
        self.images_per_epoch = images_per_epoch
        self.bar: tqdm | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start at the place where the run starts or continues."""
        assert isinstance(pl_module, Task)
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
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images of all processes."""
        assert self.bar is not None
        self.bar.update((len(batch["images"]) + len(batch["unreadable"])) * trainer.world_size)

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


def best_row(history: list[dict[str, Any]], score: str = "val_top1") -> dict[str, Any]:
    """The epoch with the highest score; of equals, that with the lowest validation loss. Others weren't validated.

    Example:
        >>> best_row([{"val_top1": 0.9, "val_loss": 0.5}, {"val_top1": 0.9, "val_loss": 0.4}, {"train_loss": 1.0}])
        {'val_top1': 0.9, 'val_loss': 0.4}
    """

    def rank(row: dict[str, Any]) -> tuple[float, float]:
        value, loss = row.get(score), row.get("val_loss")
        return (-1.0 if value is None else value), (0.0 if loss is None else -loss)

    return max(history, key=rank)


def epoch_line(row: dict[str, Any], epochs: int, score: str = "val_top1", score_name: str = "val top-1") -> str:
    """One epoch in words.

    Example:
        >>> row = {"epoch": 3, "train_loss": 0.61234, "val_loss": 0.4, "val_top1": 0.9512, "skipped_steps": 0}
        >>> epoch_line(row, 20)
        'epoch  3/20  train loss 0.6123  val loss 0.4000  val top-1 95.12 %'
    """
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"]
    for name, column in (("train loss", "train_loss"), ("val loss", "val_loss")):
        if row.get(column) is not None:
            parts.append(f"{name} {row[column]:.4f}")
    if row.get(score) is not None:
        parts.append(f"{score_name} {100 * row[score]:.2f} %")
    if row["skipped_steps"]:
        parts.append(f"{row['skipped_steps']} steps skipped")
    return "  ".join(parts)


def _csv_text(value: Any) -> str:
    return "" if value is None else repr(value)
