"""scikit-learn's handwritten digits: 1797 real images of 8 x 8 pixels in ten classes, part of the installed package.

The images come from the Optical Recognition of Handwritten Digits data of the UCI repository (its test part).
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from visionssm.data.images import Splits, hash_lines, stratified_split

TEST_SHARE = 0.2
VAL_SHARE = 0.1
SPLIT_SEED = 0


@dataclass(frozen=True)
class DigitImages:
    """Digits as grey 8-bit images; the transforms bring them to a model's size and channels like any other image."""

    pixels: np.ndarray  # (images, 8, 8), uint8
    labels: list[int]
    indices: list[int]  # position in scikit-learn's array
    class_names: list[str]

    def load(self, index: int) -> Image.Image:
        """Image `index`, 8 x 8, mode L."""
        return Image.fromarray(self.pixels[index])

    def name(self, index: int) -> str:
        """The position in scikit-learn's array."""
        return f"digits[{self.indices[index]}]"

    def fingerprint(self) -> str:
        """Hash of pixels and labels."""
        return hash_lines([self.pixels.tobytes().hex(), str(self.labels)])

    def subset(self, indices: list[int]) -> "DigitImages":
        """The images at `indices`."""
        labels = [self.labels[i] for i in indices]
        return DigitImages(self.pixels[indices], labels, [self.indices[i] for i in indices], self.class_names)


def load_digits() -> Splits:
    """The digits in three fixed, stratified parts: 1295 images to train, 143 to choose the best weights, 359 to test.

    The test images are used for nothing but the final score.

    Raises:
        ImportError: scikit-learn isn't installed.

    Example:
        >>> splits = load_digits()
        >>> len(splits.train.labels), len(splits.val.labels), len(splits.test.labels)
        (1295, 143, 359)
        >>> splits.train.load(0).size
        (8, 8)
    """
    remaining, test = split_off_test()
    train, val = stratified_split(remaining.labels, VAL_SHARE, SPLIT_SEED)
    return Splits("digits", remaining.subset(train), remaining.subset(val), test)


def split_off_test() -> tuple[DigitImages, DigitImages]:
    """The 1438 images to train with and to choose by, and the 359 to test.

    Raises:
        ImportError: scikit-learn isn't installed.

    Example:
        >>> [len(part.labels) for part in split_off_test()]
        [1438, 359]
    """
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    # Sixteen grey levels, spread over 8 bits.
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    everything = DigitImages(pixels, digits.target.tolist(), list(range(len(pixels))), [str(d) for d in range(10)])
    rest, test = stratified_split(everything.labels, TEST_SHARE, SPLIT_SEED)
    return everything.subset(rest), everything.subset(test)
