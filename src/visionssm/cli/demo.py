"""`visionssm demo`: train a small state-space model on handwritten digits, evaluate it and look at its predictions."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionssm.data.images import LabeledImages

SHOWN = 60


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    parser = subparsers.add_parser(
        "demo",
        help="train, evaluate and predict in about a minute, without any download",
        description=__doc__,
        epilog="example:\n  visionssm demo --out demo",
    )
    parser.add_argument("--model", default="vmamba_nano", help="the model to train [vmamba_nano]")
    parser.add_argument("--epochs", type=int, default=32, metavar="N", help="passes over the training images [32]")
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="folder of the run [runs/demo]")


def run(args: argparse.Namespace) -> int:
    """The whole story: train, evaluate, predict, and say where everything is."""
    import shutil

    from visionssm.cli.report import print_evaluation
    from visionssm.data.digits import load_digits
    from visionssm.tasks.checkpoint import load_classifier
    from visionssm.tasks.classification_config import ClassificationConfig
    from visionssm.tasks.prediction import predict, write_contact_sheet, write_csv
    from visionssm.tasks.train import train

    out = Path(args.out)
    print("1. train on scikit-learn's handwritten digits")
    config = ClassificationConfig(model=args.model, epochs=args.epochs, out=str(out / "run"))
    result = train(config)
    assert result is not None

    print("\n2. evaluate the best weights on images that training never used")
    print_evaluation(result.final, "digits, test images")

    print("\n3. predict image files")
    images = out / "images"
    shutil.rmtree(images, ignore_errors=True)
    files, truths = save_images(load_digits().final, images, SHOWN)
    predictions, unreadable = predict(load_classifier(result.folder), files, top_k=3)
    write_csv(out / "predictions.csv", predictions, unreadable)
    write_contact_sheet(out / "predictions.png", predictions, unreadable, truths)
    right = sum(prediction.labels[0] == truth for prediction, truth in zip(predictions, truths, strict=True))
    print(f"{right} of {len(files)} are right")

    print("\nwhere everything is")
    places = {
        out / "predictions.png": "the images with labels and confidences",
        out / "predictions.csv": "the same as a table",
        images: "the image files",
        result.folder / "confusion_matrix.png": "which digits are taken for which",
        result.folder / "learning_curve.png": "the course of the training; metrics.csv has the numbers",
        result.folder / "best.ckpt": "the weights, with class names and preprocessing",
    }
    width = max(len(str(path)) for path in places)
    for path, what in places.items():
        print(f"  {path!s:<{width}}  {what}")
    print(f"try it yourself: visionssm predict {images} --checkpoint {result.folder}")
    return 0


def save_images(images: "LabeledImages", folder: Path, count: int) -> tuple[list[Path], list[str]]:
    """Write the first images as PNG files, and return the files and their true labels."""
    folder.mkdir(parents=True)
    files, truths = [], []
    for index in range(min(count, len(images.labels))):
        file = folder / f"{index:03d}.png"
        images.load(index).save(file)
        files.append(file)
        truths.append(images.class_names[images.labels[index]])
    return files, truths
