"""A set of labelled images that is read one image at a time, and its splits."""

import hashlib
from collections import Counter
from collections.abc import Sequence
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

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of their labels."""
        return self.train.class_names

    @property
    def final(self) -> LabeledImages:
        """The part that a finished model is judged on: `test` where there is one, else `val`."""
        return self.test if self.test is not None else self.val

    def fingerprint(self) -> str:
        """A hash over all parts."""
        parts = [part.fingerprint() for part in (self.train, self.val, self.test) if part is not None]
        return hash_lines([self.name, *parts])


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
    first: list[int] = []
    second: list[int] = []
    for label, count in sorted(Counter(labels).items()):
        if count < 2:
            raise ValueError(f"class {label} has 1 image: too few to split into two parts; add images or remove it")
        members = generator.permutation(np.flatnonzero(np.asarray(labels) == label))
        taken = min(max(round(count * share), 1), count - 1)
        second += members[:taken].tolist()
        first += members[taken:].tolist()
    return sorted(first), sorted(second)


def hash_lines(lines: Sequence[str]) -> str:
    """SHA-256 of lines of text, as 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a text file under a temporary name and rename it, so that it is never seen half-written."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    temporary.replace(path)
