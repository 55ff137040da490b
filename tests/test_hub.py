"""A run becomes a folder for the hub, and the folder the same model again: a classifier through timm alone."""

import json

import pytest
import timm
import torch

from visionssm.cli.main import main
from visionssm.data.scenes import make_scenes
from visionssm.tasks.checkpoint import load_classifier
from visionssm.tasks.dense_model import load_dense_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--model", "vmamba_nano", "epochs=1", f"out={folder}"]) == 0
    return folder


def test_round_trip_through_timm(run, tmp_path, capsys):
    folder = tmp_path / "hub"
    assert main(["publish", str(run), "--out", str(folder), "--license", "apache-2.0"]) == 0
    assert "local-dir:" in capsys.readouterr().out
    trained = load_classifier(run)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), trained.model(images))
    assert tuple(model.pretrained_cfg["mean"]) == trained.preprocessing.mean
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == trained.class_names
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "| top1 (test, 359 images) |" in card


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_round_trip_of_detectors_and_segmenters(task, tmp_path, capsys):
    scenes = make_scenes(tmp_path / "scenes", images=8, size=64)
    run, folder = tmp_path / "run", tmp_path / "hub"
    assert main(["train", "--task", task, "--data", str(scenes), "--epochs", "1", "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["publish", str(run), "--out", str(folder), "--license", "mit"]) == 0
    printed = capsys.readouterr().out
    loaded = {}
    exec(printed.partition("to load it:\n")[2].replace("\n  ", "\n").strip(), loaded)
    trained = load_dense_model(run)
    for name, value in trained.model.state_dict().items():
        assert torch.equal(loaded["model"].state_dict()[name], value), name
    classes = json.loads((folder / "classes.json").read_text())
    assert classes == {"class_names": trained.class_names, "category_ids": trained.category_ids}
    card = (folder / "README.md").read_text()
    assert ("| box AP (val, 2 images) |" if task == "detection" else "| mIoU (val, 2 images) |") in card


def test_classifier_commands_refuse_a_segmenter(tmp_path, capsys):
    scenes = make_scenes(tmp_path / "scenes", images=4, size=64)
    run = tmp_path / "run"
    assert main(["train", "--task", "segmentation", "--data", str(scenes), "--epochs", "1", "--out", str(run)]) == 0
    with pytest.raises(ValueError, match=r"is from the task segmentation; a classifier is needed here"):
        load_classifier(run)


def test_existing_folder_is_left_alone(run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert main(["publish", str(run), "--out", str(tmp_path / "mine")]) == 2
    assert "exists; choose a new one" in capsys.readouterr().err
    assert not list((tmp_path / "mine").iterdir())


def test_missing_run(tmp_path, capsys):
    assert main(["publish", str(tmp_path / "none"), "--out", str(tmp_path / "hub")]) == 2
    assert "none" in capsys.readouterr().err
