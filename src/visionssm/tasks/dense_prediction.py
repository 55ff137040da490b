"""What a detector or a segmenter finds in image files: pictures, COCO results, label maps."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionssm._files import write_atomically
from visionssm.data.folder import read_image
from visionssm.data.loader import Unreadable
from visionssm.tasks.dense_config import SegmentationConfig
from visionssm.tasks.dense_model import DenseModel
from visionssm.tasks.detection_metrics import coco_results
from visionssm.tasks.overlay import DrawnObject, draw_label_map, draw_objects
from visionssm.tasks.run import write_text
from visionssm.tasks.segmentation import predict_label_map

RESULTS, IMAGES = "results.json", "images.json"


@dataclass(frozen=True)
class Seen:
    """What was found in one image."""

    image: Path
    found: list[tuple[str, float]]  # objects with their scores, or classes with their share of the pixels; best first


def predict_objects(
    detector: DenseModel, paths: Sequence[Path], folder: Path, score: float = 0.5
) -> tuple[list[Seen], list[Unreadable]]:
    """Find objects in image files, and write what is found into a folder.

    Writes, for each image, a picture with boxes, masks, names and scores; `results.json`, every detection in COCO's
    results format; and `images.json`, the images and categories that its ids mean. An image whose name is a number has
    this number as its id, as COCO's do; otherwise ids count from 1.

    Args:
        detector: see `load_dense_model`.
        paths: the files.
        folder: is created if it isn't there.
        score: lowest score of what is drawn and returned.

    Returns:
        What was found, and the files that couldn't be read.

    Raises:
        ValueError: not one of the files can be read, or `score` isn't between 0 and 1.
        OSError: the folder can't be written.
    """
    if not 0 <= score <= 1:
        raise ValueError(f"score is {score}; it must lie between 0 and 1")
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [path.stem for path in paths]
    named_by_id = all(number.isdigit() for number in numbers) and len(
        set(map(int, filter(str.isdigit, numbers)))
    ) == len(paths)
    seen: list[Seen] = []
    unreadable: list[Unreadable] = []
    results: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for number, (path, name) in enumerate(zip(paths, _file_names(paths), strict=True), start=1):
        image = _read(path, unreadable)
        if image is None:
            continue
        with torch.inference_mode():
            (prediction,) = detector.model([_pixels(image).to(detector.device)])
        prediction = {key: value.cpu() for key, value in prediction.items()}
        image_id = int(path.stem) if named_by_id else number
        results += coco_results(image_id, prediction, detector.category_ids)
        images.append({"id": image_id, "file_name": str(path), "width": image.width, "height": image.height})
        objects = list(_drawn(prediction, detector.class_names, score))
        _save(draw_objects(image, objects), folder / f"{name}.png")
        names = [
            (detector.class_names[item.label], value)
            for item, value in zip(objects, _scores(prediction, score), strict=True)
        ]
        seen.append(Seen(path, names))
    _require_one(seen, unreadable)
    categories = [
        {"id": category, "name": name}
        for category, name in zip(detector.category_ids, detector.class_names, strict=True)
    ]
    write_text(folder / RESULTS, json.dumps(results))
    write_text(folder / IMAGES, json.dumps({"images": images, "categories": categories}, indent=1))
    return seen, unreadable


def predict_labels(
    segmenter: DenseModel, paths: Sequence[Path], folder: Path, multi_scale: bool = False
) -> tuple[list[Seen], list[Unreadable]]:
    """Label the pixels of image files, and write what is found into a folder.

    Writes, for each image, a picture with colours and their legend, and `NAME_labels.png`, which numbers the classes as the
    annotations do: class k of the list is k + 1.

    Args:
        segmenter: see `load_dense_model`.
        paths: the files.
        folder: is created if it isn't there.
        multi_scale: average over six sizes, each mirrored too.

    Returns:
        What was found, and the files that couldn't be read.

    Raises:
        ValueError: not one of the files can be read.
        OSError: the folder can't be written.
    """
    assert isinstance(segmenter.config, SegmentationConfig)
    folder.mkdir(parents=True, exist_ok=True)
    seen: list[Seen] = []
    unreadable: list[Unreadable] = []
    for path, name in zip(paths, _file_names(paths), strict=True):
        image = _read(path, unreadable)
        if image is None:
            continue
        pixels = _pixels(image).to(segmenter.device)
        labels = predict_label_map(segmenter.model, pixels, segmenter.config, multi_scale).cpu().numpy()
        _save(draw_label_map(image, labels, segmenter.class_names), folder / f"{name}.png")
        _save(Image.fromarray((labels + 1).astype(np.uint8)), folder / f"{name}_labels.png")
        shares = Counter(labels.ravel().tolist()).most_common()
        seen.append(Seen(path, [(segmenter.class_names[label], count / labels.size) for label, count in shares]))
    _require_one(seen, unreadable)
    return seen, unreadable


def _read(path: Path, unreadable: list[Unreadable]) -> Image.Image | None:
    """The image, or None after a note in the list."""
    try:
        return read_image(path).convert("RGB")
    except OSError as error:
        unreadable.append(Unreadable(str(path), str(error)))
        return None


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _scores(prediction: dict[str, Tensor], least: float) -> list[float]:
    return [value for value in prediction["scores"].tolist() if value >= least]


def _drawn(prediction: dict[str, Tensor], class_names: list[str], least: float) -> Iterator[DrawnObject]:
    for index, value in enumerate(prediction["scores"].tolist()):
        if value < least:
            continue
        label = int(prediction["labels"][index]) - 1
        mask = (prediction["masks"][index, 0] >= 0.5).numpy() if "masks" in prediction else None
        yield DrawnObject(
            prediction["boxes"][index].tolist(), label, f"{class_names[label]}  {100 * value:.0f} %", mask
        )


def _file_names(paths: Sequence[Path]) -> list[str]:
    """The stems of files, with a number where a stem comes again."""
    seen: Counter[str] = Counter()
    names = []
    for path in paths:
        seen[path.stem] += 1
        names.append(path.stem if seen[path.stem] == 1 else f"{path.stem}-{seen[path.stem]}")
    return names


def _save(image: Image.Image, file: Path) -> None:
    write_atomically(file, lambda temporary: image.save(temporary, format="PNG"))


def _require_one(seen: list[Seen], unreadable: list[Unreadable]) -> None:
    if not seen:
        raise ValueError(f"none of the {len(unreadable)} images can be read; the first: {': '.join(unreadable[0])}")
