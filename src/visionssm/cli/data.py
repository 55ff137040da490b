"""`visionssm data`: make data sets to train and test on without a download."""

import argparse
from typing import Any

EXAMPLES = """\
examples:
  visionssm data make-scenes scenes/                        400 training and 100 validation scenes of 128 x 128
  visionssm train --task detection --data scenes/           then train a detector on them"""


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    parser = subparsers.add_parser("data", help="make data sets", description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "action", choices=("make-scenes",), help="scenes of handwritten digits with boxes, masks and labels"
    )
    parser.add_argument("folder", metavar="DIR", help="a new or empty folder; coco/ and ade20k/ are written below it")
    parser.add_argument(
        "--images", type=int, default=400, metavar="N", help="training scenes; a quarter more to validate [400]"
    )
    parser.add_argument(
        "--size", type=int, default=128, metavar="S", help="height and width of a scene in pixels [128]"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="chooses the scenes [0]")


def run(args: argparse.Namespace) -> int:
    """Write the scenes, and say what can be done with them."""
    from visionssm.data.scenes import make_scenes, validation_scenes

    folder = make_scenes(args.folder, args.images, args.size, args.seed)
    print(
        f"{args.images} training and {validation_scenes(args.images)} validation scenes "
        f"of {args.size} x {args.size} pixels"
    )
    print(f"{folder}/coco      images, boxes and masks in COCO's layout")
    print(f"{folder}/ade20k    images and label maps in ADE20K's layout")
    print(f"next      visionssm train --task detection --data {folder}")
    return 0
