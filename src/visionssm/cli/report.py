"""Results as text for the terminal."""

from typing import TYPE_CHECKING, Any

from visionssm.tasks.evaluation import Evaluation

if TYPE_CHECKING:
    from visionssm.tasks.train import TrainResult

MOST_CLASSES = 40


def print_training(result: "TrainResult") -> None:
    """What a classifier's training came to, where it is, and what to do with it."""
    print()
    print_evaluation(result.final, f"best weights, {result.final_part} images")
    print(f"\nrun       {result.folder}")
    print("files     best.ckpt, confusion_matrix.png, per_class.csv, learning_curve.png, metrics.csv, results.json")
    print(f"next      visionssm predict IMAGE... --checkpoint {result.folder}")


def print_evaluation(evaluation: Evaluation, title: str) -> None:
    """Accuracy over all, and a table by class; of many classes only the worst are shown."""
    rows = evaluation.per_class()
    width = max(len("class"), *(len(row["class"]) for row in rows))
    if len(rows) > MOST_CLASSES:
        rows = sorted(rows, key=lambda row: 1.0 if row["recall"] is None else row["recall"])[:MOST_CLASSES]
        print(f"the {MOST_CLASSES} classes of {len(evaluation.class_names)} with the lowest recall")
    print(f"{'class':<{width}}  images   recall  precision")
    for row in rows:
        print(f"{row['class']:<{width}}  {row['images']:>6}  {_percent(row['recall'])}   {_percent(row['precision'])}")
    top = min(5, len(evaluation.class_names))
    print(
        f"\n{title}: {evaluation.images} images, {evaluation.images_per_second:.0f} images/s with loading, "
        f"{evaluation.model_images_per_second:.0f} images/s in the model"
    )
    print(
        f"top-1 {100 * evaluation.top1:.2f} %   top-{top} {100 * evaluation.top5:.2f} %   loss {evaluation.loss:.4f}   "
        f"calibration error {100 * evaluation.calibration_error:.2f} %"
    )
    if evaluation.unreadable:
        name, reason = evaluation.unreadable[0]
        print(f"{len(evaluation.unreadable)} images can't be read and were left out; the first: {name} ({reason})")


def print_summary(rows: list[dict[str, Any]]) -> None:
    """One line for each of several evaluated models."""
    width = max(len("model"), *(len(row["source"]) for row in rows))
    print(f"{'model':<{width}}     size   params    top-1    top-5  cal. error  images/s")
    for row in rows:
        print(
            f"{row['source']:<{width}}  {row['img_size']:>7}  {row['parameters'] / 1e6:6.2f}M  {_percent(row['top1'])}  "
            f"{_percent(row['top5'])}     {_percent(row['calibration_error'])}  {row['model_images_per_second']:8.1f}"
        )


def _percent(share: float | None) -> str:
    return "      -" if share is None else f"{100 * share:5.1f} %"
