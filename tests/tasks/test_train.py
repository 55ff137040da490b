import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from visionssm.data import load_digits
from visionssm.tasks.checkpoint import load_classifier, read_checkpoint
from visionssm.tasks.classification_config import ClassificationConfig
from visionssm.tasks.evaluation import evaluate
from visionssm.tasks.train import train


def test_a_run_learns_and_leaves_everything_behind(trained_run: Path) -> None:
    results = json.loads((trained_run / "results.json").read_text())
    assert results["test"]["top1"] > 0.8
    assert results["test"]["images"] == 359
    assert yaml.safe_load((trained_run / "config.yaml").read_text())["model"] == "test_convnext"
    versions = json.loads((trained_run / "environment.json").read_text())["versions"]
    assert torch.__version__.startswith(versions["torch"])
    assert sorted(path.name for path in trained_run.iterdir()) == [
        "best.ckpt", "config.yaml", "confusion_matrix.png", "environment.json", "last.ckpt", "learning_curve.png",
        "metrics.csv", "per_class.csv", "results.json", "tensorboard",
    ]  # fmt: skip


def test_the_log_says_what_an_evaluation_of_the_checkpoint_finds(trained_run: Path) -> None:
    rows = list(csv.DictReader((trained_run / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    again = evaluate(load_classifier(trained_run / "last.ckpt"), load_digits().val)
    assert float(rows[-1]["val_top1"]) == pytest.approx(again.top1)
    assert float(rows[-1]["val_top5"]) == pytest.approx(again.top5)
    assert float(rows[-1]["val_loss"]) == pytest.approx(again.loss, rel=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    small_settings: dict[str, Any], tmp_path: Path
) -> None:
    def weights(name: str, seed: int) -> torch.Tensor:
        train(ClassificationConfig(**{**small_settings, "epochs": 1}, seed=seed, out=str(tmp_path / name)))
        state = read_checkpoint(tmp_path / name / "last.ckpt")["state_dict"]
        return torch.cat([value.flatten() for value in state.values()])

    first = weights("first", seed=0)
    assert torch.equal(first, weights("second", seed=0))
    assert not torch.equal(first, weights("third", seed=1))


def test_averaged_weights_follow_the_trained_ones(trained_run: Path) -> None:
    averaged = load_classifier(trained_run / "last.ckpt")
    trained = load_classifier(trained_run / "last.ckpt", averaged=False)
    assert (averaged.weights, trained.weights) == ("averaged", "trained")
    difference = [
        float((a - b).norm() / b.norm())
        for (name, a), b in zip(averaged.model.state_dict().items(), trained.model.state_dict().values(), strict=True)
        if a.is_floating_point() and name.endswith("weight")
    ]
    assert 0 < max(difference) < 0.5


def test_two_small_batches_are_one_large_step(small_settings: dict[str, Any], tmp_path: Path) -> None:
    # Without augmentation, and with plain gradient descent, which doesn't magnify rounding.
    settings = {**small_settings, "epochs": 1, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "color_jitter": 0.0}
    settings |= {"optimizer": "sgd", "lr": 0.01, "clip_grad": None, "weight_decay": 0.0}
    states = []
    for batch_size, accumulate in ((64, 1), (32, 2)):
        folder = tmp_path / str(batch_size)
        train(ClassificationConfig(**settings, batch_size=batch_size, accumulate=accumulate, out=str(folder)))
        content = read_checkpoint(folder / "last.ckpt")
        assert content["global_step"] == 2
        states.append(content["state_dict"])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_the_schedule_warms_up_and_falls_to_its_floor(small_settings: dict[str, Any], tmp_path: Path) -> None:
    result = train(
        ClassificationConfig(
            **{**small_settings, "epochs": 4}, lr=1e-3, min_lr=1e-4, warmup_epochs=2, out=str(tmp_path)
        )
    )
    steps, floor, top = 2, 1e-4, 1e-3
    expected = [
        floor + (top - floor) * t / (2 * steps) if t < 2 * steps
        else floor + (top - floor) * (1 + math.cos(math.pi * t / (4 * steps))) / 2
        for t in (epoch * steps - 1 for epoch in range(1, 5))
    ]  # fmt: skip
    assert [row["lr"] for row in result.history] == pytest.approx(expected)


def test_weight_decay_spares_vectors_and_what_the_model_exempts(small_settings: dict[str, Any], tmp_path: Path) -> None:
    train(ClassificationConfig(**{**small_settings, "epochs": 1}, out=str(tmp_path)))
    content = read_checkpoint(tmp_path / "last.ckpt")
    groups = content["optimizer_states"][0]["param_groups"]
    model = load_classifier(tmp_path / "last.ckpt").model
    vectors = sum(parameter.ndim <= 1 for parameter in model.parameters())
    assert {group["weight_decay"]: len(group["params"]) for group in groups} == {
        0.0: vectors,
        0.05: len(list(model.parameters())) - vectors,
    }


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_mixup_cutmix_and_low_precision_train(small_settings: dict[str, Any], tmp_path: Path, precision: str) -> None:
    settings = {**small_settings, "epochs": 15, "lr": 4e-3}
    result = train(ClassificationConfig(**settings, mixup=0.2, cutmix=1.0, precision=precision, out=str(tmp_path)))
    assert result.final.top1 > 0.6
    assert result.history[-1]["skipped_steps"] == 0


def test_grey_input_is_a_setting(small_settings: dict[str, Any], tmp_path: Path) -> None:
    result = train(ClassificationConfig(**{**small_settings, "epochs": 10}, in_chans=1, out=str(tmp_path)))
    assert load_classifier(tmp_path).preprocessing.input_size == (1, 32, 32)
    assert result.final.top1 > 0.6


def test_a_run_starts_from_the_weights_of_another(
    trained_run: Path, small_settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**small_settings, "epochs": 1, "lr": 1e-6, "min_lr": 1e-7, "checkpoint": str(trained_run)}
    result = train(ClassificationConfig(**{**settings, "data": "digits"}, out=str(tmp_path / "same")))
    assert result.final.top1 > 0.8
    started, trained = (load_classifier(folder).model.state_dict() for folder in (tmp_path / "same", trained_run))
    assert all((started[name] - value).abs().max() < 1e-3 for name, value in trained.items())
    # Other classes: a new classifier on the same features.
    train(ClassificationConfig(**settings, out=str(tmp_path / "few")))
    started = load_classifier(tmp_path / "few").model.state_dict()
    assert {name for name, value in trained.items() if started[name].shape != value.shape} == {
        "head.fc.weight",
        "head.fc.bias",
    }
    assert all((started[name] - value).abs().max() < 1e-3 for name, value in trained.items() if "head.fc" not in name)


def test_weights_of_another_model_are_refused(
    trained_run: Path, small_settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**small_settings, "model": "test_vit", "checkpoint": str(trained_run)}
    with pytest.raises(
        ValueError, match="holds weights of test_convnext, not of test_vit; choose --model test_convnext"
    ):
        train(ClassificationConfig(**settings, out=str(tmp_path)))
