"""A finished run that several commands read, made by `visionssm train` on a folder of real digits."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from visionssm.cli.main import main
from visionssm.data import load_digits


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, and far slower where other processes run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos/{one,two,zero}/`, with 40 PNG files each; not to be changed."""
    digits = load_digits().train
    root = tmp_path_factory.mktemp("data") / "photos"
    for label, name in enumerate(("zero", "one", "two")):
        (root / name).mkdir(parents=True)
        for number, index in enumerate([i for i, digit in enumerate(digits.labels) if digit == label][:40]):
            digits.load(index).save(root / name / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def train_command(photos: Path) -> list[str]:
    """A run on the folder that takes a second; the folder of the run is missing."""
    return [
        "train", "--model", "test_convnext", "--img-size", "[32, 32]", "--data", str(photos), "--device", "cpu",
        "--workers", "0", "epochs=6", "batch_size=16", "hflip=0", "scale=[0.7, 1.0]",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, train_command: list[str], one_thread: None) -> Path:
    """The folder of a finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main([*train_command, f"out={folder}"]) == 0
    return folder
