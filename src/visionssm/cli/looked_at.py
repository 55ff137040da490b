"""The model and the images that `erf`, `attend` and `cam` look at: shared arguments, and their meaning."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from visionssm.data.transforms import Preprocessing


class LookedAt(NamedTuple):
    """A model in eval mode, how its images are prepared, and the names of its classes if they are known."""

    model: "nn.Module"
    name: str
    preprocessing: "Preprocessing"
    class_names: list[str] | None


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, with which weights, at which size."""
    parser.add_argument("--model", metavar="NAME", help="a model of `visionssm list`")
    parser.add_argument("--pretrained", action="store_true", help="with its published weights")
    parser.add_argument("--checkpoint", metavar="RUN|FILE", help="weights of a run, or a weight file for --model")
    parser.add_argument(
        "--img-size", type=int, nargs="+", metavar="SIZE", help="size of the input: a side, or H W [the model's]"
    )


def load_model(args: argparse.Namespace) -> LookedAt:
    """The model that the arguments name.

    Raises:
        ValueError: no model is named, or the size isn't one.
        FileNotFoundError: there are no such weights.
    """
    import visionssm
    from visionssm.data.transforms import Preprocessing
    from visionssm.tasks.checkpoint import load_classifier

    if args.checkpoint and (Path(args.checkpoint).is_dir() or args.checkpoint.endswith(".ckpt")):
        trained = load_classifier(args.checkpoint)
        found = LookedAt(trained.model, trained.config["model"], trained.preprocessing, trained.class_names)
    elif args.model is None:
        raise ValueError("no model: give --model NAME (and --pretrained), or --checkpoint with the folder of a run")
    else:
        model = visionssm.create_model(args.model, pretrained=args.pretrained, checkpoint=args.checkpoint).eval()
        if not args.pretrained and not args.checkpoint:
            print(f"note: {args.model} is untrained; --pretrained or --checkpoint load weights", file=sys.stderr)
        found = LookedAt(model, args.model, Preprocessing.of_model(model), None)
    if args.img_size is None:
        return found
    if len(args.img_size) > 2 or min(args.img_size) < 1:
        raise ValueError(f"--img-size: got {' '.join(map(str, args.img_size))}, need one positive number, or H W")
    size = (found.preprocessing.input_size[0], args.img_size[0], args.img_size[-1])
    return found._replace(preprocessing=replace(found.preprocessing, input_size=size))


def prepared(looked_at: LookedAt, image: "Image.Image") -> tuple["Tensor", "Tensor"]:
    """The model's input (1, channels, H, W), and the same pixels 0 .. 1 (channels, H, W) for drawing."""
    import torch

    from visionssm.data.transforms import eval_transform

    x = eval_transform(looked_at.preprocessing)(image)
    mean, std = (torch.tensor(v)[:, None, None] for v in (looked_at.preprocessing.mean, looked_at.preprocessing.std))
    return x[None], (x * std + mean).clamp(0, 1)


def add_out_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """Where the picture goes."""
    parser.add_argument("--out", type=Path, default=Path(default), metavar="FILE.png", help=f"the picture [{default}]")


def check_png(path: Path) -> Path:
    """The path, if it ends in .png.

    Raises:
        ValueError: another suffix.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"--out: got {path}, need a name that ends in .png")
    return path


def sample_photos() -> list[Any]:
    """The two photos that come with scikit-learn."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(photo) for photo in load_sample_images().images]
