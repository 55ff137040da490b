"""Images with boxes and masks, annotated in a JSON file of COCO's format.

Every annotation is checked when the file is read. What can't be used is left out, counted and named, so that nothing is
left to go wrong in the middle of an epoch.
"""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torchvision import tv_tensors

from visionssm.data.folder import read_image
from visionssm.data.images import hash_lines
from visionssm.data.problems import Problem

PARTS = ("train", "val")


class DetectionTarget(TypedDict):
    """What is in one image: the form that torchvision's detectors and transforms take."""

    boxes: tv_tensors.BoundingBoxes  # (objects, 4), float32: left, top, right, bottom in pixels
    labels: torch.Tensor  # (objects,), int64: class k is 1 + its place among the names; 0 is the background
    masks: NotRequired[tv_tensors.Mask]  # (objects, H, W), uint8; not there where only boxes were asked for


@dataclass(frozen=True)
class CocoImages:
    """Image files with checked annotations."""

    folder: Path
    images: list[dict[str, Any]]  # COCO's records: id, file_name, width, height
    annotations: list[list[dict[str, Any]]]  # of every image: COCO's records, crowds included
    categories: list[dict[str, Any]]  # COCO's records: id, name
    with_masks: bool = True
    problems: list[Problem] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_names(self) -> list[str]:
        """Names of the categories, in the order of their ids. The label of the first one is 1."""
        return [category["name"] for category in self.categories]

    @property
    def category_ids(self) -> list[int]:
        """The ids of the categories in the file, which may have gaps: label k is `category_ids[k - 1]`."""
        return [category["id"] for category in self.categories]

    def name(self, index: int) -> str:
        """The path of image `index`."""
        return str(self.folder / self.images[index]["file_name"])

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of image `index`."""
        return self.images[index]["height"], self.images[index]["width"]

    def load(self, index: int) -> tuple[tv_tensors.Image, DetectionTarget, list[Problem]]:
        """Decode image `index`, and the boxes and masks of its objects; crowds aren't objects to learn.

        Returns:
            The image (3, H, W), uint8, its target, and no problems: those were found when the file was read.

        Raises:
            OSError: the image can't be read, or hasn't the size that the annotations are for.
        """
        height, width = self.size(index)
        image = read_image(self.name(index)).convert("RGB")
        if image.size != (width, height):
            raise OSError(f"is {image.width}x{image.height}, but its annotations are for {width}x{height}")
        objects = [annotation for annotation in self.annotations[index] if not annotation["iscrowd"]]
        labels = {category_id: label for label, category_id in enumerate(self.category_ids, start=1)}
        boxes = [_corners(annotation["bbox"], height, width) for annotation in objects]
        target = DetectionTarget(
            boxes=tv_tensors.BoundingBoxes(
                torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                format=tv_tensors.BoundingBoxFormat.XYXY,
                canvas_size=(height, width),
            ),
            labels=torch.tensor([labels[annotation["category_id"]] for annotation in objects], dtype=torch.int64),
        )
        if self.with_masks:
            masks = [decode_mask(annotation["segmentation"], height, width) for annotation in objects]
            target["masks"] = tv_tensors.Mask(np.stack(masks) if masks else np.zeros((0, height, width), np.uint8))
        return tv_tensors.Image(np.array(image).transpose(2, 0, 1).copy()), target, []

    def subset(self, indices: list[int]) -> "CocoImages":
        """The images at `indices`."""
        return replace(
            self, images=[self.images[i] for i in indices], annotations=[self.annotations[i] for i in indices]
        )

    def without_empty(self) -> "CocoImages":
        """The images that have at least one object; crowds don't count."""
        return self.subset([i for i, found in enumerate(self.annotations) if any(not a["iscrowd"] for a in found)])

    def ground_truth(self) -> dict[str, Any]:
        """The content of the JSON file as it is judged against: every usable annotation, crowds included."""
        annotations = [annotation for found in self.annotations for annotation in found]
        return {"info": {}, "images": self.images, "annotations": annotations, "categories": self.categories}

    def fingerprint(self) -> str:
        """Hash of images and annotations; the pixels aren't read."""
        return hash_lines([json.dumps(part) for part in (self.images, self.annotations, self.categories)])


def load_coco(root: str | Path, with_masks: bool = True, keep_empty: bool = False) -> tuple[CocoImages, CocoImages]:
    """The training and validation images of a folder in COCO's layout.

    The layout is `annotations/instances_train2017.json` with the folder `train2017/`, and the same for `val`; the year
    may be another one or left out. The folder that holds it may also be called `coco` and lie in `root`.

    Args:
        root: the folder.
        with_masks: read masks, and leave out objects that have none; else boxes are enough.
        keep_empty: train on images without objects too.

    Returns:
        Images to train on and images to validate on. `problems` of each says what was left out.

    Raises:
        FileNotFoundError: the folder, an annotation file or an image folder isn't there.
        ValueError: an annotation file that isn't COCO's format, other categories in the two parts, or no usable image.
    """
    root = Path(root).expanduser()
    if (root / "coco" / "annotations").is_dir():
        root = root / "coco"
    train, val = (read_coco(*find_part(root, part), with_masks) for part in PARTS)
    if train.categories != val.categories:
        raise ValueError(
            f"{root}: the training and validation annotations have different categories "
            f"({len(train.categories)} and {len(val.categories)}); they must be the same list"
        )
    if not keep_empty:
        train = train.without_empty()
    if not len(train):
        raise ValueError(f"{root}: not one training image has an object that can be used; first: {train.problems[:1]}")
    return train, val


def find_part(root: Path, part: str) -> tuple[Path, Path]:
    """The annotation file and the image folder of one part, "train" or "val".

    Raises:
        FileNotFoundError: one of them isn't there.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    files = sorted((root / "annotations").glob(f"instances_{part}*.json"))
    if not files:
        raise FileNotFoundError(f"{root} has no annotations/instances_{part}*.json: it isn't a folder in COCO's layout")
    name = files[-1].stem.removeprefix("instances_")
    for folder in (root / name, root / "images" / name, root / part):
        if folder.is_dir():
            return files[-1], folder
    raise FileNotFoundError(f"{root} has no folder {name}/ with the images of {files[-1].name}")


def read_coco(file: Path, folder: Path, with_masks: bool = True) -> CocoImages:
    """Read and check one annotation file.

    Args:
        file: the JSON file.
        folder: where its images lie.
        with_masks: leave out objects whose mask is missing or can't belong to them.

    Raises:
        FileNotFoundError: the file isn't there.
        ValueError: it isn't JSON in COCO's format, or not one of its images is there.
    """
    content = _read_json(file)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    ids = {category["id"] for category in categories}
    problems: list[Problem] = []
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    found: dict[int, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    missing: set[int] = set()
    for image in content["images"]:
        if image["id"] in found or image["id"] in missing:
            problems.append(Problem(f"{file.name}: {image['file_name']}", "image id is given twice: left out"))
        elif str(Path(image["file_name"])) not in present:
            problems.append(Problem(str(folder / image["file_name"]), "image file is missing: left out"))
            missing.add(image["id"])
        elif image["width"] < 1 or image["height"] < 1:
            problems.append(Problem(str(folder / image["file_name"]), "size of the image isn't positive: left out"))
            missing.add(image["id"])
        else:
            found[image["id"]] = (image, [])
    if not found:
        raise ValueError(f"{file}: not one of its {len(content['images'])} images is in {folder}")
    for number, annotation in enumerate(content["annotations"]):
        where = f"{file.name}: annotation {annotation.get('id', f'number {number}')}"
        image_id = annotation.get("image_id")
        if image_id in missing:
            continue
        if image_id not in found:
            problems.append(Problem(where, "image id isn't in the list of images: left out"))
            continue
        image, kept = found[image_id]
        kind = find_fault(annotation, image["height"], image["width"], ids, with_masks)
        if kind is not None:
            problems.append(Problem(f"{where} of {image['file_name']}", kind))
        if kind is None or kind == CLIPPED:
            kept.append(annotation | {"iscrowd": int(annotation.get("iscrowd", 0)), "id": number + 1})
            kept[-1].setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    images, annotations = zip(*found.values(), strict=True)
    return CocoImages(folder, list(images), list(annotations), categories, with_masks, problems)


CLIPPED = "box reaches out of the image: cut at its border"


def find_fault(
    annotation: dict[str, Any], height: int, width: int, category_ids: set[int], with_masks: bool
) -> str | None:
    """What is wrong with an annotation, None if nothing is.

    Example:
        >>> find_fault({"bbox": [5, 5, 0, 3], "category_id": 1}, 20, 20, {1}, with_masks=False)
        'box of zero area: left out'
    """
    if annotation.get("category_id") not in category_ids:
        return "category id isn't in the list of categories: left out"
    box = annotation.get("bbox")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(n, int | float) and math.isfinite(n) for n in box)
    ):
        return "box isn't four finite numbers: left out"
    if box[2] <= 0 or box[3] <= 0:
        return "box of zero area: left out"
    left, top, right, bottom = _corners(box, height, width)
    if right <= left or bottom <= top:
        return "box lies outside the image: left out"
    if with_masks:
        fault = _mask_fault(annotation.get("segmentation"), (left, top, right, bottom), height, width)
        if fault:
            return f"{fault}: left out"
    # Boxes in the published files are rounded: a pixel over the border is no mistake.
    reaches_out = box[0] < -1 or box[1] < -1 or box[0] + box[2] > width + 1 or box[1] + box[3] > height + 1
    return CLIPPED if reaches_out else None


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A segmentation of COCO's (polygons, or run lengths as numbers or as text) as pixels.

    Returns:
        (height, width), uint8, 0 or 1.

    Example:
        >>> decode_mask({"size": [2, 3], "counts": [1, 2, 3]}, 2, 3)
        array([[0, 1, 0],
               [1, 0, 0]], dtype=uint8)
    """
    from faster_coco_eval.core import mask

    return mask.decode(encode_mask(segmentation, height, width))


def encode_mask(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A segmentation of COCO's as compressed run lengths."""
    from faster_coco_eval.core import mask

    if isinstance(segmentation, list):
        return mask.merge(mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask.frPyObjects(segmentation, height, width)
    return segmentation


def _mask_fault(segmentation: Any, box: tuple[float, ...], height: int, width: int) -> str | None:
    """What is wrong with the mask of a box that is given by its corners."""
    if not segmentation:
        return "mask is missing"
    if isinstance(segmentation, list):
        sizes = {len(polygon) if isinstance(polygon, list) else 0 for polygon in segmentation}
        if any(size < 6 or size % 2 for size in sizes):
            return "mask has a polygon of fewer than three points"
        points = [np.asarray(polygon, dtype=float).reshape(-1, 2) for polygon in segmentation]
        first, last = np.concatenate(points).min(0), np.concatenate(points).max(0)
    else:
        counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
        if counts is None or list(segmentation.get("size", ())) != [height, width]:
            return "mask isn't of the image's size"
        if isinstance(counts, list) and (sum(counts) != height * width or min(counts, default=0) < 0):
            return "mask has run lengths that don't add up to the image"
        from faster_coco_eval.core import mask

        extent = np.asarray(mask.toBbox(encode_mask(segmentation, height, width)), dtype=float)
        if not extent[2:].all():
            return "mask is empty"
        first, last = extent[:2], extent[:2] + extent[2:]
    if not (np.isfinite(first).all() and np.isfinite(last).all()):
        return "mask has points that aren't finite"
    if last[0] < box[0] or last[1] < box[1] or first[0] > box[2] or first[1] > box[3]:
        return "mask lies outside its box"
    return None


def _corners(box: list[float], height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a box that is given by its left, top, width and height, inside the image."""
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    return left, top, min(box[0] + box[2], float(width)), min(box[1] + box[3], float(height))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} isn't a JSON file: {error}") from error
    needed = {"images": ("id", "file_name", "width", "height"), "annotations": (), "categories": ("id", "name")}
    for name, keys in needed.items():
        records = content.get(name) if isinstance(content, dict) else None
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise ValueError(f"{file} has no list '{name}': it isn't an annotation file of COCO's format")
        incomplete = next((record for record in records if not all(key in record for key in keys)), None)
        if incomplete is not None:
            lacking = ", ".join(key for key in keys if key not in incomplete)
            raise ValueError(f"{file}: an entry of '{name}' lacks {lacking}: {str(incomplete)[:100]}")
    if not content["categories"]:
        raise ValueError(f"{file} names no categories")
    if len({category["id"] for category in content["categories"]}) < len(content["categories"]):
        raise ValueError(f"{file} gives a category id twice")
    return content
