"""`visionssm erf`: the effective receptive field of a model."""

import argparse
from typing import Any

EXAMPLES = """\
examples:
  visionssm erf --model vmamba_tiny --pretrained --img-size 1024 --images imagenet/val --count 50
  visionssm erf --checkpoint runs/digits-vmamba_nano --out erf.png"""


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    from visionssm.cli.looked_at import add_model_arguments, add_out_argument

    parser = subparsers.add_parser(
        "erf",
        help="draw the effective receptive field",
        description="Which input pixels the centre of the last map depends on, averaged over images (the procedure of\n"
        "RepLKNet, arXiv 2203.06717). Without --images: the two photos that come with scikit-learn.",
        epilog=EXAMPLES,
    )
    add_model_arguments(parser)
    parser.add_argument("--images", nargs="+", metavar="IMAGE", help="image files, folders, or patterns in quotes")
    parser.add_argument("--count", type=int, default=50, metavar="N", help="images at most, picked by --seed [50]")
    parser.add_argument("--seed", type=int, default=0, help="picks the images [0]")
    add_out_argument(parser, "erf.png")


def run(args: argparse.Namespace) -> int:
    """Compute, print the areas, draw."""
    import random
    import sys

    from visionssm.cli.looked_at import check_png, load_model, sample_photos
    from visionssm.data.folder import find_images
    from visionssm.data.images import read_image
    from visionssm.data.transforms import input_and_photo
    from visionssm.visualize import area_ratio, effective_receptive_field
    from visionssm.visualize.figures import SHARES, save_receptive_field

    out = check_png(args.out)
    if args.count < 1:
        raise ValueError(f"--count: got {args.count}, need at least 1")
    classifier = load_model(args)
    sources: list[Any] = sample_photos() if args.images is None else find_images(args.images)
    random.Random(args.seed).shuffle(sources)
    unreadable = []

    def inputs() -> Any:
        for number, source in enumerate(sources[: args.count], start=1):
            print(f"\rimage {number} of {min(args.count, len(sources))}", end="", file=sys.stderr, flush=True)
            try:
                image = source if args.images is None else read_image(source)
            except OSError as error:
                unreadable.append(f"{source} can't be read: {error}")
                continue
            yield input_and_photo(classifier.preprocessing, image)[0]
        print(file=sys.stderr)

    field = effective_receptive_field(classifier.model, inputs())
    for line in unreadable:
        print(line)
    H, W = field.contribution.shape
    print(
        f"{classifier.name} at {H}x{W}, {field.images} images, {field.skipped} skipped for gradients that are not finite"
    )
    for share in SHARES:
        found = area_ratio(field.displayed(0.25), share)
        square = (
            "no square inside the image"
            if found is None
            else f"{found[0]}x{found[0]} pixels, {found[1]:.3f} of the area"
        )
        print(f"share {share:<5g} of contribution^0.25: {square}")
    save_receptive_field(field, out, f"effective receptive field of {classifier.name}")
    print(f"written to {out}")
    return 0
