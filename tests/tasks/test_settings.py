"""Settings that say how to train: each does what it says and leaves the rest alone."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import visionssm
from visionssm.tasks.checkpoint import read_checkpoint
from visionssm.tasks.classification_config import ClassificationConfig
from visionssm.tasks.parallel import freeze_groups
from visionssm.tasks.train import train

# Plain gradient descent doesn't magnify rounding.
PLAIN: dict[str, Any] = {"epochs": 1, "optimizer": "sgd", "lr": 0.05, "ema_decay": 0.5}


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "last.ckpt")["state_dict"]


@pytest.fixture(scope="module")
def plain_run(small_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without any of the settings."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(ClassificationConfig(**{**small_settings, **PLAIN}, out=str(folder)))
    return folder


@pytest.mark.parametrize(
    "setting",
    ["grad_checkpointing", "channels_last", pytest.param("compile", marks=pytest.mark.slow)],
)
def test_what_saves_memory_or_time_changes_nothing_but_rounding(
    small_settings: dict[str, Any], plain_run: Path, tmp_path: Path, setting: str
) -> None:
    train(ClassificationConfig(**{**small_settings, **PLAIN}, out=str(tmp_path), **{setting: True}))
    weights, expected = _weights(tmp_path), _weights(plain_run)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_frozen_groups_keep_their_weights_and_the_others_learn(
    small_settings: dict[str, Any], plain_run: Path, tmp_path: Path
) -> None:
    settings = {**small_settings, **PLAIN, "lr": 1e-6, "min_lr": 1e-7, "freeze": 2, "checkpoint": str(plain_run)}
    train(ClassificationConfig(**{**settings, "lr": 0.05}, out=str(tmp_path)))
    before = {name: value for name, value in _weights(plain_run).items() if name.startswith("ema.module.")}
    weights = _weights(tmp_path)
    changed = {name for name, value in before.items() if not torch.equal(weights[name], value)}
    assert not [name for name in changed if ".stem." in name or ".stages.0." in name]
    assert {name.split(".")[3] for name in changed if ".stages." in name} >= {"1", "2", "3"}


def test_freezing_stops_running_statistics_and_refuses_to_freeze_everything() -> None:
    model = visionssm.create_model("efficient_vmamba_nano")
    freeze_groups(model, 2)
    frozen = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and not m.training]
    assert frozen
    assert all(not p.requires_grad for module in frozen for p in module.parameters())
    assert any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match=r"freeze=99: the model has \d+ layer groups"):
        freeze_groups(model, 99)


def test_validation_may_be_rarer_than_epochs_and_always_ends_the_run(
    small_settings: dict[str, Any], tmp_path: Path
) -> None:
    result = train(ClassificationConfig(**{**small_settings, "epochs": 5}, validate_every=2, out=str(tmp_path)))
    assert result is not None
    assert [row.get("val_top1") is not None for row in result.history] == [False, True, False, True, True]
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["val_top1"] == "" for row in rows] == [True, False, True, False, False]


def test_tensorboard_shows_the_numbers_of_the_table(small_settings: dict[str, Any], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(ClassificationConfig(**small_settings, log_steps=1, out=str(tmp_path)))
    assert result is not None
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("step/grad_norm")] == [1, 2, 3, 4]
    for column in ("train_loss", "val_top1", "lr"):
        written = [(event.step, event.value) for event in events.Scalars(f"epoch/{column}")]
        assert written == [(row["step"], pytest.approx(row[column])) for row in result.history]
