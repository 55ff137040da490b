"""Segmentation from the command line on scenes of digits: training, resumption, evaluation, prediction, bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import interrupted

from visionssm.cli.main import main
from visionssm.data.ade20k import load_ade20k
from visionssm.data.scenes import make_scenes
from visionssm.tasks.checkpoint import read_checkpoint
from visionssm.tasks.dense_config import SegmentationConfig
from visionssm.tasks.dense_model import build_dense_model, load_dense_model
from visionssm.tasks.dense_optimizer import make_dense_optimizer
from visionssm.tasks.segmentation import predict_label_map, start_at_class_shares

TRAIN = ["train", "--task", "segmentation", "--device", "cpu", "--threads", "1", "--batch-size", "2"]
TRAIN += ["--class-shares", "false", "--lr", "1e-4"]  # a few steps then don't end at nothing but background


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("data") / "few", images=8, size=64)


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """The folder of a finished run of two epochs of four steps; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main([*TRAIN, "--data", str(scenes), "--epochs", "2", "--checkpoint-steps", "3", "--out", str(folder)]) == 0
    return folder


def test_a_run_leaves_scores_curves_and_checkpoints(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())["val"]
    assert results["images"] == 2 and [row["class"] for row in results["per_class"]][:3] == ["background", "0", "1"]
    assert 0 < results["mIoU"] < 1 and 0 < results["aAcc"] <= 1
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train_loss", "val_miou", "val_macc", "val_aacc"} < set(header)
    assert {"best.ckpt", "last.ckpt", "config.yaml", "learning_curve.png"} <= {path.name for path in run.iterdir()}


def test_an_interrupted_run_ends_bit_by_bit_like_one_that_was_not(scenes: Path, run: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    command = [*TRAIN, "--data", str(scenes), "--epochs", "2", "--checkpoint-steps", "3", "--out", str(stopped)]

    assert interrupted(command, stopped) == 130
    assert main(command) == 0
    first, second = read_checkpoint(run / "last.ckpt"), read_checkpoint(stopped / "last.ckpt")
    assert all(torch.equal(value, second["state_dict"][key]) for key, value in first["state_dict"].items())
    assert (run / "metrics.csv").read_bytes() == (stopped / "metrics.csv").read_bytes()


def test_training_can_start_at_the_shares_of_the_classes(scenes: Path) -> None:
    config = SegmentationConfig(data=str(scenes)).with_defaults()
    assert config.class_shares
    model, _ = build_dense_model(config, 11)
    images = load_ade20k(scenes)[0]
    start_at_class_shares(model, images)
    labels = np.stack([np.asarray(images.load(index)[1]["label_map"]) for index in range(len(images))])
    counts = torch.tensor([max(1, int((labels == digit).sum())) for digit in range(11)])
    for head in (model.decode_head, model.auxiliary_head):
        torch.testing.assert_close(head.classifier[-1].bias.softmax(0), counts / counts.sum())


def test_one_image_is_learned_by_heart(scenes: Path) -> None:
    config = SegmentationConfig(data=str(scenes)).with_defaults()
    image, target, _ = load_ade20k(scenes)[0].load(0)
    pixels = image.as_subclass(torch.Tensor).float() / 255
    labels = target["label_map"].as_subclass(torch.Tensor).long()
    torch.manual_seed(0)
    model, _ = build_dense_model(config, 11)
    optimizer = make_dense_optimizer(model, config)
    # Twice, for a BatchNorm after pooling to one pixel needs more than one value.
    for _ in range(50):
        optimizer.zero_grad()
        sum(model.train()(pixels.expand(2, -1, -1, -1), labels.expand(2, -1, -1)).values()).backward()
        optimizer.step()
    found = predict_label_map(model.eval(), pixels, config)
    assert (found == labels).float().mean() > 0.97
    assert found.unique().tolist() == labels.unique().tolist()


def test_a_batch_without_labels_has_a_finite_loss_and_gradient(scenes: Path) -> None:
    model, _ = build_dense_model(SegmentationConfig(data=str(scenes)).with_defaults(), 11)
    losses = model.train()(torch.rand(2, 3, 64, 64), torch.full((2, 64, 64), 255))
    loss = sum(losses.values())
    loss.backward()
    assert loss == 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_bad_labels_are_counted_named_and_trained_around(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "bad"
    shutil.copytree(scenes, data)
    labels = data / "ade20k/annotations/training"
    Image.fromarray(np.full((64, 64), 200, np.uint8)).save(labels / "000000000001.png")  # no value is a class
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(labels / "000000000002.png")  # nothing is labelled
    Image.fromarray(np.ones((9, 9), np.uint8)).save(labels / "000000000003.png")
    (labels / "000000000004.png").unlink()
    folder = tmp_path / "run"
    assert main([*TRAIN, "--data", str(data), "--epochs", "2", "--out", str(folder)]) == 0
    problems = (folder / "annotation_problems.txt").read_text()
    assert "000000000001.png\tlabel values above the 11 classes" in problems
    assert "000000000004.png\timage has no label map" in problems
    assert "000000000003.png\tis 64x64, but its label map is 9x9" in (folder / "unreadable_images.txt").read_text()
    assert "1 x label values above" in capsys.readouterr().out
    history = read_checkpoint(folder / "last.ckpt")["history"]["epochs"]
    assert all(row["skipped_steps"] == 0 and row["train_loss"] > 0 for row in history)


def test_eval_at_one_and_at_several_scales(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, arguments in {"one": [], "several": ["--multi-scale"]}.items():
        command = ["eval", "--checkpoint", str(run), "--device", "cpu", "--out", str(tmp_path / f"{name}.json")]
        assert main([*command, *arguments]) == 0
    assert "background" in capsys.readouterr().out
    (one,), (several,) = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "several"))
    expected = json.loads((run / "results.json").read_text())["val"]
    assert {name: one[name] for name in ("mIoU", "mAcc", "aAcc")} == {
        name: expected[name] for name in ("mIoU", "mAcc", "aAcc")
    }
    assert several["mIoU"] != one["mIoU"]


def test_predict_writes_colour_maps_and_label_files(run: Path, scenes: Path, tmp_path: Path) -> None:
    pictures = scenes / "ade20k/images/validation"
    assert (
        main(["predict", str(pictures), "--checkpoint", str(run), "--device", "cpu", "--out", str(tmp_path / "found")])
        == 0
    )
    segmenter = load_dense_model(run)
    image, _, _ = load_ade20k(scenes)[1].load(0)
    expected = predict_label_map(segmenter.model, image.as_subclass(torch.Tensor).float() / 255, segmenter.config)
    with Image.open(tmp_path / "found/000000000001_labels.png") as labels:
        assert labels.mode == "L" and np.array_equal(np.array(labels), expected + 1)
    with Image.open(tmp_path / "found/000000000001.png") as picture:
        assert picture.height == 512 and picture.width > 512 + 50  # the legend


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--crop-size", "32"], "crop_size=32: expected"),
        (["--head", "upernet"], "there is no setting 'head'"),
        (["--scale", "[2, 1]"], "the first number is the smaller one"),
    ],
)
def test_bad_settings_are_answered_in_one_line(
    arguments: list[str], message: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--data", str(scenes), "--out", str(tmp_path / "run"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_eval_refuses_data_with_other_classes(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scenes, tmp_path / "other")
    (tmp_path / "other/ade20k/classes.txt").write_text("sky\nsea\n")
    assert main(["eval", "--checkpoint", str(run), "--device", "cpu", "--data", str(tmp_path / "other")]) == 2
    assert "the data has 2 classes (sky, sea" in capsys.readouterr().err
