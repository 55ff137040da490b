"""A set of labelled images that is read one image at a time, its parts, and how an image is decoded."""

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image


class LabeledImages(Protocol):
    """What the loaders need of a data set: images by index, their labels, and the names of the classes."""

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of their labels."""
        ...

    @property
    def labels(self) -> list[int]:
        """The class of every image."""
        ...

    def load(self, index: int) -> Image.Image:
        """Decode image `index`; OSError with the reason when it can't be decoded."""
        ...

    def name(self, index: int) -> str:
        """What image `index` is called in lists and messages: its path, if it has one."""
        ...

    def fingerprint(self) -> str:
        """A hash that changes when the images, their order or their labels change."""
        ...


@dataclass(frozen=True)
class Splits:
    """The parts of a data set. `test` is None where the data has no images that training never looks at."""

    name: str
    train: LabeledImages
    val: LabeledImages
    test: LabeledImages | None
    held_back: float | None = None  # the share of each class that was split off for `val`; None: the data has its own

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of their labels."""
        return self.train.class_names

    @property
    def final(self) -> LabeledImages:
        """The part that a finished model is judged on: `test` where there is one, else `val`."""
        return self.test if self.test is not None else self.val

    @property
    def parts(self) -> "Parts":
        """The parts that there are, by name."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: images for name, images in parts.items() if images is not None}

    def counts(self) -> str:
        """How many classes and images there are, in words."""
        names = {"train": "training", "val": "validation", "test": "test"}
        images = ", ".join(f"{len(part.labels)} {names[name]}" for name, part in self.parts.items())
        split = f" ({100 * self.held_back:g} % of each class held back for validation)" if self.held_back else ""
        return f"{len(self.class_names)} classes, {images} images{split}"

    def fingerprint(self) -> str:
        """A hash over all parts."""
        return hash_lines([self.name, *(images.fingerprint() for images in self.parts.values())])


Parts = dict[str, LabeledImages]  # "train", "val", "test": those that a data set has


@dataclass(frozen=True)
class Subset:
    """Some images of a data set, with their labels as places in `class_names`."""

    images: LabeledImages
    indices: list[int]
    labels: list[int]
    class_names: list[str]

    def load(self, index: int) -> Image.Image:
        """Decode image `index` of the subset."""
        return self.images.load(self.indices[index])

    def name(self, index: int) -> str:
        """What the image is called in the whole set."""
        return self.images.name(self.indices[index])

    def fingerprint(self) -> str:
        """Hash of the whole set, the choice and the labels."""
        return hash_lines([self.images.fingerprint(), str(self.indices), str(self.labels), *self.class_names])


def subset(images: LabeledImages, indices: Sequence[int]) -> Subset:
    """The images at `indices`, in this order."""
    return Subset(images, list(indices), [images.labels[i] for i in indices], images.class_names)


def with_classes(images: LabeledImages, class_names: list[str], what: str) -> LabeledImages:
    """The same images with labels that follow other class names, such as those of a trained model.

    Args:
        images: a data set; its classes may be some of `class_names`, in any order.
        class_names: the classes that labels are to follow.
        what: whose classes these are, for the message: "the checkpoint", "the training images".

    Raises:
        ValueError: the data set has images of a class that isn't among `class_names`.
    """
    if images.class_names == class_names:
        return images
    used = {images.class_names[label] for label in set(images.labels)}
    unknown = sorted(used - set(class_names))
    if unknown:
        raise ValueError(
            f"the images have {listing(sorted(used), 'class')}, of which {what} doesn't know {listing(unknown)}; "
            f"it knows {listing(class_names, 'class')}"
        )
    places = {name: label for label, name in enumerate(class_names)}
    labels = [places[images.class_names[label]] for label in images.labels]
    return Subset(images, list(range(len(labels))), labels, class_names)


def split_for_validation(images: LabeledImages, share: float, seed: int, what: str) -> tuple[Subset, Subset]:
    """Hold back a share of every class, see `stratified_split`.

    Raises:
        ValueError: a class has one image only; the message calls the images `what`.
    """
    for label, count in sorted(Counter(images.labels).items()):
        if count < 2:
            raise ValueError(
                f"class {images.class_names[label]} of {what} has 1 image: too few to hold one back for validation; "
                "add images, or provide validation images"
            )
    train, val = stratified_split(images.labels, share, seed)
    return subset(images, train), subset(images, val)


def splits_of_parts(
    parts: Mapping[str, LabeledImages], name: str, what: str, val_share: float, split_seed: int
) -> Splits:
    """What a run needs, from the parts that a data set has: a share of every class is held back if there is no val.

    Args:
        parts: train, and perhaps val and test.
        name: short, for the names of runs.
        what: the data in messages, such as its path.
        val_share: share of each class.
        split_seed: chooses the images that are held back.

    Raises:
        ValueError: there are no training images, fewer than two classes, or classes that training lacks.
    """
    if "train" not in parts:
        raise ValueError(f"{what} has no training images, only {', '.join(parts) or 'nothing'}")
    train = parts["train"]
    if len(train.class_names) < 2:
        raise ValueError(f"{what} has one class only ({train.class_names[0]}); a classifier needs at least two")
    trained = set(train.labels)
    others: Parts = {}
    for part in [part for part in parts if part != "train"]:
        others[part] = with_classes(parts[part], train.class_names, "training")
        lacking = sorted(set(others[part].labels) - trained)
        if lacking:
            names = listing([train.class_names[label] for label in lacking], "class")
            raise ValueError(f"the {part} images of {what} have {names} of which there are no training images")
    if "val" in others:
        return Splits(name, train, others["val"], others.get("test"))
    train, val = split_for_validation(train, val_share, split_seed, what)
    return Splits(name, train, val, others.get("test"), held_back=val_share)


def stratified_split(labels: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split indices in two, with the same mix of classes in both parts, always in the same way for one seed.

    Args:
        labels: the class of every image.
        share: part of every class that goes to the second list, between 0 and 1. A class with two or more images has
            at least one image in each list.
        seed: chooses the images.

    Returns:
        Two sorted lists of indices that together hold every index once.

    Raises:
        ValueError: `share` isn't between 0 and 1, or a class has one image only.

    Example:
        >>> stratified_split([0, 0, 0, 0, 1, 1], share=0.5, seed=0)
        ([1, 3, 4], [0, 2, 5])
    """
    if not 0 < share < 1:
        raise ValueError(f"val_share is {share}; it must lie between 0 and 1, such as 0.2")
    generator = np.random.default_rng(seed)
    every_label = np.asarray(labels)
    first: list[int] = []
    second: list[int] = []
    for label, count in sorted(Counter(labels).items()):
        if count < 2:
            raise ValueError(f"class {label} has 1 image: too few to split into two parts; add images or remove it")
        members = generator.permutation(np.flatnonzero(every_label == label))
        taken = min(max(round(count * share), 1), count - 1)
        second += members[:taken].tolist()
        first += members[taken:].tolist()
    return sorted(first), sorted(second)


def decode_image(data: bytes) -> Image.Image:
    """Decode the bytes of an image file.

    Raises:
        OSError: the bytes aren't an image, or are cut short or damaged; the message is the reason.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image.copy()
    except Image.UnidentifiedImageError as error:
        raise OSError("not an image in a format that Pillow reads" if data else "the file is empty") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise OSError(f"damaged image: {error}") from error


def read_image(path: str | Path) -> Image.Image:
    """Read and fully decode an image file.

    Raises:
        OSError: the file is missing, isn't an image, or is cut short or damaged; the message is the reason.
    """
    return decode_image(Path(path).read_bytes())


def listing(names: Sequence[str], noun: str = "") -> str:
    """Names for a message, the first five of many, with their number if there is a noun to count.

    Example:
        >>> listing(["cat", "dog"], "class")
        '2 classes (cat, dog)'
    """
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    if not noun:
        return shown
    plural = noun + ("es" if noun.endswith("s") else "s") if len(names) > 1 else noun
    return f"{len(names)} {plural} ({shown})"


def hash_lines(lines: Sequence[str]) -> str:
    """SHA-256 of lines of text, as 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a text file under a temporary name and rename it, so that it is never seen half-written."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    temporary.replace(path)
