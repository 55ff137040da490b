"""`visionssm info MODEL`: what is published about a model, and what it costs."""

import argparse
import json
from typing import Any

from visionssm.cli.sizes import image_size

EXAMPLES = """\
examples:
  visionssm info vmamba_tiny
  visionssm info vim_small --img-size 512"""


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    parser = subparsers.add_parser(
        "info", help="show a model's cost, scores, weights", description=__doc__, epilog=EXAMPLES
    )
    parser.add_argument("model", help="a name of `visionssm list`, with or without tag")
    parser.add_argument(
        "--img-size", type=int, nargs="+", metavar="SIZE", help="count for this size: one number, or H W"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the facts."""
    facts = describe(args.model, image_size(args.img_size))
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<{width}}  {value}")
    return 0


def describe(name: str, img_size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Everything known about a model: counted here, and published.

    Args:
        name: a model of this library.
        img_size: (H, W) to count multiply-adds for; by default that of the weights.

    Raises:
        ValueError: there is no such model.
    """
    import torch

    from visionssm import create_model, list_models
    from visionssm._messages import near_matches
    from visionssm.models import count_gmacs, count_parameters, find_release

    release = find_release(name)
    if release is None:
        raise ValueError(
            f"model: there is no {name!r} in this library{near_matches(name.partition('.')[0], list_models())}"
        )
    size = img_size or release.input_size[1:]
    with torch.device("meta"):
        model: Any = create_model(name.partition(".")[0]).eval()
    features = ", ".join(f"{f['num_chs']} at 1/{f['reduction']}" for f in model.feature_info)
    return {
        "model": name,
        "parameters": f"{count_parameters(model):,}",
        "parameters_published": f"{release.params:,}",
        "GFLOPs": f"{count_gmacs(model, size):.2f} at {size[0]}x{size[1]} (multiply-adds, the scan as 9 per state)",
        "GFLOPs_published": "none" if release.gflops is None else f"{release.gflops:g}",
        "features": features,
        "input": f"{release.input_size[1]}x{release.input_size[2]}, bicubic, crop {release.crop_pct:g}",
        "top1_published": "none" if release.top1 is None else f"{release.top1:.1f} %",
        "paper": f"arXiv:{release.paper}" if release.paper else "none",
        "weights": f"{release.source} (part of this package)" if release.file else release.source or "none",
        **({"trained_by": release.recipe, "top1_on_digits": f"{release.digits_top1:.2f} %"} if release.file else {}),
        "weights_licence": release.weights_license if release.has_weights else "no weights",
        "note": release.note or "none",
    }
