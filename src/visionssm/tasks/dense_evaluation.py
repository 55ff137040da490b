"""Measure a detector or a segmenter on annotated images."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from visionssm.data.ade20k import LabelMapImages
from visionssm.data.coco import CocoImages
from visionssm.data.dense_loader import DenseBatch, DenseImages, make_dense_loader
from visionssm.data.dense_transforms import eval_dense_transform
from visionssm.data.loader import Unreadable
from visionssm.data.problems import Problem
from visionssm.tasks.dense import move_to
from visionssm.tasks.dense_config import DetectionConfig, SegmentationConfig
from visionssm.tasks.dense_model import DenseModel
from visionssm.tasks.detection import detection_metrics, masks_of
from visionssm.tasks.detection_metrics import coco_results
from visionssm.tasks.segmentation import predict_label_map
from visionssm.tasks.segmentation_metrics import SegmentationMetrics, confusion_matrix


@dataclass(frozen=True)
class DetectionEvaluation:
    """What came out, over the images that could be read."""

    metrics: dict[str, dict[str, float | None]]  # "box" and "mask": COCO's numbers, shares between 0 and 1
    results: list[dict[str, Any]]  # entries of a COCO results file
    images: int
    images_per_second: float  # loading included
    unreadable: list[Unreadable]
    problems: list[Problem]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; without the results."""
        return {**self.metrics, **_facts(self)}


@dataclass(frozen=True)
class SegmentationEvaluation:
    """What came out, over the images that could be read."""

    metrics: SegmentationMetrics
    class_names: list[str]
    images: int
    images_per_second: float  # loading included
    unreadable: list[Unreadable]
    problems: list[Problem]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**self.metrics.to_dict(self.class_names), **_facts(self)}


def evaluate_detector(
    detector: DenseModel, images: CocoImages, batch_size: int = 1, workers: int = 0, progress: bool = True
) -> DetectionEvaluation:
    """Average precision of a detector by COCO's protocol.

    Args:
        detector: see `load_dense_model`.
        images: with the classes of the detector.
        batch_size: images per step; those of one step are padded to one size.
        workers: processes that load images.
        progress: show a bar on standard error.

    Raises:
        ValueError: other classes than the detector's, or not one image that can be read.
    """
    _check_classes(detector, images.class_names)
    assert isinstance(detector.config, DetectionConfig)
    results: list[dict[str, Any]] = []
    judged: list[int] = []
    unreadable: list[Unreadable] = []
    start = time.perf_counter()
    for batch in _batches(images, batch_size, workers, progress):
        unreadable += batch["unreadable"]
        if not batch["images"]:
            continue
        with torch.inference_mode():
            found = detector.model(move_to(batch, detector.device)["images"])
        for index, prediction in zip(batch["indices"].tolist(), found, strict=True):
            results += coco_results(images.images[index]["id"], prediction, images.category_ids)
            judged.append(index)
    seconds = time.perf_counter() - start
    _require_images(judged, unreadable)
    metrics = detection_metrics(images.subset(judged), results, masks_of(detector.config))
    return DetectionEvaluation(metrics, results, len(judged), len(judged) / seconds, unreadable, images.problems)


def evaluate_segmenter(
    segmenter: DenseModel,
    images: LabelMapImages,
    multi_scale: bool = False,
    workers: int = 0,
    progress: bool = True,
) -> SegmentationEvaluation:
    """mIoU, mAcc and aAcc of a segmenter, image by image by the test procedure of its settings.

    Args:
        segmenter: see `load_dense_model`.
        images: with the classes of the segmenter.
        multi_scale: average over six sizes, each mirrored too.
        workers: processes that load images.
        progress: show a bar on standard error.

    Raises:
        ValueError: other classes than the segmenter's, or not one image that can be read.
    """
    _check_classes(segmenter, images.class_names)
    assert isinstance(segmenter.config, SegmentationConfig)
    classes = len(images.class_names)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    judged: list[int] = []
    unreadable: list[Unreadable] = []
    problems = list(images.problems)
    start = time.perf_counter()
    for batch in _batches(images, 1, workers, progress):
        unreadable += batch["unreadable"]
        problems += batch["problems"]
        for index, image, target in zip(batch["indices"].tolist(), batch["images"], batch["targets"], strict=True):
            predicted = predict_label_map(segmenter.model, image.to(segmenter.device), segmenter.config, multi_scale)
            confusion += confusion_matrix(predicted.cpu(), target["label_map"], classes)
            judged.append(index)
    seconds = time.perf_counter() - start
    _require_images(judged, unreadable)
    metrics = SegmentationMetrics.of(confusion)
    return SegmentationEvaluation(metrics, images.class_names, len(judged), len(judged) / seconds, unreadable, problems)


def _batches(images: DenseImages, batch_size: int, workers: int, progress: bool) -> Iterator[DenseBatch]:
    from tqdm import tqdm

    loader = make_dense_loader(images, eval_dense_transform(), batch_size, workers=workers)
    with tqdm(total=len(images), unit=" images", disable=not progress, delay=2, leave=False) as bar:
        batch: Any
        for batch in loader:
            yield batch
            bar.update(len(batch["images"]) + len(batch["unreadable"]))


def _check_classes(model: DenseModel, class_names: list[str]) -> None:
    if class_names != model.class_names:
        raise ValueError(
            f"the data has {len(class_names)} classes ({', '.join(class_names[:5])}, ...), but the checkpoint was trained "
            f"on {len(model.class_names)} ({', '.join(model.class_names[:5])}, ...)"
        )


def _require_images(judged: list[int], unreadable: list[Unreadable]) -> None:
    if not judged:
        first = f"; the first: {': '.join(unreadable[0])}" if unreadable else ""
        raise ValueError(f"none of the {len(unreadable)} images could be read{first}")


def _facts(evaluation: DetectionEvaluation | SegmentationEvaluation) -> dict[str, Any]:
    return {
        "images": evaluation.images,
        "images_per_second": round(evaluation.images_per_second, 2),
        "unreadable": len(evaluation.unreadable),
        "annotation_problems": len(evaluation.problems),
    }
