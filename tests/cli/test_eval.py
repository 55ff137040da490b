import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torchmetrics.functional.classification import binary_calibration_error

from visionssm.cli.main import main
from visionssm.data import load_image_folder
from visionssm.tasks.checkpoint import Classifier
from visionssm.tasks.classifiers import labels_for


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


@pytest.fixture(scope="session")
def wnid_photos(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos in folders that are called like three of ImageNet's classes."""
    root = tmp_path_factory.mktemp("wnids") / "val"
    for source, wnid in (("one", "n01443537"), ("two", "n01440764"), ("zero", "n15075141")):
        shutil.copytree(photos / source, root / wnid)
    return root


@pytest.fixture(scope="session")
def imagenet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bare weights of a timm model with ImageNet's classes."""
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("weights") / "test_convnext.pth"
    torch.save(timm.create_model("test_convnext").state_dict(), file)
    return file


def test_a_timm_model_is_measured_as_timm_would_and_classes_go_by_their_names(
    wnid_photos: Path, imagenet_weights: Path, tmp_path: Path
) -> None:
    command = [
        "eval",
        "--model",
        "timm/test_convnext",
        "--checkpoint",
        str(imagenet_weights),
        "--data",
        str(wnid_photos),
    ]
    assert main([*command, "--out", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    model = timm.create_model("test_convnext", checkpoint_path=str(imagenet_weights)).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    labels = {"n01440764": 0, "n01443537": 1, "n15075141": 999}
    files = sorted(wnid_photos.rglob("*.png"))
    with torch.inference_mode():
        logits = torch.cat([model(transform(Image.open(file).convert("RGB"))[None]) for file in files])
    truth = torch.tensor([labels[file.parent.name] for file in files])
    assert result["images"] == 120
    assert result["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, truth)), rel=1e-4)
    assert result["top5"] == pytest.approx(float((logits.topk(5).indices == truth[:, None]).any(1).float().mean()))
    error = binary_calibration_error(logits.softmax(1).amax(1), (logits.argmax(1) == truth).long(), n_bins=15)
    assert result["calibration_error"] == pytest.approx(float(error), abs=1e-5)
    assert {row["class"] for row in result["per_class"] if row["images"]} == set(labels)


def test_several_models_go_into_one_table(
    run_folder: Path, photos: Path, imagenet_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scores.csv"
    checkpoints = [str(run_folder / "best.ckpt"), str(run_folder / "last.ckpt")]
    command = ["eval", "--checkpoint", *checkpoints, "--data", str(photos), "--part", "val", "--img-size", "48", "40"]
    assert main([*command, "--out", str(file), "--out", str(tmp_path / "scores.json")]) == 0
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["source"] for row in rows] == checkpoints
    for row, full in zip(rows, json.loads((tmp_path / "scores.json").read_text()), strict=True):
        assert (row["img_size"], row["parameters"], row["images"]) == ("48x40", "207323", "24")
        assert float(row["top1"]) == full["top1"]
        assert float(row["images_per_second"]) < float(row["model_images_per_second"])
        assert "per_class" not in row
    output = capsys.readouterr().out
    assert output.count(f"{checkpoints[0]} ") == 1
    assert "cal. error" in output


def test_another_size_is_the_models_own_at_that_size(run_folder: Path, photos: Path, tmp_path: Path) -> None:
    from visionssm.data import eval_transform, read_image
    from visionssm.tasks.checkpoint import load_classifier
    from visionssm.tasks.classifiers import run_classifier

    image = read_image(next(photos.rglob("*.png")))
    own, other = load_classifier(run_folder), run_classifier(run_folder, img_size=(48, 40))
    pixels = eval_transform(other.preprocessing)(image)[None]
    assert pixels.shape[2:] == (48, 40)
    with torch.inference_mode():
        torch.testing.assert_close(other.model(pixels), own.model(pixels))


@pytest.mark.parametrize("averaged", [True, False])
def test_averaged_or_trained_weights_are_measured(
    photos: Path, train_command: list[str], tmp_path: Path, averaged: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from visionssm.tasks.checkpoint import load_classifier

    assert main([*train_command, "epochs=1", "ema_decay=0.9", f"out={tmp_path / 'run'}"]) == 0
    flag = [] if averaged else ["--trained-weights"]
    assert main(["eval", "--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "r.json"), *flag]) == 0
    classifier = load_classifier(tmp_path / "run", averaged=averaged)
    assert f"{'averaged' if averaged else 'trained'} weights" in capsys.readouterr().out
    from visionssm.data import load_data
    from visionssm.tasks.evaluation import evaluate

    expected = evaluate(classifier, load_data(photos).val)
    assert json.loads((tmp_path / "r.json").read_text())["loss"] == pytest.approx(expected.loss)


def test_classes_without_known_names_go_by_their_order_where_the_counts_agree(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    torch.save(timm.create_model("test_convnext", num_classes=3).state_dict(), tmp_path / "three.pth")
    command = ["eval", "--model", "test_convnext", "--checkpoint", str(tmp_path / "three.pth"), "--data", str(photos)]
    assert main([*command, "--img-size", "32", "--out", str(tmp_path / "r.json")]) == 0
    assert [row["class"] for row in json.loads((tmp_path / "r.json").read_text())["per_class"]] == [
        "one",
        "two",
        "zero",
    ]
    images = load_image_folder(photos).train
    words = Classifier(torch.nn.Identity(), ["n1", "n2", "n3"], None, {"data": None}, Path("published"), "published")
    labelled, by_order = labels_for(words, images, "photos")
    assert by_order
    assert labelled.labels == images.labels
    trained = replace(words, config={"data": "elsewhere"})
    with pytest.raises(
        ValueError, match=r"photos has 3 classes \(one, two, zero\), but published tells 3 classes \(n1"
    ):
        labels_for(trained, images, "photos")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "test_convnext"], "name the images to measure on with --data"),
        ([], "name what to measure: --model NAME for published weights, --checkpoint for a run or a file"),
        (["--model", "vmamba_tinny", "--data", "{photos}"], "there is no 'vmamba_tinny'; did you mean vmamba_tiny"),
        (["--model", "vmamba_tiny_m2", "--data", "{photos}"], "there are no published weights of vmamba_tiny_m2"),
        (["--model", "test_convnext", "--checkpoint", "{weights}", "--data", "{photos}"], "fit test_convnext with 3 classes"),
        (["--model", "test_vit", "--checkpoint", "{weights}", "--data", "{wnids}"], "doesn't fit test_vit with 1000 classes"),
        (["--model", "test_vit", "--checkpoint", "nowhere.pth", "--data", "{wnids}"], "nowhere.pth: no such weight file"),
        (["--model", "test_vit", "test_convnext", "--checkpoint", "{weights}", "--data", "{wnids}"], "weights of one"),
        (["--model", "test_vit", "test_convnext", "--data", "{wnids}", "--out", "a.png"], "a .png shows the confusion matrix"),
        (["--model", "test_vit", "--img-size", "0", "--data", "{wnids}"], "--img-size: got 0, need one positive number"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_measured_give_one_line_and_exit_code_2(
    photos: Path, wnid_photos: Path, imagenet_weights: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:  # fmt: skip
    filled = [argument.format(photos=photos, wnids=wnid_photos, weights=imagenet_weights) for argument in arguments]
    assert main(["eval", *filled]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere"], "nowhere: no such checkpoint file or folder of a run"),
        (["--checkpoint", "{tmp}"], "holds neither best.ckpt nor last.ckpt; is it the folder of a run?"),
        (["--checkpoint", "{run}", "--data", "nowhere"], "nowhere: no such file or folder. Data can be: digits; a folder"),
        (["--checkpoint", "{run}", "--data", "digits"], "digits, test images has 10 classes (0, 1, 2, 3, 4, ...), but"),
        (["--checkpoint", "{run}", "--out", "result.txt"], "results are written as .csv, .json, .png"),
        (["--checkpoint", "{run}", "--batch-size", "0"], "batch_size is 0; it must be at least 1"),
        (["--checkpoint", "{run}", "--data", "{tmp}/cats", "--part", "val"], "cats has no val images, only train"),
        (["--checkpoint", "{run}", "--part", "test"], "has no test images, only train, val"),
        (["--checkpoint", "{tmp}/weights.pth"], "holds weights, but not the class names and preprocessing"),
        (["--checkpoint", "{tmp}/cut.ckpt"], "it is damaged, cut short, or another kind of file"),
        (["--checkpoint", "{tmp}/page.ckpt"], "it is damaged, cut short, or another kind of file"),
        (["--checkpoint", "{tmp}/other.ckpt"], "doesn't fit the model test_vit"),
        (["--checkpoint", "{run}", "--data", "{tmp}/cats"], "doesn't know cats; it knows 3 classes (one, two, zero)"),
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
