"""`visionssm eval`: accuracy and speed of a trained classifier on labelled images."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionssm.data.images import LabeledImages
    from visionssm.tasks.checkpoint import Classifier

EXAMPLES = """\
examples:
  visionssm eval --checkpoint runs/digits-vmamba_nano                   on the test images of the run's own data
  visionssm eval --checkpoint runs/photos-vim_tiny/last.ckpt --data other/   on another folder with the same classes"""


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    parser = subparsers.add_parser("eval", help="measure a trained classifier", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--checkpoint", required=True, metavar="RUN|FILE", help="folder of a run, or a checkpoint file")
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="folder with one sub-folder per class, or with train/, val/, test/; default: the run's",
    )
    parser.add_argument("--part", choices=("train", "val", "test"), help="default: test if there is one, else val")
    parser.add_argument(
        "--trained-weights", action="store_true", help="the weights themselves, not their average (EMA)"
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images per step [64]")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that load images [0]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    parser.add_argument(
        "--out",
        action="append",
        default=[],
        metavar="FILE",
        help="write the result as .json, or the confusion matrix as .png; may be given twice",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate, print, and write the files."""
    from visionssm.cli.report import print_evaluation
    from visionssm.tasks.checkpoint import load_classifier, pick_device
    from visionssm.tasks.evaluation import evaluate
    from visionssm.tasks.figures import save_confusion_matrix
    from visionssm.tasks.run import write_text

    files = [Path(name) for name in args.out]
    for file in files:
        if file.suffix not in (".json", ".png"):
            raise ValueError(f"{file}: results are written as .json or .png; choose one of these endings")
    classifier = load_classifier(args.checkpoint, pick_device(args.device), averaged=not args.trained_weights)
    images, name = images_to_evaluate(classifier, args.data, args.part)
    print(f"{classifier.source}: {classifier.config['model']}, {classifier.weights} weights")
    evaluation = evaluate(classifier, images, args.batch_size, args.workers)
    print_evaluation(evaluation, name)
    for file in files:
        if file.suffix == ".json":
            write_text(file, json.dumps(evaluation.to_dict(), indent=1))
        else:
            save_confusion_matrix(evaluation, file)
        print(f"written to {file}")
    return 0


def images_to_evaluate(classifier: "Classifier", data: str | None, part: str | None) -> tuple["LabeledImages", str]:
    """The images that the arguments ask for, and what to call them.

    Another folder than the run's is taken as it lies there. Of the run's own data, the images are those that training
    held back.

    Raises:
        FileNotFoundError: the folder isn't there.
        ValueError: the folder has no such part, or classes that the classifier doesn't know.
    """
    from visionssm.data.digits import load_digits
    from visionssm.data.folder import load_image_folder, scan_class_folders

    config = classifier.config
    source = data or config["data"]
    if source != "digits" and source != config["data"]:
        folder = _labelled_folder(Path(source).expanduser(), part)
        return scan_class_folders(folder, classifier.class_names), str(folder)
    splits = (
        load_digits() if source == "digits" else load_image_folder(source, config["val_share"], config["split_seed"])
    )
    if splits.class_names != classifier.class_names:
        raise ValueError(
            f"{source} has {len(splits.class_names)} classes ({', '.join(splits.class_names[:5])}, ...), but the "
            f"checkpoint was trained on {len(classifier.class_names)} ({', '.join(classifier.class_names[:5])}, ...)"
        )
    part = part or ("test" if splits.test is not None else "val")
    images = {"train": splits.train, "val": splits.val, "test": splits.test}[part]
    if images is None:
        raise ValueError(f"{source} has no test images; choose --part val")
    return images, f"{splits.name}, {part} images"


def _labelled_folder(root: Path, part: str | None) -> Path:
    """The folder that holds the class folders: `root/part` if a part is asked for, else test/, val/, or `root` itself."""
    if part:
        if not (root / part).is_dir():
            raise ValueError(f"{root} has no folder {part}/")
        return root / part
    return next((root / name for name in ("test", "val") if (root / name).is_dir()), root)
