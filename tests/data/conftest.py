"""Folders of real images: scikit-learn's digits, written as files."""

from pathlib import Path

import pytest

from visionssm.data import load_digits


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the lists of tar files are kept during a test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """`photos/{one,two,zero}/`, with eight PNG files each."""
    digits = load_digits().train
    root = tmp_path / "photos"
    for label, name in enumerate(("zero", "one", "two")):
        (root / name).mkdir(parents=True)
        for number, index in enumerate([i for i, digit in enumerate(digits.labels) if digit == label][:8]):
            digits.load(index).save(root / name / f"{number}.png")
    return root
