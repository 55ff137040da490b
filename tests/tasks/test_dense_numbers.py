"""What is reached on scenes of digits within minutes, and that every family trains."""

import json
from pathlib import Path
from typing import Any

import pytest

from visionssm.cli.main import main
from visionssm.data.scenes import make_scenes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("data") / "scenes", images=3000, size=64)


def _train(scenes: Path, folder: Path, task: str, epochs: int, *settings: str, batch: int = 4) -> dict[str, Any]:
    """The scores on the validation scenes after the last epoch."""
    length = ["--epochs", str(epochs), "--validate-every", str(epochs)]
    common = ["--device", "cpu", "--threads", "1", "--batch-size", str(batch), *length]
    assert main(["train", "--task", task, "--data", str(scenes), "--out", str(folder), *common, *settings]) == 0
    return json.loads((folder / "results.json").read_text())["val"]


def test_mask_rcnn_finds_digits_and_a_cascade_bounds_them_better(scenes: Path, tmp_path: Path) -> None:
    plain = _train(scenes, tmp_path / "plain", "detection", 3)
    cascade = _train(scenes, tmp_path / "cascade", "detection", 3, "--head", "cascade_mask_rcnn")
    print(f"Mask R-CNN {plain['box']} {plain['mask']}, Cascade Mask R-CNN {cascade['box']} {cascade['mask']}")
    assert plain["box"]["AP50"] >= 0.80
    assert plain["mask"]["AP50"] >= 0.75
    assert cascade["box"]["AP"] > plain["box"]["AP"]


def test_upernet_labels_digits(tmp_path: Path) -> None:
    # Of 3000 scenes it would learn many by heart: digits in new scenes would be taken for one another.
    scenes = make_scenes(tmp_path / "scenes", images=24000, size=64)
    scores = _train(scenes, tmp_path / "run", "segmentation", 4, batch=16)
    assert scores["mIoU"] >= 0.80


@pytest.mark.parametrize("model", ["vim_nano", "mambavision_nano", "groupmamba_nano"])
def test_every_kind_of_backbone_trains(model: str, scenes: Path, tmp_path: Path) -> None:
    found = _train(scenes, tmp_path / "detection", "detection", 1, "--model", model)
    assert found["box"]["AP50"] > 0.10
    labelled = _train(scenes, tmp_path / "segmentation", "segmentation", 1, "--model", model)
    assert labelled["mIoU"] > 0.12
