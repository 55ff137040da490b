"""Figures of a run: the course of training, and which classes are taken for which."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionssm._files import save_png
from visionssm.tasks.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#1f5fa8", "#d1701d", "#6b6b6b"
MOST_LABELS = 30  # classes whose names and counts can still be read


def save_learning_curve(
    history: list[dict[str, Any]], file: Path, score: str = "val_top1", score_name: str = "val top-1"
) -> None:
    """Loss and a validation score over the epochs, as a PNG.

    Args:
        history: one row per epoch, as in `metrics.csv`.
        file: the PNG.
        score: the column of the score, a share; an epoch without validation has none.
        score_name: what it is called.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for column, label, color in (("train_loss", "training", ORANGE), ("val_loss", "validation", BLUE)):
        values = [float("nan") if row.get(column) is None else row[column] for row in history]
        loss.plot(epochs, values, color=color, label=label, marker="o", markersize=3)
    loss.set_title("loss (training: with augmentation and smoothing)", loc="left", fontsize=10)
    loss.legend(frameon=False, loc="upper right")
    shares = [float("nan") if row.get(score) is None else 100 * row[score] for row in history]
    accuracy.plot(epochs, shares, color=BLUE, marker="o", markersize=3)
    best = int(np.nanargmax(shares))
    accuracy.annotate(
        f"best {shares[best]:.2f} %", (1, 0), (-4, 6), xycoords="axes fraction", textcoords="offset points", ha="right"
    )
    accuracy.set_title(f"{score_name}, %", loc="left", fontsize=10)
    for axes in (loss, accuracy):
        _tidy(axes)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    save_png(figure, file)


def save_confusion_matrix(evaluation: Evaluation, file: Path) -> None:
    """True class by predicted class, each row coloured by its shares, as a PNG; counts are written up to 30 classes."""
    from matplotlib.figure import Figure

    counts, names = evaluation.confusion, evaluation.class_names
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    classes = len(names)
    side = min(3.2 + 0.42 * classes, 14)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    if classes <= MOST_LABELS:
        axes.set_xticks(range(classes), names, rotation=45 if max(map(len, names)) > 3 else 0, ha="center")
        axes.set_yticks(range(classes), names)
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), color=color, ha="center", va="center", fontsize=8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"{evaluation.images} images, top-1 {100 * evaluation.top1:.2f} %", loc="left", fontsize=10)
    axes.spines[:].set_visible(False)
    save_png(figure, file)


def _tidy(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GREY, alpha=0.2)
