"""Results as text for the terminal."""

from visionssm.tasks.evaluation import Evaluation

MOST_CLASSES = 40


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
    print(f"\n{title}: {evaluation.images} images, {evaluation.images_per_second:.0f} images/s with loading")
    print(f"top-1 {100 * evaluation.top1:.2f} %   top-{top} {100 * evaluation.top5:.2f} %   loss {evaluation.loss:.4f}")
    if evaluation.unreadable:
        name, reason = evaluation.unreadable[0]
        print(f"{len(evaluation.unreadable)} images can't be read and were left out; the first: {name} ({reason})")


def _percent(share: float | None) -> str:
    return "      -" if share is None else f"{100 * share:5.1f} %"
