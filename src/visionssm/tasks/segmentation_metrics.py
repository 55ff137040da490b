"""How well labels of pixels agree: intersection over union, and accuracy."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visionssm.data.ade20k import IGNORE


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count pixels by true and predicted class.

    Args:
        predicted, labels: (..., H, W), integers from 0 to classes - 1; pixels labelled 255 aren't counted.
        classes: number of classes.

    Returns:
        (classes, classes), int64: true class by predicted class.

    Example:
        >>> confusion_matrix(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]]), 2).tolist()
        [[1, 1], [0, 0]]
    """
    counted = labels != IGNORE
    pairs = labels[counted].long() * classes + predicted[counted].long()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


@dataclass(frozen=True)
class SegmentationMetrics:
    """Shares between 0 and 1; None where there is nothing to measure."""

    miou: float | None  # mean over the classes that are in the labels or in the predictions
    macc: float | None  # mean share of each class's pixels that were found, over the classes in the labels
    aacc: float | None  # share of all pixels that are right
    class_iou: list[float | None]
    class_accuracy: list[float | None]

    @classmethod
    def of(cls, confusion: Tensor) -> "SegmentationMetrics":
        """From the counts of all images together.

        Example:
            >>> metrics = SegmentationMetrics.of(torch.tensor([[3, 1], [0, 4]]))
            >>> metrics.aacc, metrics.class_iou
            (0.875, [0.75, 0.8])
        """
        counts = confusion.double()
        right, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        class_iou, class_accuracy = right / (true + predicted - right), right / true
        return cls(
            miou=_value(class_iou.nanmean()),
            macc=_value(class_accuracy.nanmean()),
            aacc=_value(right.sum() / counts.sum()),
            class_iou=[_value(value) for value in class_iou],
            class_accuracy=[_value(value) for value in class_accuracy],
        )

    def to_dict(self, class_names: list[str]) -> dict[str, Any]:
        """Plain values, for JSON."""
        classes = zip(class_names, self.class_iou, self.class_accuracy, strict=True)
        rows = [{"class": name, "iou": iou, "accuracy": accuracy} for name, iou, accuracy in classes]
        return {"mIoU": self.miou, "mAcc": self.macc, "aAcc": self.aacc, "per_class": rows}


def _value(number: Tensor) -> float | None:
    """A share of nothing is 0 / 0."""
    return None if number.isnan() else float(number)
