"""Scenes composed from scikit-learn's digits, written in the layouts of COCO and ADE20K: dense tasks without a download.

Digits of several sizes and colours lie over one another on an uneven background. Because every pixel is drawn here, the
masks are exact. Training and validation scenes are made from different handwritten digits.
"""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionssm.data.digits import split_off_test
from visionssm.data.images import LabeledImages

BACKGROUND = "background"
FACTS = "scenes.json"  # what a folder of scenes was made with
SMALLEST, LARGEST = 0.35, 0.7  # height of a digit, as a share of the scene's
MOST_DIGITS = 3
VISIBLE = 0.75  # smallest share of a digit that others leave uncovered
MOST_VALIDATION = 1000  # scenes, which are enough to know a score to within a hundredth
CONTRAST = 70  # a digit is brighter than the background by this much at least, of 255


@dataclass(frozen=True)
class Scene:
    """An image and what is in it. Masks hold the visible pixels only."""

    image: np.ndarray  # (H, W, 3), uint8
    digits: list[int]
    masks: np.ndarray  # (objects, H, W), bool


def compose_scene(digits: LabeledImages, size: int, rng: np.random.Generator) -> Scene:
    """Draw one scene.

    Args:
        digits: images of digits, labels 0 to 9.
        size: height and width of the scene in pixels, at least 32.
        rng: draws everything.

    Example:
        >>> scene = compose_scene(split_off_test()[0], 64, np.random.default_rng(0))
        >>> scene.image.shape, scene.masks.shape[1:], len(scene.digits) == len(scene.masks)
        ((64, 64, 3), (64, 64), True)
    """
    canvas = _background(size, rng)
    brightness = canvas.mean()
    masks = np.zeros((0, size, size), dtype=bool)
    drawn: list[int] = []
    areas: list[int] = []
    wanted = int(rng.integers(1, MOST_DIGITS + 1))
    for _ in range(4 * wanted):
        if len(drawn) == wanted:
            break
        index = int(rng.integers(len(digits.labels)))
        coverage = _placed_digit(digits.load(index), size, rng)
        mask = coverage > 0.5
        color = _color(brightness, rng)
        covered = masks & ~mask
        # A digit that hides too much of another one, and one that would touch too few pixels, are drawn again.
        if mask.sum() < 24 or any(covered.sum((1, 2)) < [VISIBLE * area for area in areas]):
            continue
        canvas = canvas * (1 - coverage[..., None]) + color * coverage[..., None]
        masks = np.concatenate([covered, mask[None]])
        drawn.append(digits.labels[index])
        areas.append(int(mask.sum()))
    noisy = canvas + rng.normal(0, 4, canvas.shape)
    return Scene(np.clip(np.round(noisy), 0, 255).astype(np.uint8), drawn, masks)


def make_scenes(folder: str | Path, images: int = 400, size: int = 128, seed: int = 0) -> Path:
    """Write training and validation scenes, in COCO's layout below `coco/` and in ADE20K's below `ade20k/`.

    The same arguments write the same bytes. There is one validation scene for every four training scenes, up to 1000.

    Args:
        folder: a new or an empty folder.
        images: training scenes.
        size: height and width of a scene in pixels.
        seed: chooses the scenes.

    Raises:
        ValueError: the folder holds something, `images` is below 1, or `size` is not within 32 to 1024.
        OSError: the folder can't be written.
    """
    folder = Path(folder).expanduser()
    if images < 1:
        raise ValueError(f"images is {images}; it must be at least 1")
    if not 32 <= size <= 1024:
        raise ValueError(f"size is {size}; it must be 32 to 1024 pixels")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must not be negative")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and isn't an empty folder; choose another one")
    digits, other_digits = split_off_test()
    parts = {"train": (digits, images), "val": (other_digits, validation_scenes(images))}
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    (temporary / "ade20k").mkdir()
    names = [BACKGROUND, *digits.class_names]
    (temporary / "ade20k" / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    for number, (part, (source, count)) in enumerate(parts.items()):
        scenes = (compose_scene(source, size, np.random.default_rng([seed, number, i])) for i in range(count))
        _write_part(temporary, part, scenes, count)
    (temporary / FACTS).write_text(json.dumps({"images": images, "size": size, "seed": seed}), encoding="utf-8")
    if folder.exists():
        folder.rmdir()
    temporary.replace(folder)
    return folder


def validation_scenes(images: int) -> int:
    """How many validation scenes `make_scenes` writes beside so many training scenes.

    Example:
        >>> [validation_scenes(images) for images in (1, 400, 24000)]
        [1, 100, 1000]
    """
    return min(MOST_VALIDATION, max(1, images // 4))


def scene_size(folder: str | Path) -> int | None:
    """Height and width of the scenes in a folder that `make_scenes` wrote; None for any other folder.

    Example:
        >>> scene_size("photos") is None
        True
    """
    file = Path(folder).expanduser() / FACTS
    return json.loads(file.read_text(encoding="utf-8"))["size"] if file.is_file() else None


def _write_part(folder: Path, part: str, scenes: Iterator[Scene], count: int) -> None:
    from tqdm import tqdm

    long_name = {"train": "training", "val": "validation"}[part]
    coco = folder / "coco" / f"{part}2017"
    ade_images, label_maps = (folder / "ade20k" / kind / long_name for kind in ("images", "annotations"))
    for path in (coco, ade_images, label_maps, folder / "coco" / "annotations"):
        path.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(tqdm(scenes, part, count, unit=" scenes", leave=False, delay=2), start=1):
        name, picture = f"{number:012d}.png", Image.fromarray(scene.image)
        height, width = scene.image.shape[:2]
        picture.save(coco / name)
        picture.save(ade_images / name)
        Image.fromarray(label_map(scene)).save(label_maps / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for digit, mask in zip(scene.digits, scene.masks, strict=True):
            annotations.append(_annotation(len(annotations) + 1, number, digit, mask))
    content = {
        "info": {"description": "Scenes of handwritten digits from the UCI Optical Recognition data"},
        "licenses": [{"id": 1, "name": "CC BY 4.0", "url": "https://creativecommons.org/licenses/by/4.0/"}],
        "images": images,
        "annotations": annotations,
        # Ids start at 1 and leave a gap, as COCO's own do: what reads this can't mistake an id for a label.
        "categories": [{"id": category_id(digit), "name": str(digit), "supercategory": "digit"} for digit in range(10)],
    }
    file = folder / "coco" / "annotations" / f"instances_{part}2017.json"
    file.write_text(json.dumps(content), encoding="utf-8")


def category_id(digit: int) -> int:
    """The id of a digit in the COCO file: 1 to 5 for 0 to 4, 7 to 11 for 5 to 9."""
    return digit + 1 if digit < 5 else digit + 2


def label_map(scene: Scene) -> np.ndarray:
    """The class of every pixel as ADE20K numbers them: 1 for the background, 2 + d for digit d; (H, W), uint8."""
    labels = np.ones(scene.image.shape[:2], dtype=np.uint8)
    for digit, mask in zip(scene.digits, scene.masks, strict=True):
        labels[mask] = 2 + digit
    return labels


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run lengths: columns one after another, lengths of zeros and ones in turn, zeros first.

    Example:
        >>> run_lengths(np.array([[0, 1, 0], [1, 0, 0]], dtype=bool))
        {'size': [2, 3], 'counts': [1, 2, 3]}
    """
    columns = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(columns[1:] != columns[:-1])
    # A mask that ends with a one has its last edge at the end, and no zeros after it.
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    return {"size": list(mask.shape), "counts": (counts if counts[-1] else counts[:-1]).tolist()}


def _annotation(number: int, image: int, digit: int, mask: np.ndarray) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    box = [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
    return {
        "id": number,
        "image_id": image,
        "category_id": category_id(digit),
        "bbox": box,
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": run_lengths(mask),
    }


def _placed_digit(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """How much each pixel of the scene is covered by a digit at a random place, size and slant: (size, size), 0 to 1."""
    height = round(size * math.exp(rng.uniform(math.log(SMALLEST), math.log(LARGEST))))
    width = max(6, round(height * rng.uniform(0.8, 1.15)))
    ink = image.resize((width, height), Image.Resampling.BICUBIC)
    ink = ink.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
    coverage = np.zeros((size, size))
    top, left = (int(rng.integers(0, size - side + 1)) for side in (ink.height, ink.width))
    # Ink from half of full strength on covers what is below it.
    coverage[top : top + ink.height, left : left + ink.width] = np.clip(np.asarray(ink) / 255 * 2 - 0.2, 0, 1)
    return coverage


def _background(size: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth, faintly coloured surface: (size, size, 3), values about 0 to 255."""
    coarse = rng.normal(0, 12, (4, 4, 3)).astype(np.float32)
    smooth = [
        np.asarray(Image.fromarray(coarse[..., channel]).resize((size, size), Image.Resampling.BICUBIC))
        for channel in range(3)
    ]
    return np.stack(smooth, axis=-1).astype(np.float64) + rng.uniform(20, 110)


def _color(brightness: float, rng: np.random.Generator) -> np.ndarray:
    """A colour that stands out from a background of this brightness."""
    while True:
        color = rng.uniform(0, 255, 3)
        if color.mean() - brightness >= CONTRAST:
            return color
