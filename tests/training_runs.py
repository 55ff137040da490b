"""Training runs on splits of a test's own, by the engine as a user's run goes through it."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch

from visionssm.cli.main import main
from visionssm.data import Splits
from visionssm.data.loader import seed_everything
from visionssm.tasks.checkpoint import ModelCard
from visionssm.tasks.classification import ClassificationTask
from visionssm.tasks.classification_config import ClassificationConfig
from visionssm.tasks.classification_data import ClassificationData
from visionssm.tasks.distillation import load_teacher
from visionssm.tasks.engine import fit
from visionssm.tasks.initial import build_initial_model
from visionssm.tasks.run import open_run


class Recorded(ClassificationTask):
    """Notes the loss of every step."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        loss = super().training_step(batch, batch_idx)
        assert loss is not None
        self.losses.append(float(loss.detach()))
        return loss


def fit_recorded(config: ClassificationConfig, splits: Splits) -> Recorded:
    """Train on the CPU by the settings, on these images, into `config.out`."""
    config = config.with_defaults()
    run = open_run(config, splits.fingerprint())
    seed_everything(config.seed)
    initial = build_initial_model(config, splits.class_names)
    card = ModelCard.of_run(config, run, initial.arguments, splits.class_names, initial.preprocessing.to_dict())
    data = ClassificationData(splits, initial.preprocessing, config)
    teacher = load_teacher(config, splits.class_names, initial.preprocessing)
    task = Recorded(initial.model, config, card, data.batches_per_epoch(), teacher)
    fit(task, data, run, "cpu")
    return task


def interrupted(command: list[str], folder: Path) -> int:
    """The exit status of a training into `folder` that gets Ctrl-C after its first checkpoint."""

    def press_ctrl_c() -> None:
        while not (folder / "last.ckpt").exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press_ctrl_c)
    thread.start()
    status = main(command)
    thread.join()
    return status


def same(first: Any, second: Any) -> bool:
    """Whether two checkpoints, or parts of them, hold the same numbers."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return first == second
