"""ImageNet's own three files, made small: class tars in a tar, a flat tar of validation images, and the devkit."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from visionssm.data import load_digits
from visionssm.data.source import load_data

WNIDS = ["n03", "n01", "n02"]  # by their number in the devkit, which isn't the alphabetical order


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _jpeg(index: int) -> bytes:
    file = io.BytesIO()
    load_digits().train.load(index).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    folder = tmp_path / "imagenet"
    folder.mkdir()
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as archive:
        for start, wnid in enumerate(WNIDS):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as classes:
                for number in range(4):
                    _add(classes, f"{wnid}_{number}.JPEG", _jpeg(10 * start + number))
            _add(archive, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
        for number in (3, 1, 2):
            _add(archive, f"ILSVRC2012_val_{number:08d}.JPEG", _jpeg(100 + number))
    synsets = np.array(
        [(number + 1, wnid) for number, wnid in enumerate(WNIDS)], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")]
    )
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        _add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        _add(archive, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", b"2\n1\n3\n")
    return folder


def test_images_and_labels_come_from_the_three_files(imagenet: Path) -> None:
    splits = load_data(imagenet)
    assert splits.class_names == ["n01", "n02", "n03"]
    assert splits.test is None
    for start, wnid in enumerate(WNIDS):
        rows = [i for i, label in enumerate(splits.train.labels) if splits.class_names[label] == wnid]
        assert [Path(splits.train.name(i)).name for i in rows] == [f"{wnid}_{number}.JPEG" for number in range(4)]
        from PIL import Image

        expected = Image.open(io.BytesIO(_jpeg(10 * start + 2))).tobytes()
        assert splits.train.load(rows[2]).tobytes() == expected
    truth = {Path(splits.val.name(i)).stem[-1]: splits.class_names[label] for i, label in enumerate(splits.val.labels)}
    assert truth == {"1": "n01", "2": "n03", "3": "n02"}


def test_missing_and_damaged_files_are_named(imagenet: Path) -> None:
    devkit = imagenet / "ILSVRC2012_devkit_t12.tar.gz"
    whole = devkit.read_bytes()
    devkit.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"devkit_t12.tar.gz can't be read as ImageNet's devkit"):
        load_data(imagenet)
    devkit.unlink()
    with pytest.raises(FileNotFoundError, match=r"devkit_t12.tar.gz: no such file; ImageNet needs"):
        load_data(imagenet)
    devkit.write_bytes(whole)
    with tarfile.open(imagenet / "ILSVRC2012_img_val.tar", "w") as archive:
        _add(archive, "ILSVRC2012_val_00000009.JPEG", _jpeg(0))
    with pytest.raises(ValueError, match="has labels of 3 images, which don't fit the 1 of"):
        load_data(imagenet)
