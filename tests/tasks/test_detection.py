"""Detection from the command line on scenes of digits: training, resumption, evaluation, prediction, bad input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import interrupted

from visionssm.cli.main import main
from visionssm.data.coco import load_coco
from visionssm.data.scenes import make_scenes
from visionssm.tasks.checkpoint import read_checkpoint
from visionssm.tasks.dense_config import SCENE_DETECTOR, DetectionConfig
from visionssm.tasks.dense_model import build_dense_model, load_dense_model
from visionssm.tasks.detection import detection_metrics
from visionssm.tasks.detection_metrics import coco_results

TRAIN = ["train", "--task", "detection", "--device", "cpu", "--threads", "1", "--batch-size", "2"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("data") / "few", images=8, size=64)


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """The folder of a finished run of two epochs of four steps; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main([*TRAIN, "--data", str(scenes), "--epochs", "2", "--checkpoint-steps", "3", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def talkative(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the run that takes nothing for background, so that it finds objects everywhere."""
    content = torch.load(run / "best.ckpt", weights_only=True)
    (name,) = (name for name in content["state_dict"] if name.endswith("cls_score.bias"))
    content["state_dict"][name][-1] = -20.0
    file = tmp_path_factory.mktemp("talkative") / "best.ckpt"
    torch.save(content, file)
    return file


def _copy_with(scenes: Path, folder: Path, change: Any) -> Path:
    """The scenes with other training annotations."""
    import shutil

    shutil.copytree(scenes, folder)
    file = folder / "coco/annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return folder


def test_a_run_leaves_scores_curves_and_checkpoints(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["val"]["images"] == 2 and set(results["val"]["box"]) == set(results["val"]["mask"])
    assert {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"} < set(results["val"]["box"])
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    assert {"train_loss", "grad_norm", "val_box_ap", "val_box_ap50", "val_mask_ap75"} < set(header.split(","))
    assert len(rows) == 2
    assert {"best.ckpt", "last.ckpt", "config.yaml", "learning_curve.png"} <= {path.name for path in run.iterdir()}
    detector = load_dense_model(run)
    assert detector.class_names == [str(digit) for digit in range(10)] and detector.category_ids[5] == 7


def test_an_interrupted_run_ends_bit_by_bit_like_one_that_was_not(scenes: Path, run: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    command = [*TRAIN, "--data", str(scenes), "--epochs", "2", "--checkpoint-steps", "3", "--out", str(stopped)]

    assert interrupted(command, stopped) == 130
    assert main(command) == 0
    first, second = read_checkpoint(run / "last.ckpt"), read_checkpoint(stopped / "last.ckpt")
    assert first["state_dict"].keys() == second["state_dict"].keys()
    assert all(torch.equal(value, second["state_dict"][key]) for key, value in first["state_dict"].items())
    assert (run / "metrics.csv").read_bytes() == (stopped / "metrics.csv").read_bytes()


@pytest.mark.parametrize(
    "head",
    [
        "mask_rcnn",
        pytest.param("cascade_mask_rcnn", marks=pytest.mark.slow),
        pytest.param("retinanet", marks=pytest.mark.slow),
    ],
)
def test_one_image_is_learned_by_heart(head: str, scenes: Path) -> None:
    config = DetectionConfig(data=str(scenes), head=head).with_defaults()
    images = load_coco(scenes)[0].subset([0])
    image, target, _ = images.load(0)
    torch.manual_seed(1)
    model, _ = build_dense_model(config, 10)
    pixels = image.as_subclass(torch.Tensor).float() / 255
    plain = {name: value.as_subclass(torch.Tensor) for name, value in target.items()}
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    model.train()
    for _ in range(120 if head == "retinanet" else 45):
        optimizer.zero_grad()
        loss = sum(model([pixels], [plain]).values())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        (found,) = model([pixels])
    metrics = detection_metrics(
        images, coco_results(images.images[0]["id"], found, images.category_ids), "masks" in found
    )
    assert ("mask" in metrics) == (head != "retinanet")
    assert metrics["box"]["AP50"] > 0.9
    if head != "retinanet":
        assert metrics["mask"]["AP50"] > 0.9


@pytest.mark.parametrize("head", ["mask_rcnn", "cascade_mask_rcnn", "retinanet"])
def test_a_batch_without_objects_has_a_finite_loss_and_gradient(head: str, scenes: Path) -> None:
    model, _ = build_dense_model(DetectionConfig(data=str(scenes), head=head).with_defaults(), 10)
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 64, dtype=torch.uint8),
    }
    loss = sum(model.train()([torch.rand(3, 64, 64)] * 2, [empty, empty]).values())
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_images_without_objects_are_trained_on_when_asked_for(scenes: Path, tmp_path: Path) -> None:
    def remove_most(content: dict[str, Any]) -> None:
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 1]

    data = _copy_with(scenes, tmp_path / "empty", remove_most)
    command = [*TRAIN, "--data", str(data), "--epochs", "1", "--keep-empty", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    row = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1]
    assert (
        "nan" not in row
        and read_checkpoint(tmp_path / "run" / "last.ckpt")["history"]["epochs"][0]["skipped_steps"] == 0
    )


def test_bad_annotations_are_counted_named_and_trained_around(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(content: dict[str, Any]) -> None:
        by_image = {a["image_id"]: a for a in content["annotations"]}
        by_image[1]["bbox"] = [10, 10, 0, 5]
        by_image[2]["bbox"] = [500, 500, 5, 5]
        by_image[3]["category_id"] = 77
        by_image[4]["segmentation"]["size"] = [3, 3]
        content["images"].append({"id": 99, "file_name": "gone.png", "height": 64, "width": 64})

    data = _copy_with(scenes, tmp_path / "bad", spoil)
    (data / "coco/train2017/000000000005.png").write_bytes(b"not a picture")
    folder = tmp_path / "run"
    assert main([*TRAIN, "--data", str(data), "--epochs", "1", "--out", str(folder)]) == 0
    lines = (folder / "annotation_problems.txt").read_text().splitlines()
    kinds = [line.split("\t")[1].split(":")[0] for line in lines]
    assert sorted(kinds) == [
        "box lies outside the image",
        "box of zero area",
        "category id isn't in the list of categories",
        "image file is missing",
        "mask isn't of the image's size",
    ]
    assert "gone.png" in "".join(lines) and "annotation" in lines[-1]
    assert "1 x box of zero area" in capsys.readouterr().out
    assert "000000000005.png" in (folder / "unreadable_images.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--head", "yolo"], "must be one of mask_rcnn"),
        (["--schedule", "steps"], "steps needs milestones"),
        (["--resize", "huge"], "must be one of fixed"),
        (["head_kwargs={channel: 3}"], "channel"),
        (["--mixup", "0.3"], "no setting 'mixup'"),
    ],
)
def test_bad_settings_are_answered_in_one_line(
    arguments: list[str], message: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--data", str(scenes), "--out", str(tmp_path / "run"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_eval_writes_a_results_file_that_pycocotools_reads(
    talkative: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    assert (
        main(
            [
                "eval",
                "--checkpoint",
                str(talkative),
                "--data",
                str(scenes),
                "--device",
                "cpu",
                "--out",
                str(tmp_path / "e.json"),
            ]
        )
        == 0
    )
    assert "AP50" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "e.json").read_text())
    truth = COCO(str(scenes / "coco/annotations/instances_val2017.json"))
    results = json.loads((tmp_path / "e_results.json").read_text())
    assert len(results) > 20
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        entries = [{k: v for k, v in e.items() if kind == "segm" or k != "segmentation"} for e in results]
        evaluation = COCOeval(truth, truth.loadRes(entries), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert row[name]["AP"] == pytest.approx(max(evaluation.stats[0], 0), abs=1e-12)
        assert row[name]["AP50"] == pytest.approx(max(evaluation.stats[1], 0), abs=1e-12)


def test_predict_writes_pictures_and_results(
    talkative: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = scenes / "coco" / "val2017"
    (tmp_path / "broken.png").write_bytes(b"x")
    command = [
        "predict",
        str(pictures),
        str(tmp_path / "broken.png"),
        "--checkpoint",
        str(talkative),
        "--device",
        "cpu",
    ]
    assert main([*command, "--task", "detection", "--score", "0.0", "--out", str(tmp_path / "found")]) == 0
    assert "broken.png  can't be read" in capsys.readouterr().out
    with Image.open(tmp_path / "found" / "000000000001.png") as picture:
        assert picture.size == (512, 512)
        with Image.open(pictures / "000000000001.png") as original:
            enlarged = original.resize((512, 512), Image.Resampling.NEAREST)
        assert not np.array_equal(np.array(picture), np.array(enlarged))
    facts = json.loads((tmp_path / "found" / "images.json").read_text())
    results = json.loads((tmp_path / "found" / "results.json").read_text())
    assert {entry["image_id"] for entry in results} <= {image["id"] for image in facts["images"]}
    assert [category["id"] for category in facts["categories"]] == load_dense_model(talkative).category_ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "segmentation", "--out", "x"], "is from the task detection"),
        (["--out", "x.csv"], "give one folder"),
        (["--multi-scale", "--out", "x"], "--multi-scale is for segmentation"),
        (["--score", "7", "--out", "x"], "score is 7"),
    ],
)
def test_predict_refuses_what_does_not_go_together(
    arguments: list[str], message: str, run: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    image = scenes / "coco/val2017/000000000001.png"
    assert main(["predict", str(image), "--checkpoint", str(run), "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_detector_starts_from_a_classifier_or_from_another_run(
    run: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = build_dense_model(DetectionConfig(data=str(scenes), checkpoint=str(run)).with_defaults(), 10)
    assert "0 start afresh" in capsys.readouterr().out
    state = load_dense_model(run).model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    # Other classes: the last layers start afresh, and that is said.
    other, _ = build_dense_model(DetectionConfig(data=str(scenes), checkpoint=str(run)).with_defaults(), 4)
    assert "6 start afresh" in capsys.readouterr().out
    body = "backbone.body.model."
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items() if name.startswith(body))


def test_heads_of_scenes_are_smaller_than_the_published_ones(scenes: Path) -> None:
    assert DetectionConfig(data=str(scenes)).with_defaults().head_kwargs == {"settings": SCENE_DETECTOR}
    published = DetectionConfig(data="coco").with_defaults()
    assert (published.head_kwargs, published.test_size, published.resize) == ({}, (800, 1333), "fixed")
