"""`visionssm eval`: accuracy, calibration and speed of classifiers on labelled images, side by side."""

import argparse
import csv
import io
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionssm.cli.sizes import image_size
from visionssm.cli.task_option import add_task_options, dense_task

if TYPE_CHECKING:
    from visionssm.data.images import LabeledImages
    from visionssm.tasks.checkpoint import Classifier
    from visionssm.tasks.evaluation import Evaluation

EXAMPLES = """\
examples:
  visionssm eval --checkpoint runs/digits-vmamba_nano                      on the images that its own run held back
  visionssm eval --model vmamba_tiny timm/resnet50 --data imagenet/val --out scores.csv   published weights, of timm too
  visionssm eval --model vmamba_tiny --checkpoint weights.pth --data imagenet/            a file of bare weights
  visionssm eval --checkpoint runs/a runs/b --data photos/ --img-size 256                 runs, at another size
  visionssm eval --checkpoint runs/scenes-detection-vmamba_nano --out scores.json         box and mask AP of a detector
  visionssm eval --checkpoint runs/ade-segmentation-vmamba_tiny --multi-scale             mIoU of a segmenter"""

FORMATS = (".csv", ".json", ".png")


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    parser = subparsers.add_parser("eval", help="measure classifiers", description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "--model", nargs="+", action="extend", default=[], metavar="NAME",
        help="published models, of `visionssm list` or of timm; with --checkpoint FILE, the model that FILE has weights of",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", nargs="+", action="extend", default=[], metavar="RUN|FILE",
        help="folders of runs, checkpoint files, or files of bare weights (then name the --model)",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="DATA", help="labelled images, in any form that training takes; default: the run's"
    )
    parser.add_argument(
        "--part", choices=("train", "val", "test"), help="default: test if there is one, else val, else all"
    )
    parser.add_argument(
        "--img-size",
        type=int,
        nargs="+",
        metavar="SIZE",
        help="input size: one number, or H W; default: the model's own",
    )
    parser.add_argument("--trained-weights", action="store_true", help="of runs: not the average of the weights (EMA)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images per step [64]")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that load images [one per core, up to 8, for 1000 images or more]",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    parser.add_argument(
        "--out", action="append", default=[], metavar="FILE",
        help="write a row for each model as .csv, everything as .json, the confusion matrix as .png; may be given again",
    )  # fmt: skip
    add_task_options(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print, and write the files; they are complete after each model."""
    task = dense_task(args)
    if task is not None:
        from visionssm.cli.dense import run_eval

        return run_eval(args, task)
    from visionssm.cli.report import print_evaluation, print_summary
    from visionssm.tasks.evaluation import evaluate

    files = [Path(name) for name in args.out]
    bare = _bare_files(args)
    _check(args, files, bare)
    rows: list[dict[str, Any]] = []
    for classifier, images, title in _subjects(args, bare):
        print(f"{classifier.source}: {classifier.config['model']}, {classifier.weights} weights, input "
              f"{' x '.join(map(str, classifier.preprocessing.input_size[1:]))}")  # fmt: skip
        evaluation = evaluate(classifier, images, args.batch_size, args.workers)
        print_evaluation(evaluation, title)
        print()
        rows.append(_row(classifier, evaluation, title))
        for file in files:
            _write(file, rows, evaluation)
    if len(rows) > 1:
        print_summary(rows)
    for file in files:
        print(f"written to {file}")
    return 0


def _check(args: argparse.Namespace, files: list[Path], bare: list[str]) -> None:
    """ValueError for arguments that don't go together, before anything is computed."""
    for file in files:
        if file.suffix not in FORMATS:
            raise ValueError(f"{file}: results are written as {', '.join(FORMATS)}; choose one of these endings")
    if not args.model and not args.checkpoint:
        raise ValueError("name what to measure: --model NAME for published weights, --checkpoint for a run or a file")
    image_size(args.img_size)
    count = len(args.checkpoint) + (0 if bare else len(args.model))
    if count > 1 and any(file.suffix == ".png" for file in files):
        raise ValueError(f"a .png shows the confusion matrix of one model, but {count} are named")


def _subjects(args: argparse.Namespace, bare: list[str]) -> Iterator[tuple["Classifier", "LabeledImages", str]]:
    """Each classifier that the arguments name, with the images that it is measured on and what to call them."""
    from visionssm.data.source import choose_part, read_parts
    from visionssm.tasks.checkpoint import pick_device
    from visionssm.tasks.classifiers import named_classifier, run_classifier

    device = pick_device(args.device)
    size = image_size(args.img_size)
    if (bare or args.model) and args.data is None:
        raise ValueError("name the images to measure on with --data, such as --data imagenet/val")

    @cache
    def given() -> tuple["LabeledImages", str]:
        parts = read_parts(args.data)
        images, part = choose_part(parts, args.part, args.data)
        return images, args.data if set(parts) == {"train"} else f"{args.data}, {part} images"

    for name in [] if bare else args.model:
        yield _labelled(named_classifier(name, device=device, img_size=size), *given())
    for file in bare:
        class_names = _other_classes(args.model[0], given()[0])
        yield _labelled(named_classifier(args.model[0], file, device, size, class_names), *given())
    for path in args.checkpoint:
        if path in bare:
            continue
        classifier = run_classifier(path, device, averaged=not args.trained_weights, img_size=size)
        if args.data is None or args.data == classifier.config["data"]:
            yield classifier, *_held_back(classifier, args.part)
        else:
            yield _labelled(classifier, *given())


def _bare_files(args: argparse.Namespace) -> list[str]:
    """Of the checkpoints, the files with weights of the model that is named beside them."""
    from visionssm.tasks.checkpoint import is_run

    if not args.model:
        return []
    files = [file for file in args.checkpoint if not is_run(file)]
    if files and len(args.model) > 1:
        raise ValueError(f"{files[0]} holds weights of one model, but --model names {len(args.model)}")
    return files


def _held_back(classifier: "Classifier", part: str | None) -> tuple["LabeledImages", str]:
    """Images of a run's own data: by default those that training didn't use."""
    from visionssm.data.source import choose_part, load_data

    config = classifier.config
    splits = load_data(config["data"], config["val_share"], config["split_seed"])
    if splits.class_names != classifier.class_names:
        raise ValueError(
            f"{config['data']} no longer has the classes that {classifier.source} was trained on; name other images with --data"
        )
    images, name = choose_part(splits.parts, part, config["data"])
    return images, f"{splits.name}, {name} images"


def _labelled(
    classifier: "Classifier", images: "LabeledImages", title: str
) -> tuple["Classifier", "LabeledImages", str]:
    """The images with labels that follow the classifier's classes."""
    from visionssm.tasks.classifiers import labels_for

    fitting, by_order = labels_for(classifier, images, title)
    return classifier, fitting, title + (" (classes matched by their order)" if by_order else "")


def _other_classes(name: str, images: "LabeledImages") -> list[str] | None:
    """The classes of the data, if weights must have been trained on them, for they aren't the published ones."""
    import timm

    from visionssm.tasks.classifiers import published_class_names

    cfg: Any = timm.get_pretrained_cfg(name.removeprefix("timm/"), allow_unregistered=True)
    if cfg is None:
        return images.class_names
    published = published_class_names(cfg.to_dict(), cfg.num_classes)
    fits = len(published) == len(images.class_names) or set(images.class_names) <= set(published)
    return None if fits else images.class_names


def _row(classifier: "Classifier", evaluation: "Evaluation", title: str) -> dict[str, Any]:
    """What came out for one model, in the order of the columns of the CSV file."""
    height, width = classifier.preprocessing.input_size[1:]
    return {
        "source": str(classifier.source),
        "model": classifier.config["model"],
        "weights": classifier.weights,
        "data": title,
        "img_size": f"{height}x{width}",
        "parameters": sum(parameter.numel() for parameter in classifier.model.parameters()),
        **evaluation.to_dict(),
    }


def _write(file: Path, rows: list[dict[str, Any]], evaluation: "Evaluation") -> None:
    from visionssm.tasks.figures import save_confusion_matrix
    from visionssm.tasks.run import write_text

    if file.suffix == ".png":
        save_confusion_matrix(evaluation, file)
    elif file.suffix == ".json":
        write_text(file, json.dumps(rows if len(rows) > 1 else rows[0], indent=1))
    else:
        text = io.StringIO()
        table = csv.DictWriter(text, [name for name in rows[0] if name != "per_class"], extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
        write_text(file, text.getvalue())
