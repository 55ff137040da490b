"""Images with a class for every pixel, in the layout of ADE20K's scene parsing challenge."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
from torchvision import tv_tensors

from visionssm.data.folder import list_images, read_image
from visionssm.data.images import hash_lines
from visionssm.data.problems import Problem

IGNORE = 255  # the label of pixels that count neither in training nor in evaluation
FOLDERS = {"train": "training", "val": "validation"}
CLASS_FILES = ("objectInfo150.txt", "classes.txt")


class LabelMapTarget(TypedDict):
    """The class of every pixel."""

    label_map: tv_tensors.Mask  # (H, W), uint8: 0 for the first class, 255 for pixels to ignore


@dataclass(frozen=True)
class LabelMapImages:
    """Image files with a label map each. In the file 0 means unlabelled, and class k of the list is k + 1."""

    folder: Path
    images: list[Path]
    label_maps: list[Path]
    class_names: list[str]
    problems: list[Problem] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """The path of image `index`."""
        return str(self.images[index])

    def load(self, index: int) -> tuple[tv_tensors.Image, LabelMapTarget, list[Problem]]:
        """Decode image and labels `index`.

        Returns:
            The image (3, H, W), uint8; its labels; and what is wrong with them.

        Raises:
            OSError: image or label map can't be read, they differ in size, or the map isn't of one channel.
        """
        image = read_image(self.images[index]).convert("RGB")
        path = self.label_maps[index]
        labels = np.array(read_image(path))
        if labels.ndim != 2:
            raise OSError(
                f"label map {path} has {labels.shape[2]} channels; expected one, with the class of each pixel"
            )
        if labels.shape != (image.height, image.width):
            raise OSError(f"is {image.width}x{image.height}, but its label map is {labels.shape[1]}x{labels.shape[0]}")
        outside = labels > len(self.class_names)
        problems = []
        if outside.any():
            kind = f"label values above the {len(self.class_names)} classes: these pixels are ignored"
            problems.append(Problem(str(path), kind))
        shifted = np.where(outside | (labels == 0), IGNORE, labels.astype(np.int64) - 1).astype(np.uint8)
        pixels = np.array(image).transpose(2, 0, 1).copy()
        return tv_tensors.Image(pixels), LabelMapTarget(label_map=tv_tensors.Mask(shifted)), problems

    def subset(self, indices: list[int]) -> "LabelMapImages":
        """The images at `indices`."""
        return replace(self, images=[self.images[i] for i in indices], label_maps=[self.label_maps[i] for i in indices])

    def fingerprint(self) -> str:
        """Hash of paths, file sizes and class names; the pixels aren't read."""
        files = [path for pair in zip(self.images, self.label_maps, strict=True) for path in pair]
        return hash_lines(
            [*self.class_names, *(f"{path.relative_to(self.folder)} {path.stat().st_size}" for path in files)]
        )


def load_ade20k(root: str | Path) -> tuple[LabelMapImages, LabelMapImages]:
    """The training and validation images of a folder in ADE20K's layout.

    The layout is `images/training/*.jpg` with `annotations/training/*.png` of the same names, the same for
    `validation`, and the names of the classes in `objectInfo150.txt` (a table whose last column is the name) or in
    `classes.txt` (one per line). The folder that holds it may also lie in `root`, under the name `ADEChallengeData2016`
    or `ade20k`.

    Raises:
        FileNotFoundError: a folder or the list of classes isn't there.
        ValueError: no classes, more than 254, or no image that has a label map.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    for name in ("ADEChallengeData2016", "ade20k"):
        if (root / name / "annotations").is_dir():
            root = root / name
    class_names = read_class_names(root)
    train, val = (_pair_files(root, folder, class_names) for folder in FOLDERS.values())
    return train, val


def read_class_names(root: Path) -> list[str]:
    """The names of the classes, in the order of their numbers.

    Raises:
        FileNotFoundError: there is no list.
        ValueError: the list is empty, or has more classes than a label map of 8 bits can hold.
    """
    file = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{root} names no classes; put one name per line into {root / CLASS_FILES[1]}")
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if file.name == CLASS_FILES[0]:
        lines = [line.split("\t")[-1] for line in lines[1:]]
    if not 1 <= len(lines) < IGNORE:
        raise ValueError(f"{file} names {len(lines)} classes; there must be 1 to {IGNORE - 1}")
    return [line.strip() for line in lines]


def _pair_files(root: Path, part: str, class_names: list[str]) -> LabelMapImages:
    folders = root / "images" / part, root / "annotations" / part
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; ADE20K's layout has images/ and annotations/, each with "
                                    f"{' and '.join(FOLDERS.values())}")  # fmt: skip
    label_maps = {path.stem: path for path in list_images(folders[1])}
    images = list_images(folders[0])
    paired = [path for path in images if path.stem in label_maps]
    unlabelled = [path for path in images if path.stem not in label_maps]
    lonely = sorted(set(label_maps) - {path.stem for path in images})
    problems = [Problem(str(path), "image has no label map: left out") for path in unlabelled]
    problems += [Problem(str(label_maps[stem]), "label map has no image: left out") for stem in lonely]
    if not paired:
        raise ValueError(f"{folders[0]} has {len(images)} images, but not one has a label map in {folders[1]}")
    return LabelMapImages(root, paired, [label_maps[path.stem] for path in paired], class_names, problems)
