"""Fine-tuning in one command: what is taken over, what starts afresh, and what is there at the end."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from visionssm.cli.main import main
from visionssm.tasks.checkpoint import load_classifier
from visionssm.tasks.classification_config import ClassificationConfig
from visionssm.tasks.initial import build_initial_model


@pytest.fixture(scope="module")
def other_photos(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes under other names, without a validation part."""
    root = tmp_path_factory.mktemp("other") / "pets"
    shutil.copytree(photos / "one", root / "cat")
    shutil.copytree(photos / "zero", root / "dog")
    return root


def test_one_command_fine_tunes_evaluates_and_leaves_a_classifier(
    run_folder: Path, other_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ["train", "--model", "test_convnext", "--checkpoint", str(run_folder), "--data", str(other_photos)]
    assert main([*command, "epochs=4", "img_size=[32,32]", "batch_size=16", "workers=0", "hflip=0", f"out={run}"]) == 0
    output = capsys.readouterr().out
    assert "pets: 2 classes, 64 training, 16 validation images (20 % of each class held back for validation)" in output
    origin = f"weights   {run_folder / 'best.ckpt'}, trained on 3 classes (one, two, zero); a new classifier for 2"
    assert origin in output
    assert "input     32 x 32, 3 channels; crops of 35 to 100 % of the area" in output
    assert re.search(r"settings  4 epochs, batch 16, adamw, lr 0\.0002", output)
    assert "label smoothing 0.1" in output
    assert f"visionssm predict IMAGE... --checkpoint {run}" in output
    with Image.open(run / "confusion_matrix.png") as figure:
        assert figure.width > 200
    rows = list(csv.DictReader((run / "per_class.csv").read_text().splitlines()))
    result = json.loads((run / "results.json").read_text())["val"]
    assert [(row["class"], row["images"]) for row in rows] == [("cat", "8"), ("dog", "8")]
    assert [float(row["recall"]) for row in rows] == [row["recall"] for row in result["per_class"]]
    assert result["top1"] > 0.8
    image = next(other_photos.rglob("*.png"))
    assert main(["predict", str(image), "--checkpoint", str(run), "--out", str(tmp_path / "out.json")]) == 0
    (prediction,) = json.loads((tmp_path / "out.json").read_text())
    assert set(prediction["labels"]) == {"cat", "dog"}


def test_everything_but_the_classifier_is_taken_over(run_folder: Path) -> None:
    config = ClassificationConfig(model="test_convnext", checkpoint=str(run_folder), img_size=(48, 40))
    state = build_initial_model(config, ["cat", "dog"]).model.state_dict()
    before = load_classifier(run_folder).model.state_dict()
    fresh = {
        name
        for name, value in state.items()
        if value.shape != before[name].shape or not torch.equal(value, before[name])
    }
    assert fresh == {"head.fc.weight", "head.fc.bias"}
    assert state["head.fc.weight"].shape[0] == 2


@pytest.mark.parametrize(("class_names", "kept"), [(["one", "two", "zero"], True), (["zero", "two", "one"], False)])
def test_a_classifier_is_kept_only_for_the_same_classes_in_the_same_order(
    run_folder: Path, class_names: list[str], kept: bool
) -> None:
    config = ClassificationConfig(model="test_convnext", checkpoint=str(run_folder))
    initial = build_initial_model(config, class_names)
    before = load_classifier(run_folder).model.state_dict()
    assert torch.equal(initial.model.state_dict()["head.fc.weight"], before["head.fc.weight"]) == kept
    assert ("a new classifier for 3" in initial.origin) == (not kept)


def test_colours_are_summed_for_a_model_with_one_channel(run_folder: Path) -> None:
    config = ClassificationConfig(model="test_convnext", checkpoint=str(run_folder), in_chans=1)
    initial = build_initial_model(config, ["one", "two", "zero"])
    before = load_classifier(run_folder).model.state_dict()
    torch.testing.assert_close(
        initial.model.state_dict()["stem.0.weight"], before["stem.0.weight"].sum(1, keepdim=True)
    )
    assert initial.preprocessing.input_size == (1, 160, 160)
    assert len(initial.preprocessing.mean) == 1


def test_bare_weights_start_a_run_too(other_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    model = timm.create_model("test_convnext")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    config = ClassificationConfig(model="test_convnext", checkpoint=str(tmp_path / "weights.pth"))
    state = build_initial_model(config, ["cat", "dog"]).model.state_dict()
    assert all(
        torch.equal(value, model.state_dict()[name]) for name, value in state.items() if not name.startswith("head.fc")
    )


def test_weights_of_another_model_are_refused(
    run_folder: Path, other_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--model", "vmamba_nano", "--checkpoint", str(run_folder), "--data", str(other_photos)]
    assert main([*command, f"out={tmp_path / 'run'}"]) == 2
    assert "holds weights of test_convnext, not of vmamba_nano; choose --model test_convnext" in capsys.readouterr().err


def test_a_published_file_may_be_called_ckpt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some families' are: the content says that it is no run of ours, not the suffix."""
    model = timm.create_model("vmamba_nano", pretrained=True)
    published = model.key_table.to_published(model.state_dict())
    torch.save({"state_dict": published, "epoch": 300}, tmp_path / "published.ckpt")
    command = ["train", "--model", "vmamba_nano", "--checkpoint", str(tmp_path / "published.ckpt")]
    assert main([*command, "epochs=1", f"out={tmp_path / 'run'}"]) == 0
    assert f"weights   {tmp_path / 'published.ckpt'}" in capsys.readouterr().out
    looked_at = ["erf", "--model", "vmamba_nano", "--checkpoint", str(tmp_path / "published.ckpt")]
    assert main([*looked_at, "--out", str(tmp_path / "erf.png")]) == 0
    assert "untrained" not in capsys.readouterr().err
