"""`visionssm attend IMAGE --at X,Y`: what flows into a pixel along each scan path."""

import argparse
from typing import Any

EXAMPLES = """\
examples:
  visionssm attend cat.jpg --at 0.4,0.6 --model vmamba_tiny --pretrained
  visionssm attend cat.jpg --at 0.5,0.5 --model vim_tiny --pretrained --layer blocks.20"""


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    from visionssm.cli.looked_at import add_model_arguments, add_out_argument

    parser = subparsers.add_parser(
        "attend",
        help="draw the implicit attention of a scan",
        description="For frozen step sizes and projections a scan is linear in its input: this draws how much every pixel\n"
        "contributes to one of them, along each path of one scan.",
        epilog=EXAMPLES,
    )
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument("--at", required=True, metavar="X,Y", help="the query, as fractions of width and height")
    add_model_arguments(parser)
    parser.add_argument("--layer", metavar="NAME", help="a block, such as stages.2.blocks.1 [the middle scan]")
    add_out_argument(parser, "attention.png")


def run(args: argparse.Namespace) -> int:
    """Compute and draw."""
    from visionssm.cli.looked_at import check_png, load_model
    from visionssm.data.images import read_image
    from visionssm.data.transforms import input_and_photo
    from visionssm.visualize import attention_row, record_scans
    from visionssm.visualize.figures import save_attention

    out = check_png(args.out)
    x, y = point(args.at)
    image = read_image(args.image)
    classifier = load_model(args)
    tensor, photo = input_and_photo(classifier.preprocessing, image)
    records = record_scans(classifier.model, tensor)
    record = choose_record(records, args.layer)
    pixel = record.pixel(x, y)
    maps = attention_row(record, pixel)
    names = [f"path {k + 1}" for k in range(record.num_paths)]
    H, W = record.grid
    save_attention(photo, maps, names, pixel, out, f"{classifier.name}, {record.module} ({H}x{W})")
    print(f"{record.module}: map of {H}x{W}, query at row {pixel[0]}, column {pixel[1]}\nwritten to {out}")
    return 0


def point(text: str) -> tuple[float, float]:
    """Two fractions from text.

    >>> point("0.25,1")
    (0.25, 1.0)
    """
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--at: got {text!r}, need X,Y as fractions such as 0.5,0.25") from None
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError(f"--at: got {text!r}, both fractions must lie between 0 and 1")
    return x, y


def choose_record(records: list[Any], layer: str | None) -> Any:
    """The scan of a layer, or the middle one.

    Raises:
        ValueError: no scan there; the message lists those that are.
    """
    from visionssm.visualize import middle_record

    if layer is None:
        return middle_record(records)
    for record in records:
        if record.module == layer or record.module.startswith(f"{layer}."):
            return record
    raise ValueError(f"--layer: got {layer!r}, choose from {', '.join(record.module for record in records)}")
