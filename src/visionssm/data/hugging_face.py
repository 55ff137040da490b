"""Data sets of Hugging Face's `datasets`, as `save_to_disk` wrote them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from visionssm.data.folder import PARTS
from visionssm.data.images import Parts, decode_image, hash_lines, listing

LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


@dataclass(frozen=True)
class HuggingFaceImages:
    """One split of a data set that is read from its Arrow files."""

    rows: Any  # datasets.Dataset with the image column undecoded
    image_column: str
    where: str
    labels: list[int]
    class_names: list[str]
    hash: str  # of `datasets`, which knows how the rows came about

    def load(self, index: int) -> Image.Image:
        """Decode image `index`; OSError with the reason when it can't be decoded."""
        image = self.rows[index][self.image_column]
        if image is None:
            raise OSError("the row has no image")
        return decode_image(image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes())

    def name(self, index: int) -> str:
        """The row."""
        return f"{self.where}[{index}]"

    def fingerprint(self) -> str:
        """Hash of `datasets`' own fingerprint and the labels."""
        return hash_lines([self.hash, *self.class_names, str(self.labels)])


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def saved_dataset_parts(folder: Path) -> Parts:
    """A `Dataset` (which is for training) or a `DatasetDict` (its splits train, validation and test).

    The image column is the one of type `Image`; the label column is called label, labels, fine_label, class or target, or
    is the only one of type `ClassLabel`.

    Raises:
        ImportError: `datasets` isn't installed.
        ValueError: the files are damaged, or there is no image or no label column.
    """
    import datasets

    try:
        content = datasets.load_from_disk(str(folder))
    except Exception as error:  # files of several formats are read, each with errors of its own
        raise ValueError(f"{folder} can't be read as a saved data set of `datasets`: {error}") from error
    splits = content if isinstance(content, datasets.DatasetDict) else {"train": content}
    parts: Parts = {}
    for name, rows in splits.items():
        part = PARTS.get(str(name))
        labelled = -1 not in rows.unique(label_column(rows, folder)) if part == "test" else True
        # ImageNet's test split, among others, is published with -1 for every label: nothing can be measured on it.
        if part is not None and labelled:
            parts[part] = _images(rows, folder, str(name))
    return parts


def label_column(rows: Any, folder: Path) -> str:
    """The column with the labels.

    Raises:
        ValueError: there is none, or it can't be told which it is.
    """
    named = [name for name in LABEL_COLUMNS if name in rows.features]
    typed = [name for name, feature in rows.features.items() if type(feature).__name__ == "ClassLabel"]
    if named:
        return named[0]
    if len(typed) == 1:
        return typed[0]
    raise ValueError(
        f"{folder} has the columns {', '.join(rows.features)}: none is called {' or '.join(LABEL_COLUMNS)}, and "
        f"{len(typed)} are of type ClassLabel; rename the column of the labels to 'label'"
    )


def _images(rows: Any, folder: Path, split: str) -> HuggingFaceImages:
    from datasets import Image as ImageFeature

    images = [name for name, feature in rows.features.items() if isinstance(feature, ImageFeature)]
    if not images:
        raise ValueError(
            f"{folder} has no column of type Image, only {', '.join(rows.features)}; "
            "make one with dataset.cast_column(NAME, datasets.Image())"
        )
    column = label_column(rows, folder)
    values = rows[column][:]
    feature = rows.features[column]
    missing = [row for row, value in enumerate(values) if value is None or value == -1]
    if missing:
        raise ValueError(f"{folder}, {split}: {len(missing)} rows have no label, the first is row {missing[0]}")
    if type(feature).__name__ == "ClassLabel":
        class_names, labels = list(feature.names), list(values)
    elif all(isinstance(value, int) and value >= 0 for value in values):
        class_names, labels = [str(number) for number in range(max(values) + 1)], list(values)
    else:
        class_names = sorted({str(value) for value in values})
        places = {name: label for label, name in enumerate(class_names)}
        labels = [places[str(value)] for value in values]
    if not labels:
        raise ValueError(f"{folder}, {listing([split], 'split')} has no rows")
    undecoded = rows.cast_column(images[0], ImageFeature(decode=False))
    return HuggingFaceImages(undecoded, images[0], f"{folder}/{split}", labels, class_names, rows._fingerprint)
