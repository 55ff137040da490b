"""Two processes train a segmenter like one."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from visionssm.data.scenes import make_scenes
from visionssm.tasks.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "visionssm", "train", "--device", "cpu", "--threads", "1", "--epochs", "2"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training scenes, and 3 to validate on, which two processes can't share evenly."""
    return make_scenes(tmp_path_factory.mktemp("data") / "few", images=12, size=64)


def _train(folder: Path, *settings: str) -> dict[str, Any]:
    """What `last.ckpt` of a finished run holds."""
    environment = {name: value for name, value in os.environ.items() if "RANK" not in name}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    with open(folder.with_suffix(".txt"), "w") as output:
        done = subprocess.run(
            [*COMMAND, "--out", str(folder), *settings],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=1200,
            check=False,
        )
    assert done.returncode == 0, folder.with_suffix(".txt").read_text()
    return read_checkpoint(folder / "last.ckpt")


def _last_row(folder: Path) -> dict[str, str]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))[-1]


def test_two_processes_train_a_segmenter_like_one_with_twice_the_batch(scenes: Path, tmp_path: Path) -> None:
    # Plain gradient descent: other optimizers make much of gradients that differ in their last digits.
    settings = ["--task", "segmentation", "--data", str(scenes), "--optimizer", "sgd", "--lr", "1e-2"]
    one = _train(tmp_path / "one", *settings, "--batch-size", "4")["state_dict"]
    two = _train(tmp_path / "two", *settings, "--batch-size", "2", "--devices", "2")["state_dict"]
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-5, msg=name)
    # All validation scenes were counted, and once each.
    first, second = (_last_row(tmp_path / name) for name in ("one", "two"))
    assert float(second["val_miou"]) == pytest.approx(float(first["val_miou"]), abs=1e-3)
