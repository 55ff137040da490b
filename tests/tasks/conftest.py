"""A small trained run that several tests read, and the settings it came from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from visionssm.data import load_digits
from visionssm.tasks.classification_config import ClassificationConfig

# A convolutional network of timm with 200 thousand parameters: the engine is tested here, not the models.
SMALL: dict[str, Any] = {"model": "test_convnext", "img_size": (32, 32), "epochs": 2, "device": "cpu"}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, and far slower where other processes run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small_settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a run on 128 digits of four classes, two batches in an epoch, in order to be quick."""
    digits = load_digits().train
    root = tmp_path_factory.mktemp("data") / "few"
    for label in range(4):
        (root / str(label)).mkdir(parents=True)
        for number, index in enumerate([i for i, digit in enumerate(digits.labels) if digit == label][:40]):
            digits.load(index).save(root / str(label) / f"{number:02d}.png")
    return {**SMALL, "data": str(root), "workers": 0, "scale": (0.7, 1.0), "hflip": 0.0}


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """The folder of a finished run on digits, with averaged weights; not to be changed."""
    from visionssm.tasks.train import train

    folder = tmp_path_factory.mktemp("trained") / "run"
    train(ClassificationConfig(**SMALL, ema_decay=0.98, out=str(folder)))
    return folder
