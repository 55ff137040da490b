"""ImageNet-1K in the files that it is distributed in, read without unpacking them."""

import re
import tarfile
from pathlib import Path

import numpy as np

from visionssm.data.images import Parts
from visionssm.data.tar import TarImages
from visionssm.data.tar_index import index_tar

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"


def is_imagenet(folder: Path) -> bool:
    """Whether ImageNet's own tar files are in the folder."""
    return (folder / TRAIN).is_file()


def imagenet_parts(folder: Path) -> Parts:
    """Training images from the tar of class tars, validation images from their tar, whose labels the devkit has.

    Classes are the WordNet ids, in alphabetical order, as in every published ImageNet-1K model.

    Raises:
        FileNotFoundError: one of the three files is missing.
        ValueError: a file is damaged, or the devkit doesn't fit the images.
    """
    for name in (TRAIN, VAL, DEVKIT):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file; ImageNet needs {TRAIN}, {VAL} and {DEVKIT}")
    train = index_tar(folder / TRAIN)
    wnids = [name.partition("/")[0] for name in train.names]
    class_names = sorted(set(wnids))
    places = {wnid: label for label, wnid in enumerate(class_names)}
    val = index_tar(folder / VAL)
    truth = _validation_wnids(folder / DEVKIT)
    numbers = [_image_number(name) for name in val.names]
    if not numbers or max(numbers) > len(truth) or not set(truth) <= set(places):
        raise ValueError(
            f"{folder / DEVKIT} has labels of {len(truth)} images, which don't fit the {len(numbers)} of {VAL} "
            f"and the {len(class_names)} classes of {TRAIN}"
        )
    return {
        "train": TarImages([train], [places[wnid] for wnid in wnids], class_names),
        "val": TarImages([val], [places[truth[number - 1]] for number in numbers], class_names),
    }


def _image_number(name: str) -> int:
    """1 for ILSVRC2012_val_00000001.JPEG."""
    digits = re.findall(r"\d+", Path(name).stem)
    return int(digits[-1]) if digits else 0


def _validation_wnids(devkit: Path) -> list[str]:
    """The WordNet id of every validation image, in the order of their numbers."""
    from scipy.io import loadmat

    try:
        with tarfile.open(devkit) as archive:
            members = {Path(member.name).name: member for member in archive if member.isfile()}
            truth = archive.extractfile(members["ILSVRC2012_validation_ground_truth.txt"])
            meta = archive.extractfile(members["meta.mat"])
            assert truth is not None and meta is not None
            ids = [int(line) for line in truth.read().split()]
            synsets = np.atleast_1d(loadmat(meta, squeeze_me=True)["synsets"])
    except (KeyError, tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{devkit} can't be read as ImageNet's devkit: {error}") from error
    wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    return [wnids[number] for number in ids]
