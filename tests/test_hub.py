"""A run becomes a folder for the hub, and the folder the same classifier again, through timm alone."""

import json

import pytest
import timm
import torch

from visionssm.cli.main import main
from visionssm.tasks.checkpoint import load_classifier


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
    assert "| test | 359 |" in card


def test_existing_folder_is_left_alone(run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert main(["publish", str(run), "--out", str(tmp_path / "mine")]) == 2
    assert "exists; choose a new one" in capsys.readouterr().err
    assert not list((tmp_path / "mine").iterdir())


def test_missing_run(tmp_path, capsys):
    assert main(["publish", str(tmp_path / "none"), "--out", str(tmp_path / "hub")]) == 2
    assert "none" in capsys.readouterr().err
