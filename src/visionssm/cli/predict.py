"""`visionssm predict`: classes and confidences for image files."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionssm.cli.task_option import add_task_options, dense_task

if TYPE_CHECKING:
    from visionssm.tasks.checkpoint import Classifier

MOST_LINES = 40

EXAMPLES = """\
examples:
  visionssm predict photo.jpg --checkpoint runs/photos-vim_tiny
  visionssm predict holiday/ 'more/*.png' --checkpoint best.ckpt --out labels.csv --out sheet.png
  visionssm predict photo.jpg --model vmamba_tiny          published weights, with ImageNet's classes
  visionssm predict street/ --checkpoint runs/scenes-detection-vmamba_nano --out found/   boxes, masks, labels, scores
  visionssm predict street/ --checkpoint runs/ade-segmentation-vmamba_tiny --out labels/  colour maps, label PNGs"""


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    parser = subparsers.add_parser("predict", help="classify image files", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders, or patterns in quotes")
    parser.add_argument("--checkpoint", metavar="RUN|FILE", help="folder of a run, or a checkpoint file")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a published model instead, or the model that --checkpoint FILE has bare weights of",
    )
    parser.add_argument("--top-k", type=int, default=3, metavar="K", help="classes to report for each image [3]")
    parser.add_argument(
        "--out", action="append", default=[], metavar="FILE",
        help="write .csv, .json, or a .png with the images and their labels; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--img-size",
        type=int,
        nargs="+",
        metavar="SIZE",
        help="input size: one number, or H W; default: the model's own",
    )
    parser.add_argument(
        "--trained-weights", action="store_true", help="the weights themselves, not their average (EMA)"
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images per step [64]")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that load images [one per core, up to 8, for 1000 images or more]",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    add_task_options(parser)
    parser.add_argument(
        "--score", type=float, default=0.5, metavar="S", help="detection: lowest score that is drawn [0.5]"
    )


def run(args: argparse.Namespace) -> int:
    """Predict, print, and write the files."""
    task = dense_task(args)
    if task is not None:
        from visionssm.cli.dense import run_predict

        return run_predict(args, task)
    from visionssm.data.folder import find_images
    from visionssm.tasks.prediction import predict, writer_for

    writers = [(Path(name), writer_for(Path(name))) for name in args.out]
    paths = find_images(args.images)
    predictions, unreadable = predict(_classifier(args), paths, args.top_k, args.batch_size, args.workers)
    for prediction in predictions[:MOST_LINES]:
        pairs = zip(prediction.labels, prediction.confidences, strict=True)
        print(f"{prediction.image}  " + "  ".join(f"{label} {100 * share:.1f} %" for label, share in pairs))
    if len(predictions) > MOST_LINES:
        print(f"... and {len(predictions) - MOST_LINES} more" + ("" if writers else " (--out FILE.csv writes all)"))
    for image in unreadable:
        print(f"{image.name}  can't be read: {image.reason}")
    if unreadable:
        print(f"{len(unreadable)} of {len(paths)} images can't be read")
    for file, write in writers:
        write(file, predictions, unreadable)
        print(f"written to {file}")
    return 0


def _classifier(args: argparse.Namespace) -> "Classifier":
    """The classifier that the arguments name."""
    from visionssm.cli.sizes import image_size
    from visionssm.tasks.checkpoint import pick_device
    from visionssm.tasks.classifiers import named_classifier, run_classifier

    size = image_size(args.img_size)
    device = pick_device(args.device)
    if args.model is None and args.checkpoint is None:
        raise ValueError("name the classifier: --checkpoint RUN|FILE, or --model NAME for published weights")
    if args.model is None:
        return run_classifier(args.checkpoint, device, averaged=not args.trained_weights, img_size=size)
    return named_classifier(args.model, args.checkpoint, device, size)
