import math

import pytest
import torch

from visionssm.tasks.segmentation_metrics import SegmentationMetrics, confusion_matrix


def _plain_loop(pairs: list[tuple[list[int], list[int]]], classes: int) -> tuple[float, float, float]:
    """mIoU, mAcc and aAcc by counting pixel after pixel."""
    both, true, predicted = [0] * classes, [0] * classes, [0] * classes
    for guesses, labels in pairs:
        for guess, label in zip(guesses, labels, strict=True):
            if label == 255:
                continue
            true[label] += 1
            predicted[guess] += 1
            both[label] += guess == label
    ious = [b / (t + p - b) for b, t, p in zip(both, true, predicted, strict=True) if t + p - b]
    accuracies = [b / t for b, t in zip(both, true, strict=True) if t]
    return sum(ious) / len(ious), sum(accuracies) / len(accuracies), sum(both) / sum(true)


def test_the_numbers_are_those_of_a_plain_loop() -> None:
    classes = 7
    images = []
    for size in ((9, 11), (5, 16), (12, 4)):
        labels = torch.randint(0, classes - 2, size)  # the last two classes are in no label
        predicted = torch.where(torch.rand(size) < 0.6, labels, torch.randint(0, classes - 1, size))
        labels[torch.rand(size) < 0.2] = 255
        images.append((predicted, labels))
    confusion = sum(confusion_matrix(predicted, labels.byte(), classes) for predicted, labels in images)
    metrics = SegmentationMetrics.of(confusion)
    miou, macc, aacc = _plain_loop([(p.flatten().tolist(), t.flatten().tolist()) for p, t in images], classes)
    assert (metrics.miou, metrics.macc, metrics.aacc) == pytest.approx((miou, macc, aacc), abs=1e-12)
    assert metrics.class_iou[-1] is None, "a class that is nowhere isn't measured"
    assert metrics.class_accuracy[-2] is None and metrics.class_iou[-2] == 0.0, (
        "one that is only predicted counts as missed"
    )


def test_nothing_labelled_is_nothing_measured() -> None:
    confusion = confusion_matrix(torch.zeros(4, 4, dtype=torch.int64), torch.full((4, 4), 255), 3)
    metrics = SegmentationMetrics.of(confusion)
    assert confusion.sum() == 0 and (metrics.miou, metrics.macc, metrics.aacc) == (None, None, None)


def test_perfect_labels_score_one() -> None:
    labels = torch.randint(0, 4, (20, 20))
    metrics = SegmentationMetrics.of(confusion_matrix(labels, labels, 4))
    assert (metrics.miou, metrics.macc, metrics.aacc) == (1.0, 1.0, 1.0)
    assert not math.isnan(sum(metrics.class_iou))
    assert metrics.to_dict(list("abcd"))["per_class"][2] == {"class": "c", "iou": 1.0, "accuracy": 1.0}
