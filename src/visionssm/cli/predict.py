"""`visionssm predict`: classes and confidences for image files."""

import argparse
from pathlib import Path
from typing import Any

MOST_LINES = 40

EXAMPLES = """\
examples:
  visionssm predict photo.jpg --checkpoint runs/photos-vim_tiny
  visionssm predict holiday/ 'more/*.png' --checkpoint best.ckpt --out labels.csv --out sheet.png"""


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    parser = subparsers.add_parser("predict", help="classify image files", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders, or patterns in quotes")
    parser.add_argument("--checkpoint", required=True, metavar="RUN|FILE", help="folder of a run, or a checkpoint file")
    parser.add_argument("--top-k", type=int, default=3, metavar="K", help="classes to report for each image [3]")
    parser.add_argument(
        "--out", action="append", default=[], metavar="FILE",
        help="write .csv, .json, or a .png with the images and their labels; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--trained-weights", action="store_true", help="the weights themselves, not their average (EMA)"
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images per step [64]")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that load images [0]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")


def run(args: argparse.Namespace) -> int:
    """Predict, print, and write the files."""
    from visionssm.data.folder import find_images
    from visionssm.tasks.checkpoint import load_classifier, pick_device
    from visionssm.tasks.prediction import predict, writer_for

    writers = [(Path(name), writer_for(Path(name))) for name in args.out]
    paths = find_images(args.images)
    classifier = load_classifier(args.checkpoint, pick_device(args.device), averaged=not args.trained_weights)
    predictions, unreadable = predict(classifier, paths, args.top_k, args.batch_size, args.workers)
    for prediction in predictions[:MOST_LINES]:
        pairs = zip(prediction.labels, prediction.confidences, strict=True)
        print(f"{prediction.image}  " + "  ".join(f"{label} {100 * share:.1f} %" for label, share in pairs))
    if len(predictions) > MOST_LINES:
        print(f"... and {len(predictions) - MOST_LINES} more" + ("" if writers else " (--out FILE.csv writes all)"))
    for image in unreadable:
        print(f"{image.name}  can't be read: {image.reason}")
    for file, write in writers:
        write(file, predictions, unreadable)
        print(f"written to {file}")
    return 0
