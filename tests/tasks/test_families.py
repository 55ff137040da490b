"""Every family learns the digits with the settings that are chosen for it when none are given."""

from pathlib import Path

import pytest

import visionssm
from visionssm.tasks.classification_config import ClassificationConfig
from visionssm.tasks.train import train

NANOS = visionssm.list_models("*_nano")


@pytest.mark.slow
@pytest.mark.parametrize("model", NANOS)
def test_every_family_learns_the_digits(model: str, tmp_path: Path) -> None:
    result = train(ClassificationConfig(model=model, device="cpu", out=str(tmp_path)))
    assert result is not None
    assert (result.final_part, result.final.images) == ("test", 359)
    assert result.final.top1 >= 0.96
    assert sum(row["skipped_steps"] for row in result.history) == 0


@pytest.mark.slow
@pytest.mark.parametrize("model", NANOS)
def test_no_family_diverges_in_bfloat16(model: str, tmp_path: Path) -> None:
    config = ClassificationConfig(model=model, device="cpu", precision="bfloat16", epochs=6, out=str(tmp_path))
    result = train(config)
    assert result is not None
    assert sum(row["skipped_steps"] for row in result.history) == 0
    losses = [row["train_loss"] for row in result.history]
    assert losses[-1] < losses[0] / 1.5
    assert result.final.top1 > 0.8
