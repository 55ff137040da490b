import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from visionssm.data import LabeledImages, Preprocessing, Splits, eval_transform, load_image_folder, make_loader
from visionssm.data.source import load_data
from visionssm.data.tar_index import index_tar

GREY = Preprocessing((1, 8, 8), "bicubic", (0.0,), (1.0,), crop_pct=1.0, crop_mode="center")


def make_tar(file: Path, folder: Path, inside: str = ".", mode: str = "w") -> Path:
    with tarfile.open(file, mode) as archive:
        archive.add(folder, inside)
    return file


def content(images: LabeledImages) -> dict[tuple[str, str], tuple[str, bytes]]:
    """Folder and file name of every image, with the name of its class and its pixels."""
    return {
        Path(images.name(i)).parts[-2:]: (images.class_names[label], images.load(i).tobytes())
        for i, label in enumerate(images.labels)
    }


def same(first: Splits, second: Splits) -> bool:
    parts = ((first.train, second.train), (first.val, second.val), (first.test, second.test))
    return first.class_names == second.class_names and all(
        a is b is None or (a is not None and b is not None and content(a) == content(b)) for a, b in parts
    )


@pytest.mark.parametrize("inside", [".", "photos", "a/b"])
def test_class_folders_in_a_tar_are_what_they_are_on_disk(class_folders: Path, tmp_path: Path, inside: str) -> None:
    (class_folders / "one" / "notes.txt").write_text("not an image")
    file = make_tar(tmp_path / "photos.tar", class_folders, inside)
    assert same(load_data(file, 0.25, 1), load_image_folder(class_folders, 0.25, 1))


def test_parts_in_a_tar_are_what_they_are_on_disk(class_folders: Path, tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        shutil.copytree(class_folders, tmp_path / "data" / part)
        (tmp_path / "data" / part / "one" / f"{len(part)}.png").unlink()
    file = make_tar(tmp_path / "data.tar", tmp_path / "data", "data")
    splits = load_data(file)
    assert same(splits, load_image_folder(tmp_path / "data"))
    assert [len(part.labels) for part in (splits.train, splits.val, splits.test)] == [23, 23, 23]


def test_images_outside_of_the_class_folders_are_counted(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = class_folders / "one" / "0.png"
    for part in ("train", "test"):
        shutil.copytree(class_folders, tmp_path / "data" / part)
    (tmp_path / "data" / "notes").mkdir()
    for place in ("train/loose.png", "notes/figure.png"):
        shutil.copy(image, tmp_path / "data" / place)
    splits = load_data(make_tar(tmp_path / "data.tar", tmp_path / "data"))
    assert len(splits.train.labels) + len(splits.val.labels) == 24
    assert "left out: 2 images of" in capsys.readouterr().err


def test_a_tar_for_each_class_is_what_the_folders_are(class_folders: Path, tmp_path: Path) -> None:
    expected = load_image_folder(class_folders, 0.25, 1)
    for root in (tmp_path / "tars", tmp_path / "parts" / "train", tmp_path / "parts" / "val"):
        root.mkdir(parents=True)
        for folder in class_folders.iterdir():
            make_tar(root / f"{folder.name}.tar", folder, folder.name)
    assert same(load_data(tmp_path / "tars", 0.25, 1), expected)
    parts = load_data(tmp_path / "parts")
    assert content(parts.train) == content(parts.val)
    assert len(parts.train.labels) == 24
    nested = make_tar(tmp_path / "nested.tar", tmp_path / "tars")
    shutil.rmtree(tmp_path / "tars")
    found = load_data(nested, 0.25, 1)
    assert found.class_names == expected.class_names
    assert sorted(content(found.val).values()) == sorted(content(expected.val).values())


def test_loading_processes_read_the_same_pixels(class_folders: Path, tmp_path: Path) -> None:
    images = load_data(make_tar(tmp_path / "photos.tar", class_folders)).train
    images.load(0)  # the file is open when the processes are forked
    loaders = [make_loader(images, eval_transform(GREY), batch_size=5, workers=workers) for workers in (0, 2)]
    for first, second in zip(*loaders, strict=True):
        np.testing.assert_array_equal(first["images"], second["images"])


def test_images_can_be_sent_to_another_process(class_folders: Path, tmp_path: Path) -> None:
    images = load_data(make_tar(tmp_path / "photos.tar", class_folders)).val
    expected = content(images)  # the file is open
    assert content(pickle.loads(pickle.dumps(images))) == expected


def test_the_list_of_a_tar_is_kept_until_the_tar_changes(class_folders: Path, tmp_path: Path, own_cache: Path) -> None:
    file = make_tar(tmp_path / "photos.tar", class_folders)
    before = load_data(file)
    (kept,) = own_cache.rglob("*.npz")
    os.utime(kept, (1, 1))
    assert same(load_data(file), before)
    assert load_data(file).fingerprint() == before.fingerprint()
    assert kept.stat().st_mtime == 1
    (class_folders / "one" / "0.png").unlink()
    make_tar(file, class_folders)
    assert len(index_tar(file).names) == 23
    assert load_data(file).fingerprint() != before.fingerprint()


def test_a_cache_that_cannot_be_written_is_said_and_does_no_harm(
    class_folders: Path, tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_cache.write_text("a file where the folder should be")
    file = make_tar(tmp_path / "photos.tar", class_folders)
    assert len(load_data(file).train.labels) == 24 - 6
    assert f"the list of {file} isn't kept" in capsys.readouterr().err


def test_damaged_images_in_a_tar_are_listed_by_name(class_folders: Path, tmp_path: Path) -> None:
    (class_folders / "one" / "3.png").write_bytes(b"broken")
    (class_folders / "two" / "3.png").write_bytes(b"")
    images = load_data(make_tar(tmp_path / "photos.tar", class_folders)).train
    unreadable = [item for batch in make_loader(images, eval_transform(GREY), 5) for item in batch["unreadable"]]
    named = {item.name: item.reason for item in unreadable}
    everything = {f"{tmp_path}/photos.tar/one/3.png", f"{tmp_path}/photos.tar/two/3.png"}
    held_back = {name for name in everything if name not in named}
    assert set(named) | held_back == everything
    val = load_data(tmp_path / "photos.tar").val
    assert held_back <= {val.name(i) for i in range(len(val.labels))}


def test_tars_that_cannot_be_used_say_why(class_folders: Path, tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "whole.tar", class_folders).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.tar").write_bytes(b"<!DOCTYPE html>" + b" " * 2000)
    (tmp_path / "nothing.tar").write_bytes(b"")
    tarfile.open(tmp_path / "empty.tar", "w").close()
    make_tar(tmp_path / "zipped.tar.gz", class_folders, mode="w:gz")
    make_tar(tmp_path / "zipped.tgz", class_folders, mode="w:gz")
    make_tar(tmp_path / "loose.tar", class_folders / "one")
    make_tar(tmp_path / "single.tar", class_folders / "one", "one")
    for name, message in (
        ("cut.tar", r"cut.tar is cut short or damaged after \d+ images"),
        ("page.tar", "page.tar isn't a tar file"),
        ("nothing.tar", "nothing.tar is empty"),
        ("empty.tar", "empty.tar has 0 images; expected one folder per class"),
        ("zipped.tar.gz", "is compressed, and can't be read in any order"),
        ("zipped.tgz", "is compressed, and can't be read in any order"),
        ("loose.tar", "has 8 images, some of them in no folder"),
        ("single.tar", r"has one class only \(one\)"),
    ):
        with pytest.raises(ValueError, match=message):
            load_data(tmp_path / name)


def test_every_damaged_tar_of_a_folder_is_named(class_folders: Path, tmp_path: Path) -> None:
    root = tmp_path / "tars"
    root.mkdir()
    for folder in class_folders.iterdir():
        make_tar(root / f"{folder.name}.tar", folder)
    (root / "one.tar").write_bytes((root / "one.tar").read_bytes()[:5000])
    tarfile.open(root / "two.tar", "w").close()
    with pytest.raises(ValueError, match=r"one.tar is cut short .*; .*two.tar holds no images"):
        load_data(root)


def test_a_member_that_the_disk_no_longer_has_is_an_unreadable_image(class_folders: Path, tmp_path: Path) -> None:
    file = make_tar(tmp_path / "photos.tar", class_folders)
    images = load_data(file).val
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(OSError, match="the tar file is cut short"):
        images.load(len(images.labels) - 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves the file open
def test_a_tar_is_read_as_timm_reads_it(class_folders: Path, tmp_path: Path) -> None:
    from timm.data.readers.reader_image_in_tar import ReaderImageInTar

    file = make_tar(tmp_path / "photos.tar", class_folders)
    reader = ReaderImageInTar(str(file))
    theirs = {reader.filename(i, basename=False): (label, stream.read()) for i, (stream, label) in enumerate(reader)}
    splits = load_data(file)
    ours = {
        part.name(i).removeprefix(f"{file}/"): (label, part.load(i))
        for part in (splits.train, splits.val)
        for i, label in enumerate(part.labels)
    }
    assert len(theirs) == len(ours) == 24
    from PIL import Image

    for name, (label, data) in theirs.items():
        assert ours[name.removeprefix("./")][0] == label
        assert ours[name.removeprefix("./")][1].tobytes() == Image.open(io.BytesIO(data)).tobytes()
