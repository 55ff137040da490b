"""`visionssm verify MODEL FILE`: load weights strictly and print a fingerprint of what the model computes with them."""

import argparse
from typing import Any

EXAMPLES = """\
example:
  visionssm verify vmamba_tiny vssm1_tiny_0230s_ckpt_epoch_264.pth"""


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    parser = subparsers.add_parser(
        "verify",
        help="check that a weight file fits a model, and print a fingerprint",
        description=__doc__,
        epilog=EXAMPLES,
    )
    parser.add_argument("model", help="a name of `visionssm list`, with or without tag")
    parser.add_argument("file", help="weight file")


def run(args: argparse.Namespace) -> int:
    """Print the fingerprint; 1 if it is not that of the entry."""
    from visionssm import create_model
    from visionssm.models import find_release, fingerprint

    model = create_model(args.model, checkpoint=args.file).eval()
    found = fingerprint(model)
    print(f"{args.file} fits {args.model}: every tensor has its name and shape")
    print("fingerprint  " + "  ".join(f"{index}:{value:.4f}" for index, value in found))
    release = find_release(args.model)
    if release is None or not release.fingerprint:
        print("no fingerprint is on record for these weights")
        return 0
    same = all(abs(value - known) < 2e-4 for (_, value), known in zip(found, release.fingerprint, strict=True))
    print("equal to the one on record" if same else f"NOT the one on record: {release.fingerprint}")
    return 0 if same else 1
