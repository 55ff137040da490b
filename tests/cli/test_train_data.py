"""`visionssm train` on every form of data, with images in it that can't be read."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from visionssm.cli.main import main
from visionssm.data.images import read_image


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _files(photos: Path, damaged_images: int = 4) -> list[tuple[Path, bytes]]:
    """Every photo with its bytes; those of the first few of class two are damaged."""
    found = []
    for path in sorted(photos.rglob("*.png")):
        damaged = path.parent.name == "two" and int(path.stem) < damaged_images
        found.append((path, b"broken" if damaged else path.read_bytes()))
    return found


def _folder(photos: Path, root: Path) -> str:
    for path, content in _files(photos):
        target = root / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return str(root)


def _tar(photos: Path, root: Path) -> str:
    folder = _folder(photos, root)
    with tarfile.open(f"{folder}.tar", "w") as archive:
        archive.add(folder, ".")
    return f"{folder}.tar"


def _table(photos: Path, root: Path) -> str:
    _folder(photos, root)
    rows = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.rglob("*.png"))]
    (root / "table.csv").write_text("\n".join(["path,label", *rows]))
    return str(root / "table.csv")


def _shards(photos: Path, root: Path, damaged_images: int = 4) -> str:
    import webdataset

    root.mkdir()
    with webdataset.ShardWriter(f"{root}/%03d.tar", maxcount=30, verbose=0) as writer:
        for number, (path, content) in enumerate(_files(photos, damaged_images)):
            writer.write({"__key__": f"{number:04d}", "png": content, "cls": path.parent.name})
    return str(root)


def _hugging_face(photos: Path, root: Path) -> str:
    datasets: Any = pytest.importorskip("datasets")
    files = _files(photos)
    names = sorted({path.parent.name for path, _ in files})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    content = {
        "image": [{"bytes": content, "path": None} for _, content in files],
        "label": [names.index(path.parent.name) for path, _ in files],
    }
    datasets.Dataset.from_dict(content, features=features).save_to_disk(root)
    return str(root)


@pytest.mark.parametrize("form", [_folder, _tar, _table, _shards, _hugging_face], ids=lambda form: form.__name__[1:])
@pytest.mark.filterwarnings("default:::(datasets|pyarrow|multiprocess|dill)")
def test_every_form_is_trained_on_and_damaged_images_are_listed(
    photos: Path, train_command: list[str], tmp_path: Path, form: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    data = form(photos, tmp_path / "data")
    run = tmp_path / "run"
    assert main([*train_command, f"data={data}", "epochs=1", f"out={run}"]) == 0
    output = capsys.readouterr().out
    assert "3 classes, 96 training, 24 validation images (20 % of each class held back for validation)" in output
    lines = (run / "unreadable_images.txt").read_text().splitlines()
    assert len(lines) == 4
    assert all(line.endswith("\tnot an image in a format that Pillow reads") for line in lines)
    assert main(["eval", "--checkpoint", str(run), "--data", data, "--part", "val"]) == 0


def _cut_tar(photos: Path, root: Path) -> str:
    file = Path(_tar(photos, root))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return str(file)


def _empty_shard(photos: Path, root: Path) -> str:
    folder = _shards(photos, root)
    tarfile.open(root / "001.tar", "w").close()
    return folder


def _table_with_gaps(photos: Path, root: Path) -> str:
    file = Path(_table(photos, root))
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], lines[3].partition(",")[0], *lines[4:]]))
    return str(file)


def _loose_images(photos: Path, root: Path) -> str:
    return str(photos / "one")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (_cut_tar, "data.tar is cut short or damaged after"),
        (_empty_shard, "001.tar holds no images"),
        (_table_with_gaps, "table.csv has 1 lines that can't be used: line 4 has no label"),
        (_loose_images, "has 40 images but no class folders; expected one folder per class, such as"),
        (_loose_images, "Data can be: digits; a folder with one sub-folder per class"),
        (lambda photos, root: "nowhere", "nowhere: no such file or folder. Data can be: digits; a folder"),
    ],
)
def test_data_that_cannot_be_used_is_refused_with_exit_code_2(
    photos: Path,
    train_command: list[str],
    tmp_path: Path,
    form: Callable,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = form(photos, tmp_path / "data")
    assert main([*train_command, f"data={data}", f"out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "run").exists()


def test_too_many_damaged_images_stop_a_run_on_shards(
    photos: Path, train_command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _shards(photos, tmp_path / "data", damaged_images=20)
    assert main([*train_command, f"data={data}", f"out={tmp_path / 'run'}"]) == 2
    assert "more than 5 of the train images can't be read (max_unreadable)" in capsys.readouterr().err


def test_published_weights_predict_with_the_words_of_imagenet(photos: Path, tmp_path: Path, capsys: Any) -> None:
    import timm
    import torch

    torch.manual_seed(1)
    model = timm.create_model("test_convnext").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    image = next(photos.rglob("*.png"))
    command = ["predict", str(image), "--model", "timm/test_convnext", "--checkpoint", str(tmp_path / "weights.pth")]
    assert main([*command, "--top-k", "1"]) == 0
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        label = int(model(transform(read_image(image).convert("RGB"))[None]).argmax())
    words = timm.data.ImageNetInfo().index_to_description(label)
    assert f"{image}  {words} " in capsys.readouterr().out
