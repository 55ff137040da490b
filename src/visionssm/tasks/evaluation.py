"""Measure a classifier on labelled images."""

import csv
import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from visionssm.data.images import LabeledImages
from visionssm.data.loader import Batch, Unreadable, make_loader
from visionssm.data.transforms import eval_transform
from visionssm.tasks.checkpoint import Classifier
from visionssm.tasks.run import write_text


@dataclass(frozen=True)
class Evaluation:
    """What came out. Accuracies are shares between 0 and 1, over the images that could be read."""

    top1: float
    top5: float  # top-K for K classes, where there are fewer than five
    loss: float  # mean cross-entropy, natural logarithm
    confusion: np.ndarray  # (classes, classes), int64: true class by predicted class
    class_names: list[str]
    images: int
    calibration_error: float  # expected, of the confidence in the first class, over 15 bins (Guo et al. 2017)
    images_per_second: float  # loading and preprocessing included
    model_images_per_second: float  # the model alone
    unreadable: list[Unreadable]

    def per_class(self) -> list[dict[str, Any]]:
        """One row per class: name, images, recall (share of its images found), precision (share of its labels right).

        A share of nothing is None.
        """
        rows = []
        for label, name in enumerate(self.class_names):
            right, images, predicted = (
                int(count)
                for count in (self.confusion[label, label], self.confusion[label].sum(), self.confusion[:, label].sum())
            )
            recall, precision = (right / images if images else None), (right / predicted if predicted else None)
            rows.append({"class": name, "images": images, "recall": recall, "precision": precision})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "calibration_error": self.calibration_error,
            "images": self.images,
            "images_per_second": round(self.images_per_second, 1),
            "model_images_per_second": round(self.model_images_per_second, 1),
            "unreadable": len(self.unreadable),
            "per_class": self.per_class(),
        }


def evaluate(
    classifier: Classifier,
    images: LabeledImages,
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Run a classifier over labelled images.

    Args:
        classifier: a trained model with its preprocessing.
        images: images whose labels follow `classifier.class_names`.
        batch_size: images per step.
        workers: processes that load images; None: one per core, up to 8, for 1000 images or more, else none.
        progress: show a bar on standard error.

    Raises:
        ValueError: not one of the images can be read.
    """
    classes = len(classifier.class_names)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    top5_hits = 0
    loss_sum = 0.0
    confidences, hits = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)]
    unreadable: list[Unreadable] = []
    model_seconds = 0.0
    start = time.perf_counter()
    for batch, logits, spent in classify(classifier, images, batch_size, workers, progress):
        unreadable += batch["unreadable"]
        model_seconds += spent
        labels = batch["labels"]
        shares, ranked = logits.softmax(dim=1).topk(min(5, classes))
        confidences.append(shares[:, 0])
        hits.append((ranked[:, 0] == labels).long())
        np.add.at(confusion, (labels.numpy(), ranked[:, 0].numpy()), 1)
        top5_hits += int((ranked == labels[:, None]).sum())
        loss_sum += float(functional.cross_entropy(logits, labels, reduction="sum"))
    seconds = time.perf_counter() - start
    count = int(confusion.sum())
    if not count:
        raise ValueError(f"none of the {len(unreadable)} images could be read; the first: {': '.join(unreadable[0])}")
    return Evaluation(
        top1=float(np.trace(confusion)) / count,
        top5=top5_hits / count,
        loss=loss_sum / count,
        confusion=confusion,
        class_names=classifier.class_names,
        images=count,
        calibration_error=calibration_error(torch.cat(confidences), torch.cat(hits)),
        images_per_second=count / seconds,
        model_images_per_second=count / model_seconds,
        unreadable=unreadable,
    )


def save_per_class(evaluation: Evaluation, file: Path) -> None:
    """One row per class as CSV: class, images, recall, precision; a share of nothing is empty."""
    text = io.StringIO()
    table = csv.DictWriter(text, ["class", "images", "recall", "precision"])
    table.writeheader()
    table.writerows(evaluation.per_class())
    write_text(file, text.getvalue())


def calibration_error(confidences: torch.Tensor, hits: torch.Tensor, bins: int = 15) -> float:
    """Expected calibration error: how far confidence and accuracy are apart, in bins of equal width, weighted by size.

    Args:
        confidences: softmax of the chosen class, (images,).
        hits: 1 where that class is right, else 0, (images,).
        bins: how many.

    Example:
        >>> round(calibration_error(torch.tensor([0.9, 0.9, 0.6, 0.6]), torch.tensor([1, 1, 1, 0])), 3)
        0.1
    """
    places = (confidences * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, places, hits.double() - confidences.double())
    return float(gaps.abs().sum()) / len(hits)


@torch.inference_mode()
def classify(
    classifier: Classifier, images: LabeledImages, batch_size: int, workers: int | None = None, progress: bool = True
) -> Iterator[tuple[Batch, torch.Tensor, float]]:
    """Yield every batch with its logits (batch, classes), float32 on the CPU, and the seconds that the model took.

    A batch may be all unreadable: then there are no rows.
    """
    from tqdm import tqdm

    device = next(classifier.model.parameters()).device
    transform = eval_transform(classifier.preprocessing)
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if len(images.labels) >= 1000 else 0
    loader = make_loader(images, transform, batch_size, workers=workers, pin_memory=device.type == "cuda")
    with tqdm(total=len(images.labels), unit=" images", disable=not progress, delay=2, leave=False) as bar:
        for batch in loader:
            logits = torch.empty(0, len(classifier.class_names))
            start = time.perf_counter()
            if len(batch["labels"]):
                logits = classifier.model(batch["images"].to(device, non_blocking=True)).float().cpu()
            seconds = time.perf_counter() - start  # the copy to the CPU has waited for the device
            bar.update(len(batch["labels"]) + len(batch["unreadable"]))
            yield batch, logits, seconds
