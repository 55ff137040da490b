import numpy as np
from sklearn.datasets import load_digits as sklearn_digits

from visionssm.data import load_digits


def test_the_parts_hold_every_image_once_with_its_label_and_pixels() -> None:
    splits = load_digits()
    original = sklearn_digits()
    parts = (splits.train, splits.val, splits.test)
    indices = [index for part in parts for index in part.indices]
    assert sorted(indices) == list(range(1797))
    for part in parts:
        assert part.labels == original.target[part.indices].tolist()
        pixels = np.stack([np.asarray(part.load(i)) for i in range(len(part.labels))])
        np.testing.assert_allclose(pixels / 255 * 16, original.images[part.indices], atol=0.04)


def test_every_part_has_the_same_mix_of_classes() -> None:
    splits = load_digits()
    shares = np.bincount(sklearn_digits().target) / 1797
    for part in (splits.train, splits.val, splits.test):
        np.testing.assert_allclose(np.bincount(part.labels) / len(part.labels), shares, atol=0.01)


def test_the_split_is_the_same_on_every_machine() -> None:
    # A checkpoint names its data by this hash: when the split changes, old runs can't be continued or compared.
    assert load_digits().fingerprint() == "1580b2240907d3d8"
