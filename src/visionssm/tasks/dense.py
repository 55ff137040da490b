"""What detection and segmentation share in training: loaders, optimizer, and the list of what is wrong with annotations."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from visionssm.data.dense_loader import DenseBatch, DenseImages, make_dense_loader
from visionssm.data.dense_transforms import DenseTransform, eval_dense_transform
from visionssm.data.images import write_lines
from visionssm.data.loader import ResumableLoader
from visionssm.data.problems import Problem, problem_lines, summarize_problems
from visionssm.data.scenes import scene_size
from visionssm.tasks.base import Task, TaskData
from visionssm.tasks.checkpoint import ModelCard
from visionssm.tasks.dense_config import DenseConfig
from visionssm.tasks.dense_optimizer import DenseSchedule, make_dense_optimizer
from visionssm.tasks.processes import all_values

PROBLEMS = "annotation_problems.txt"
MOST_KINDS = 10  # of problems that are shown on the screen


class DenseTask(Task):
    """Trains a model of `visionssm.heads`.

    Args:
        model, config, card, batches_per_epoch: see `Task`.
        problem_file: lists what is wrong with annotations.
        problems: what was found when the annotations were read.
    """

    config: DenseConfig

    def __init__(
        self,
        model: nn.Module,
        config: DenseConfig,
        card: ModelCard,
        batches_per_epoch: int,
        problem_file: Path,
        problems: Sequence[Problem],
    ):
        super().__init__(model, config, card, batches_per_epoch)
        self.problem_file = problem_file
        self.problems = dict.fromkeys(problems)
        self.new_problems: dict[Problem, None] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Optimizer and schedule of the settings."""
        optimizer = make_dense_optimizer(self.model, self.config)
        self.schedule = DenseSchedule(optimizer, self.config, -(-self.batches_per_epoch // self.config.accumulate))
        return optimizer

    def note_problems(self, batch: DenseBatch) -> None:
        """Remember what turned out to be wrong when the images of a batch were decoded."""
        self.new_problems |= {problem: None for problem in batch["problems"] if problem not in self.problems}

    def write_problems(self) -> None:
        """List what was found since the last time; every process must call this, at the same point."""
        of_all = [problem for part in all_values(self.trainer, list(self.new_problems)) for problem in part]
        new = [problem for problem in dict.fromkeys(of_all) if problem not in self.problems]
        self.new_problems = {}
        if not new:
            return
        self.problems |= dict.fromkeys(new)
        if self.trainer.is_global_zero:
            write_lines(self.problem_file, problem_lines(self.problems))
            for line in problem_report(new, self.problem_file):
                tqdm.write(line)

    def total(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """The sum of a head's losses, each of which goes to the log."""
        self.step_log |= {name: float(value.detach()) for name, value in losses.items()}
        return torch.stack([value.float() for value in losses.values()]).sum()


class DenseData(TaskData):
    """The loaders of a run.

    Args:
        train, val: the images.
        transform: of training images.
        config: settings with nothing left open.
        pin_memory: for faster copies to a GPU.
        wide: for every training image, whether it is wider than high; None: shapes may be mixed in a batch.
    """

    def __init__(
        self,
        train: DenseImages,
        val: DenseImages,
        transform: DenseTransform,
        config: DenseConfig,
        pin_memory: bool = False,
        wide: Sequence[bool] | None = None,
    ):
        super().__init__(config, {"train": len(train), "val": len(val)})
        self.train_images, self.val_images, self.transform = train, val, transform
        self.pin_memory = pin_memory
        self.wide = wide
        self.workers = dense_workers(config)
        self.epoch_batches = config.epoch_batches

    def loader(self, training: bool, rank: int, world_size: int) -> ResumableLoader:
        """The training or the validation loader of one of several processes."""
        return make_dense_loader(
            self.train_images if training else self.val_images,
            self.transform if training else eval_dense_transform(),
            self.config.batch_size,
            training=training,
            seed=self.config.seed,
            workers=self.workers,
            rank=rank,
            world_size=world_size,
            pin_memory=self.pin_memory,
            wide=self.wide if training else None,
            epoch_batches=self.epoch_batches if training else None,
        )


def dense_workers(config: DenseConfig) -> int:
    """Processes that load images: none for scenes, which are small, else one per core up to eight."""
    if config.workers is not None:
        return config.workers
    return 0 if scene_size(config.data) is not None else min(8, os.cpu_count() or 1)


def problem_report(problems: Iterable[Problem], file: Path) -> list[str]:
    """What is wrong with annotations, in a few lines for the screen."""
    lines = summarize_problems(problems)
    if not lines:
        return []
    shown = [f"warning   {line}" for line in lines[:MOST_KINDS]]
    more = f" and {len(lines) - MOST_KINDS} other kinds" if len(lines) > MOST_KINDS else ""
    return [*shown, f"          {file} lists them all{more}"]


def move_to(batch: DenseBatch, device: torch.device) -> Any:
    """The batch's images and targets on a device."""
    targets = [{name: value.to(device) for name, value in target.items()} for target in batch["targets"]]
    return {**batch, "images": [image.to(device) for image in batch["images"]], "targets": targets}
