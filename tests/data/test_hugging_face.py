from pathlib import Path
from typing import Any

import pytest
import torch

from visionssm.data import make_loader, read_image
from visionssm.data.source import load_data

datasets: Any = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("default:::(datasets|pyarrow|multiprocess|dill)")


@pytest.fixture
def rows(class_folders: Path) -> Any:
    """A `Dataset` of the 24 images, with names of classes."""
    files = sorted(class_folders.rglob("*.png"))
    names = ["zero", "one", "two"]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    content = {"image": [{"bytes": file.read_bytes(), "path": None} for file in files]}
    content["label"] = [names.index(file.parent.name) for file in files]
    return datasets.Dataset.from_dict(content, features=features)


def test_a_saved_data_set_is_read_and_split(rows: Any, class_folders: Path, tmp_path: Path) -> None:
    rows.save_to_disk(tmp_path / "saved")
    splits = load_data(tmp_path / "saved", 0.25, 1)
    assert splits.class_names == ["zero", "one", "two"]
    assert (len(splits.train.labels), len(splits.val.labels)) == (18, 6)
    pixels = {read_image(file).tobytes(): file.parent.name for file in class_folders.rglob("*.png")}
    for part in (splits.train, splits.val):
        for i, label in enumerate(part.labels):
            assert pixels[part.load(i).tobytes()] == splits.class_names[label]
    assert load_data(tmp_path / "saved").fingerprint() == load_data(tmp_path / "saved").fingerprint()
    shuffled = rows.shuffle(seed=1)
    shuffled.save_to_disk(tmp_path / "other")
    assert load_data(tmp_path / "saved").train.fingerprint() != load_data(tmp_path / "other").train.fingerprint()


def test_the_splits_of_a_dataset_dict_are_taken_and_unlabelled_tests_left_out(rows: Any, tmp_path: Path) -> None:
    unlabelled = rows.map(lambda row: {"label": -1})
    datasets.DatasetDict(train=rows, validation=rows.select(range(5)), test=unlabelled).save_to_disk(tmp_path / "saved")
    splits = load_data(tmp_path / "saved")
    assert (len(splits.train.labels), len(splits.val.labels), splits.test) == (24, 5, None)
    loader = make_loader(splits.val, lambda image: torch.zeros(1), 2, workers=1)
    assert [int(label) for batch in loader for label in batch["labels"]] == splits.val.labels


def test_labels_may_be_text_or_numbers(rows: Any, tmp_path: Path) -> None:
    names = rows.features["label"].names
    text = [names[label] for label in rows["label"]]
    rows.remove_columns("label").add_column("class", text).save_to_disk(tmp_path / "text")
    assert load_data(tmp_path / "text").class_names == ["one", "two", "zero"]
    rows.cast_column("label", datasets.Value("int64")).save_to_disk(tmp_path / "numbers")
    assert load_data(tmp_path / "numbers").class_names == ["0", "1", "2"]


def test_damaged_images_are_listed(rows: Any, tmp_path: Path) -> None:
    undecoded = rows.cast_column("image", datasets.Image(decode=False))
    broken = undecoded.map(
        lambda row, i: {"image": {"bytes": b"broken", "path": None}} if i == 3 else row, with_indices=True
    )
    empty = broken.map(lambda row, i: {"image": None} if i == 4 else row, with_indices=True)
    empty.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    splits = load_data(tmp_path / "saved")
    found = {}
    for part in (splits.train, splits.val):
        for batch in make_loader(part, lambda image: torch.zeros(1), 4):
            found |= dict(batch["unreadable"])
    where = f"{tmp_path / 'saved'}/train"
    assert found == {f"{where}[3]": "not an image in a format that Pillow reads", f"{where}[4]": "the row has no image"}


def test_what_cannot_be_used_says_why(rows: Any, tmp_path: Path) -> None:
    rows.remove_columns("image").save_to_disk(tmp_path / "no_images")
    with pytest.raises(ValueError, match="has no column of type Image, only label"):
        load_data(tmp_path / "no_images")
    rows.rename_column("label", "kind").add_column("other", list(range(24))).cast_column(
        "kind", datasets.Value("int64")
    ).save_to_disk(tmp_path / "no_labels")
    with pytest.raises(
        ValueError, match=r"has the columns image, kind, other: none is called label .* rename the column"
    ):
        load_data(tmp_path / "no_labels")
    rows.map(lambda row, i: {"label": -1 if i == 7 else row["label"]}, with_indices=True).save_to_disk(tmp_path / "gap")
    with pytest.raises(ValueError, match="1 rows have no label, the first is row 7"):
        load_data(tmp_path / "gap")
    rows.save_to_disk(tmp_path / "cut")
    (arrow,) = (tmp_path / "cut").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(ValueError, match="can't be read as a saved data set"):
        load_data(tmp_path / "cut")
