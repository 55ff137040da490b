import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionssm.cli.main import main
from visionssm.data import eval_transform, read_image
from visionssm.tasks.checkpoint import load_classifier


def test_files_folders_and_patterns_are_classified_into_every_format(
    run_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = [tmp_path / name for name in ("labels.csv", "labels.json", "sheet.png")]
    command = ["predict", str(photos / "one" / "00.png"), str(photos / "two"), str(photos / "zero" / "0*.png")]
    for file in outputs:
        command += ["--out", str(file)]
    assert main([*command, "--checkpoint", str(run_folder), "--top-k", "2"]) == 0
    rows = list(csv.DictReader(outputs[0].read_text().splitlines()))
    data = json.loads(outputs[1].read_text())
    assert len(rows) == len(data) == 1 + 40 + 10
    classifier = load_classifier(run_folder)
    transform = eval_transform(classifier.preprocessing)
    for row, item in list(zip(rows, data, strict=True))[::10]:
        with torch.inference_mode():
            shares = classifier.model(transform(read_image(row["image"]))[None]).softmax(1)[0]
        order = shares.argsort(descending=True)[:2]
        assert item["labels"] == [row["label_1"], row["label_2"]] == [classifier.class_names[label] for label in order]
        assert item["confidences"] == pytest.approx(shares[order].tolist(), abs=1e-5)
        assert float(row["confidence_1"]) == pytest.approx(float(shares[order[0]]), abs=1e-5)
    assert f"{photos / 'one' / '00.png'}  {rows[0]['label_1']} " in capsys.readouterr().out


def test_the_contact_sheet_shows_the_images(run_folder: Path, photos: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    images = [str(photos / "one" / f"0{number}.png") for number in range(3)]
    assert main(["predict", *images, "--checkpoint", str(run_folder), "--out", str(sheet)]) == 0
    with Image.open(sheet) as page:
        pixels = np.asarray(page.convert("L"))
    for column, image in enumerate(images):
        shown = pixels[10 : 10 + 112, 10 + 122 * column :][:, :112]
        expected = np.asarray(read_image(image).resize((112, 112), Image.Resampling.NEAREST))
        np.testing.assert_array_equal(shown, expected)
    captions = pixels[122:144]
    assert (captions < 128).any()


def test_images_that_cannot_be_read_are_named_and_the_rest_is_classified(
    run_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    command = ["predict", str(tmp_path / "broken.png"), str(photos / "one"), "--checkpoint", str(run_folder)]
    assert main([*command, "--out", str(tmp_path / "labels.csv")]) == 0
    assert f"{tmp_path / 'broken.png'}  can't be read: not an image" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "labels.csv").read_text().splitlines()))
    assert [row["image"] for row in rows if row["error"]] == [str(tmp_path / "broken.png")]
    assert len(rows) == 41


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.png", "--checkpoint", "{run}"], "nothing.png: no such image, folder, or pattern"),
        (["{tmp}", "--checkpoint", "{run}"], "holds no images"),
        (["{tmp}/broken.dat", "--checkpoint", "{run}"], "none of the 1 images can be read"),
        (["{image}", "--checkpoint", "nowhere"], "nowhere: no such checkpoint"),
        (["{image}", "--checkpoint", "{run}", "--top-k", "0"], "top_k is 0; it must be at least 1"),
        (["{image}", "--checkpoint", "{run}", "--out", "labels.txt"], "predictions are written as .csv, .json, .png"),
        (["{image}", "--checkpoint", "{run}", "--out", "{tmp}/none/labels.csv"], "No such file or directory"),
    ],
)
def test_what_cannot_be_done_gives_one_line_and_exit_code_2(
    run_folder: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "broken.dat").write_bytes(b"broken")
    image = photos / "one" / "00.png"
    assert main(["predict", *(text.format(run=run_folder, tmp=tmp_path, image=image) for text in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
