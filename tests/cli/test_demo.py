import csv
from pathlib import Path

import pytest
from PIL import Image

from visionssm.cli.main import main


def _check(out: Path, output: str) -> None:
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 60
    assert len(list((out / "images").iterdir())) == 60
    with Image.open(out / "predictions.png") as page:
        assert page.width > 1000
    for path in ("predictions.png", "predictions.csv", "images", "run/confusion_matrix.png", "run/best.ckpt"):
        assert (out / path).exists()
        assert str(out / path) in output


def test_the_demo_trains_evaluates_predicts_and_says_where_everything_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--epochs", "1", "--out", str(tmp_path)]) == 0
    _check(tmp_path, capsys.readouterr().out)
    # A second time, the finished run is found, and the files are written again.
    assert main(["demo", "--epochs", "1", "--out", str(tmp_path)]) == 0
    _check(tmp_path, capsys.readouterr().out)


@pytest.mark.slow
def test_the_demo_reaches_97_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert main(["demo", "--out", str(tmp_path)]) == 0
    _check(tmp_path, capsys.readouterr().out)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["test"]["top1"] >= 0.97
