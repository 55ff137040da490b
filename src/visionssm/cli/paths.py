"""`visionssm paths NAME`: draw the order in which a family walks over an image."""

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  visionssm paths vmamba --grid 14x14
  visionssm paths local_mamba --grid 14x14 --out walk.gif"""


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    parser = subparsers.add_parser("paths", help="draw scan paths", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("name", metavar="NAME", help="a family, or a traversal such as hilbert, spiral, zigzag")
    parser.add_argument("--grid", default="14x14", metavar="HxW", help="size of the map [14x14]")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="a .png, or a .gif in which the paths walk [NAME-HxW.png]"
    )


def run(args: argparse.Namespace) -> int:
    """Draw."""
    from visionssm.visualize.walks import save_walks, save_walks_animation, walk

    H, W = grid(args.grid)
    table, names = walk(args.name, H, W)
    out = args.out or Path(f"{args.name}-{H}x{W}.png")
    writers = {".png": save_walks, ".gif": save_walks_animation}
    if out.suffix.lower() not in writers:
        raise ValueError(f"--out: got {out}, need a name that ends in .png or .gif")
    writers[out.suffix.lower()](table, names, (H, W), out, args.name)
    print(f"{len(table)} path{'s' if len(table) != 1 else ''} of {table.shape[1]} steps, written to {out}")
    return 0


def grid(text: str) -> tuple[int, int]:
    """(H, W) from text.

    >>> grid("7x14"), grid("8")
    ((7, 14), (8, 8))
    """
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"--grid: got {text!r}, need HxW such as 14x14")
    return int(sides[0]), int(sides[-1])
