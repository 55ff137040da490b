"""`visionssm convert IN OUT`: a weight file from published to own names, or back."""

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  visionssm convert vssm1_tiny_0230s_ckpt_epoch_264.pth vmamba_tiny.safetensors --model vmamba_tiny
  visionssm convert vmamba_tiny.safetensors official.pth --model vmamba_tiny --to published"""


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    parser = subparsers.add_parser(
        "convert", help="convert a weight file between published and own names", description=__doc__, epilog=EXAMPLES
    )
    parser.add_argument("input", metavar="IN", help="any published or own weight file")
    parser.add_argument("output", metavar="OUT", help="file to write: .safetensors, or .pth for a torch file")
    parser.add_argument("--model", required=True, help="which model the weights belong to")
    parser.add_argument("--to", choices=("own", "published"), default="own", help="names to write [own]")
    parser.add_argument("--container", help="part of the file to read first, such as model_ema")
    parser.add_argument("--num-classes", type=int, help="classes of the weights, where not as published")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Convert, and say what was written."""
    from visionssm.models import convert_checkpoint

    output = Path(args.output)
    if output.exists() and not args.force:
        raise ValueError(f"{output} exists: choose another name, or give --force to replace it")
    options = {} if args.num_classes is None else {"num_classes": args.num_classes}
    names = convert_checkpoint(
        args.model, args.input, output, to=args.to, prefer=(args.container,) if args.container else (), **options
    )
    print(f"wrote {output}: {len(names)} tensors under {args.to} names, such as {names[0]}")
    return 0
