"""`visionssm publish RUN`: a trained model as a folder for the Hugging Face hub."""

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  visionssm publish runs/photos-vim_tiny --out photos-vim-tiny --license apache-2.0
  visionssm publish runs/photos-vim_tiny --out photos-vim-tiny --push me/photos-vim-tiny"""


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    parser = subparsers.add_parser(
        "publish", help="write weights and card for the hub", description=__doc__, epilog=EXAMPLES
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or a checkpoint of one")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--license", default="unstated", metavar="NAME", help="of the weights, such as apache-2.0")
    parser.add_argument("--push", metavar="USER/NAME", help="also upload it; needs `hf auth login`")
    parser.add_argument("--private", action="store_true", help="upload for you alone")


def run(args: argparse.Namespace) -> int:
    """Write, and upload if asked to."""
    from visionssm.hub import loading_code, push_to_hub, save_for_hub

    folder = save_for_hub(args.run, args.out, args.license)
    print(f"written to {folder}; to load it:")
    print("\n".join(f"  {line}" for line in loading_code(folder).splitlines() if line))
    if args.push:
        print(f"uploaded: {push_to_hub(folder, args.push, args.private)}")
    return 0
