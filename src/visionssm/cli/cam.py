"""`visionssm cam IMAGE`: where a classifier sees a class (Grad-CAM)."""

import argparse
from typing import Any

EXAMPLES = """\
examples:
  visionssm cam cat.jpg --model vmamba_tiny --pretrained
  visionssm cam photo.jpg --checkpoint runs/photos-vim_tiny --class tulip --layer blocks.20"""


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    from visionssm.cli.looked_at import add_model_arguments, add_out_argument

    parser = subparsers.add_parser("cam", help="draw where a class is seen", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    add_model_arguments(parser)
    parser.add_argument(
        "--class", dest="class_name", metavar="NAME|N", help="name or number of a class [the likeliest]"
    )
    parser.add_argument(
        "--layer", metavar="NAME", help="stages.N, or blocks.N in plain models [the last that has a say]"
    )
    add_out_argument(parser, "cam.png")


def run(args: argparse.Namespace) -> int:
    """Compute and draw."""
    import torch

    from visionssm.cli.looked_at import check_png, load_model
    from visionssm.data.images import read_image
    from visionssm.data.transforms import input_and_photo
    from visionssm.visualize import grad_cam
    from visionssm.visualize.figures import save_overlay

    out = check_png(args.out)
    image = read_image(args.image)
    classifier = load_model(args)
    names = classifier.class_names
    x, photo = input_and_photo(classifier.preprocessing, image)
    with torch.no_grad():
        confidences = classifier.model(x).softmax(1)[0]
    index = int(confidences.argmax()) if args.class_name is None else class_index(args.class_name, names)
    cam = grad_cam(classifier.model, x, index, args.layer)[0]
    label = names[index] if names else f"class {index}"
    share = f"{100 * float(confidences[index]):.1f} %"
    save_overlay(photo, cam, out, f"{label}, {share} ({classifier.name})", "evidence for the class, largest = 1")
    print(f"{args.image}: {label} {share}\nwritten to {out}")
    return 0


def class_index(given: str, names: list[str] | None) -> int:
    """The number of a class by its name or number.

    >>> class_index("dog", ["cat", "dog"]), class_index("7", None)
    (1, 7)
    """
    from visionssm._messages import near_matches

    if names and given in names:
        return names.index(given)
    if given.isdecimal():
        return int(given)
    if not names:
        raise ValueError(f"--class: got {given!r}, but these weights carry no class names; give a number")
    raise ValueError(
        f"--class: there is no {given!r}{near_matches(given, names)}; the model knows {len(names)} classes"
    )
