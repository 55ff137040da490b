import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from visionssm.cli.main import main


def test_a_run_is_evaluated_on_its_own_held_back_images(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    assert main(["eval", "--checkpoint", str(run_folder), "--out", str(file)]) == 0
    output = capsys.readouterr().out
    result = json.loads(file.read_text())
    stored = json.loads((run_folder / "results.json").read_text())["val"]
    assert {key: result[key] for key in ("top1", "top5", "images", "per_class")} == {
        key: stored[key] for key in ("top1", "top5", "images", "per_class")
    }
    assert f"top-1 {100 * result['top1']:.2f} %" in output
    assert "images/s" in output
    for name in ("one", "two", "zero"):
        assert name in output


def test_the_numbers_are_those_of_a_plain_count(run_folder: Path, photos: Path, tmp_path: Path) -> None:
    from visionssm.data import eval_transform, read_image
    from visionssm.tasks.checkpoint import load_classifier

    classifier = load_classifier(run_folder)
    transform = eval_transform(classifier.preprocessing)
    right: dict[str, list[bool]] = {}
    for path in sorted(photos.rglob("*.png")):
        with torch.inference_mode():
            label = int(classifier.model(transform(read_image(path))[None]).argmax())
        right.setdefault(path.parent.name, []).append(classifier.class_names[label] == path.parent.name)
    copy = shutil.copytree(photos, tmp_path / "copy")  # of the run's own folder, only what was held back is taken
    command = ["eval", "--checkpoint", str(run_folder), "--data", str(copy)]
    assert main([*command, "--out", str(tmp_path / "all.json"), "--out", str(tmp_path / "all.png")]) == 0
    with Image.open(tmp_path / "all.png") as figure:
        assert figure.width > 400
    result = json.loads((tmp_path / "all.json").read_text())
    assert result["top1"] == pytest.approx(sum(map(sum, right.values())) / 120)
    assert {row["class"]: row["recall"] for row in result["per_class"]} == {
        name: pytest.approx(sum(hits) / len(hits)) for name, hits in right.items()
    }


def test_part_of_the_classes_is_enough(run_folder: Path, photos: Path, tmp_path: Path, capsys) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    shutil.rmtree(data / "one")
    (data / "two" / "00.png").write_bytes(b"broken")
    assert main(["eval", "--checkpoint", str(run_folder / "best.ckpt"), "--data", str(data)]) == 0
    output = capsys.readouterr().out
    assert "79 images" in output
    assert "1 images can't be read and were left out" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere"], "nowhere: no such checkpoint file or folder of a run"),
        (["--checkpoint", "{tmp}"], "holds neither best.ckpt nor last.ckpt; is it the folder of a run?"),
        (["--checkpoint", "{run}", "--data", "nowhere"], "nowhere: no such folder"),
        (["--checkpoint", "{run}", "--data", "digits"], "digits has 10 classes"),
        (["--checkpoint", "{run}", "--out", "result.txt"], "results are written as .json or .png"),
        (["--checkpoint", "{run}", "--batch-size", "0"], "batch_size is 0; it must be at least 1"),
        (["--checkpoint", "{run}", "--data", "{tmp}/cats", "--part", "val"], "cats has no folder val/"),
        (["--checkpoint", "{run}", "--part", "test"], "has no test images; choose --part val"),
        (["--checkpoint", "{tmp}/weights.pth"], "holds weights, but not the class names and preprocessing"),
        (["--checkpoint", "{tmp}/cut.ckpt"], "it is damaged, cut short, or another kind of file"),
        (["--checkpoint", "{tmp}/page.ckpt"], "it is damaged, cut short, or another kind of file"),
        (["--checkpoint", "{tmp}/other.ckpt"], "doesn't fit the model test_vit"),
        (["--checkpoint", "{run}", "--data", "{tmp}/cats"], "1 class (cats) that the model or the training set doesn't know"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_gives_one_line_and_exit_code_2(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    whole = (run_folder / "best.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[:-5000])
    (tmp_path / "page.ckpt").write_bytes(b"<!DOCTYPE html><html></html>")
    content = torch.load(run_folder / "best.ckpt", weights_only=True)
    torch.save(content["state_dict"], tmp_path / "weights.pth")
    content["visionssm"]["model"] = "test_vit"
    torch.save(content, tmp_path / "other.ckpt")
    (tmp_path / "cats" / "cats").mkdir(parents=True)
    shutil.copy(next(Path(content["visionssm"]["config"]["data"]).rglob("*.png")), tmp_path / "cats" / "cats")
    filled = [argument.format(run=run_folder, tmp=tmp_path) for argument in arguments]
    assert main(["eval", *filled]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
