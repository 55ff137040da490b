import shutil
from pathlib import Path

import pytest

from visionssm.data import LabeledImages, find_images, load_image_folder, read_image
from visionssm.data.folder import scan_class_folders
from visionssm.data.images import with_classes


def test_a_single_folder_is_split_by_class_and_seed(class_folders: Path) -> None:
    splits = load_image_folder(class_folders, val_share=0.25, split_seed=1)
    assert splits.class_names == ["one", "two", "zero"]
    assert splits.test is None
    assert [splits.val.labels.count(label) for label in range(3)] == [2, 2, 2]
    train, val = _names(splits.train), _names(splits.val)
    assert len(train) + len(val) == 24
    assert not set(train) & set(val)
    assert all(
        Path(name).parent.name == splits.class_names[label] for name, label in zip(val, splits.val.labels, strict=True)
    )
    assert _names(load_image_folder(class_folders, 0.25, 1).val) == val
    assert _names(load_image_folder(class_folders, 0.25, 2).val) != val


def _names(images: LabeledImages) -> list[str]:
    return [images.name(index) for index in range(len(images.labels))]


def test_folders_named_train_val_and_test_are_taken_as_they_are(class_folders: Path, tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        shutil.copytree(class_folders, tmp_path / "data" / part)
    (tmp_path / "data/val/one/0.png").unlink()
    splits = load_image_folder(tmp_path / "data")
    assert [len(part.labels) for part in (splits.train, splits.val, splits.test)] == [24, 23, 24]
    assert splits.final is splits.test


def test_labels_follow_a_trained_models_classes(class_folders: Path) -> None:
    shutil.rmtree(class_folders / "one")
    images = with_classes(scan_class_folders(class_folders), ["zero", "one", "two"], "the checkpoint")
    assert {Path(name).parent.name: label for name, label in zip(_names(images), images.labels, strict=True)} == {
        "two": 2,
        "zero": 0,
    }
    assert images.load(0).tobytes() == read_image(class_folders / "two" / "0.png").tobytes()
    with pytest.raises(ValueError, match=r"of which the checkpoint doesn't know zero; it knows 2 classes \(one, two\)"):
        with_classes(scan_class_folders(class_folders), ["one", "two"], "the checkpoint")


def test_an_unlabelled_test_folder_is_left_out_and_an_unlabelled_val_folder_is_an_error(
    class_folders: Path, tmp_path: Path
) -> None:
    shutil.copytree(class_folders, tmp_path / "data" / "train")
    shutil.copytree(class_folders / "one", tmp_path / "data" / "test")
    assert load_image_folder(tmp_path / "data").test is None
    shutil.copytree(class_folders / "one", tmp_path / "data" / "val")
    with pytest.raises(ValueError, match="val has 8 images but no class folders"):
        load_image_folder(tmp_path / "data")


def test_the_fingerprint_sees_a_changed_file_and_a_renamed_class(class_folders: Path) -> None:
    before = load_image_folder(class_folders).fingerprint()
    assert load_image_folder(class_folders).fingerprint() == before
    (class_folders / "one" / "0.png").write_bytes(b"x")
    changed = load_image_folder(class_folders).fingerprint()
    (class_folders / "one").rename(class_folders / "uno")
    assert len({before, changed, load_image_folder(class_folders).fingerprint()}) == 3


def _missing(root: Path) -> None:
    shutil.rmtree(root)


def _empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def _loose_files(root: Path) -> None:
    for name in ("one", "two", "zero"):
        (root / name / "0.png").rename(root / f"{name}.png")
        shutil.rmtree(root / name)


def _one_class(root: Path) -> None:
    shutil.rmtree(root / "one")
    shutil.rmtree(root / "two")


def _class_without_images(root: Path) -> None:
    shutil.rmtree(root / "one")
    (root / "one").mkdir()
    (root / "one" / "notes.txt").write_text("nothing here")


def _one_image(root: Path) -> None:
    for path in sorted((root / "one").iterdir())[1:]:
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_missing, "no such folder"),
        (_empty, "is empty: it has no class folders; expected one folder per class"),
        (_loose_files, "has 3 images but no class folders"),
        (_one_class, r"has one class only \(zero\)"),
        (_class_without_images, r"has 1 class folder \(one\) without images; add images or remove the folder"),
        (_one_image, "class one .* has 1 image: too few to hold one back for validation"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(class_folders: Path, damage, message: str) -> None:
    damage(class_folders)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_image_folder(class_folders)


def test_a_validation_class_that_training_lacks_is_named(class_folders: Path, tmp_path: Path) -> None:
    shutil.copytree(class_folders, tmp_path / "data" / "train")
    shutil.copytree(class_folders, tmp_path / "data" / "val")
    (tmp_path / "data/val/one").rename(tmp_path / "data/val/three")
    with pytest.raises(ValueError, match="of which training doesn't know three"):
        load_image_folder(tmp_path / "data")


def test_images_are_found_by_file_folder_and_pattern_each_once(class_folders: Path) -> None:
    one = class_folders / "one"
    found = find_images([str(one / "3.png"), str(one), str(class_folders / "*" / "0.png")])
    assert found[0] == one / "3.png"
    assert len(found) == len(set(found)) == 8 + 2
    assert {path.parent.name for path in found[8:]} == {"two", "zero"}


@pytest.mark.parametrize("pattern", ["nothing.png", "nothing/*.png"])
def test_a_name_that_matches_nothing_is_an_error(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such image, folder, or pattern"):
        find_images([str(tmp_path / pattern)])


def test_files_that_are_no_images_give_the_reason(class_folders: Path, tmp_path: Path) -> None:
    whole = (class_folders / "one" / "0.png").read_bytes()
    for name, content, reason in (
        ("empty.png", b"", "the file is empty"),
        ("text.png", b"<html>not found</html>", "not an image"),
        ("cut.png", whole[: len(whole) // 2], "damaged image"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError, match=reason):
            read_image(tmp_path / name)
