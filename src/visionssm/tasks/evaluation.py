"""Measure a classifier on labelled images."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from visionssm.data.images import LabeledImages
from visionssm.data.loader import Batch, Unreadable, make_loader
from visionssm.data.transforms import eval_transform
from visionssm.tasks.checkpoint import Classifier


@dataclass(frozen=True)
class Evaluation:
    """What came out. Accuracies are shares between 0 and 1, over the images that could be read."""

    top1: float
    top5: float  # top-K for K classes, where there are fewer than five
    loss: float  # mean cross-entropy, natural logarithm
    confusion: np.ndarray  # (classes, classes), int64: true class by predicted class
    class_names: list[str]
    images: int
    images_per_second: float  # loading and preprocessing included
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
            "images": self.images,
            "images_per_second": round(self.images_per_second, 1),
            "unreadable": len(self.unreadable),
            "per_class": self.per_class(),
        }


def evaluate(
    classifier: Classifier, images: LabeledImages, batch_size: int = 64, workers: int = 0, progress: bool = True
) -> Evaluation:
    """Run a classifier over labelled images.

    Args:
        classifier: a trained model with its preprocessing.
        images: images whose labels follow `classifier.class_names`.
        batch_size: images per step.
        workers: processes that load images.
        progress: show a bar on standard error.

    Raises:
        ValueError: not one of the images can be read.
    """
    classes = len(classifier.class_names)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    top5_hits = 0
    loss_sum = 0.0
    unreadable: list[Unreadable] = []
    start = time.perf_counter()
    for batch, logits in classify(classifier, images, batch_size, workers, progress):
        unreadable += batch["unreadable"]
        labels = batch["labels"]
        ranked = logits.topk(min(5, classes)).indices
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
        images_per_second=count / seconds,
        unreadable=unreadable,
    )


@torch.inference_mode()
def classify(
    classifier: Classifier, images: LabeledImages, batch_size: int, workers: int = 0, progress: bool = True
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Yield every batch with its logits (batch, classes), float32 on the CPU; a batch may be all unreadable: 0 rows."""
    from tqdm import tqdm

    device = next(classifier.model.parameters()).device
    transform = eval_transform(classifier.preprocessing)
    loader = make_loader(images, transform, batch_size, workers=workers, pin_memory=device.type == "cuda")
    with tqdm(total=len(images.labels), unit=" images", disable=not progress, delay=2, leave=False) as bar:
        for batch in loader:
            if len(batch["labels"]):
                logits = classifier.model(batch["images"].to(device, non_blocking=True)).float().cpu()
            else:
                logits = torch.empty(0, len(classifier.class_names))
            bar.update(len(batch["labels"]) + len(batch["unreadable"]))
            yield batch, logits
