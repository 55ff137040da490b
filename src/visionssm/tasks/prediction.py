"""Labels and confidences for image files, as CSV, JSON and a contact sheet."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionssm._files import write_atomically
from visionssm.data.folder import FolderImages
from visionssm.data.images import read_image
from visionssm.data.loader import Unreadable
from visionssm.tasks.checkpoint import Classifier
from visionssm.tasks.classifiers import readable_names
from visionssm.tasks.evaluation import classify
from visionssm.tasks.run import write_text


@dataclass(frozen=True)
class Prediction:
    """The most likely classes of one image, best first."""

    image: Path
    labels: list[str]
    confidences: list[float]  # softmax, between 0 and 1


def predict(
    classifier: Classifier, paths: Sequence[Path], top_k: int = 5, batch_size: int = 64, workers: int | None = None
) -> tuple[list[Prediction], list[Unreadable]]:
    """Classify image files.

    Args:
        classifier: a trained model with its preprocessing.
        paths: the files.
        top_k: how many classes to report for each image; at most all.
        batch_size: images per step.
        workers: processes that load images; None: one per core, up to 8, for 1000 images or more, else none.

    Returns:
        Predictions in the order of the files, and the files that couldn't be read.

    Raises:
        ValueError: not one of the files can be read, or top_k is below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1")
    images = FolderImages(Path(), list(paths), [0] * len(paths), classifier.class_names)
    names = readable_names(classifier.class_names)
    predictions: list[Prediction] = []
    unreadable: list[Unreadable] = []
    for batch, logits, _ in classify(classifier, images, batch_size, workers):
        unreadable += batch["unreadable"]
        best = logits.softmax(dim=1).topk(min(top_k, logits.shape[1]))
        for index, classes, confidences in zip(batch["indices"], best.indices, best.values, strict=True):
            labels = [names[label] for label in classes]
            predictions.append(Prediction(paths[index], labels, confidences.tolist()))
    if not predictions:
        raise ValueError(f"none of the {len(unreadable)} images can be read; the first: {': '.join(unreadable[0])}")
    return predictions, unreadable


def writer_for(file: Path) -> Callable[[Path, list[Prediction], list[Unreadable]], Any]:
    """The function that writes predictions in the format of a file's suffix.

    Raises:
        ValueError: the suffix isn't .csv, .json or .png.
    """
    writers = {".csv": write_csv, ".json": write_json, ".png": write_contact_sheet}
    if file.suffix.lower() not in writers:
        raise ValueError(f"{file}: predictions are written as {', '.join(writers)}; choose one of these endings")
    return writers[file.suffix.lower()]


def write_csv(file: Path, predictions: list[Prediction], unreadable: list[Unreadable]) -> None:
    """One row per image: path, then label and confidence by rank, then the reason if it couldn't be read."""
    ranks = range(1, len(predictions[0].labels) + 1)
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["image", *(f"{column}_{rank}" for rank in ranks for column in ("label", "confidence")), "error"])
    for prediction in predictions:
        pairs = zip(prediction.labels, prediction.confidences, strict=True)
        table.writerow([prediction.image, *(cell for label, share in pairs for cell in (label, f"{share:.6f}")), ""])
    for image in unreadable:
        table.writerow([image.name, *([""] * 2 * len(ranks)), image.reason])
    write_text(file, text.getvalue())


def write_json(file: Path, predictions: list[Prediction], unreadable: list[Unreadable]) -> None:
    """A list of images, each with its labels and confidences, or with the reason why it couldn't be read."""
    rows: list[dict[str, Any]] = [
        {"image": str(prediction.image), "labels": prediction.labels, "confidences": prediction.confidences}
        for prediction in predictions
    ]
    rows += [{"image": image.name, "error": image.reason} for image in unreadable]
    write_text(file, json.dumps(rows, indent=1))


def write_contact_sheet(
    file: Path, predictions: list[Prediction], unreadable: list[Unreadable], truths: Sequence[str] | None = None
) -> None:
    """A PNG with the images, each with its label and confidence below it; the first 100 where there are more.

    Args:
        file: the PNG.
        predictions: what to show.
        unreadable: not shown.
        truths: true labels of the images, if they are known: right answers are written in green, wrong ones in red.
    """
    from visionssm.tasks.contact_sheet import Tile, contact_sheet

    tiles = []
    for number, prediction in enumerate(predictions[:100]):
        caption = f"{prediction.labels[0]}  {100 * prediction.confidences[0]:.1f} %"
        right = None if truths is None else truths[number] == prediction.labels[0]
        if right is False and truths is not None:
            caption += f"  (is {truths[number]})"
        tiles.append(Tile(read_image(prediction.image), caption, right))
    sheet = contact_sheet(tiles)
    write_atomically(file, lambda temporary: sheet.save(temporary, format="PNG"))
