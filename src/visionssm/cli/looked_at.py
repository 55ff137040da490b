"""The model and the images that `erf`, `attend` and `cam` look at: shared arguments, and their meaning."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionssm.tasks.checkpoint import Classifier


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, with which weights, at which size."""
    parser.add_argument("--model", metavar="NAME", help="a model of `visionssm list`")
    parser.add_argument("--pretrained", action="store_true", help="with its published weights")
    parser.add_argument("--checkpoint", metavar="RUN|FILE", help="weights of a run, or a weight file for --model")
    parser.add_argument(
        "--img-size", type=int, nargs="+", metavar="SIZE", help="size of the input: a side, or H W [the model's]"
    )


def load_model(args: argparse.Namespace) -> "Classifier":
    """The model that the arguments name; one without weights has no names of classes.

    Raises:
        ValueError: no model is named, or the size isn't one.
        FileNotFoundError: there are no such weights.
    """
    import visionssm
    from visionssm.cli.sizes import image_size
    from visionssm.data.transforms import Preprocessing
    from visionssm.tasks.checkpoint import Classifier, is_run
    from visionssm.tasks.classifiers import named_classifier, run_classifier

    size = image_size(args.img_size)
    if args.checkpoint and is_run(args.checkpoint):
        found = run_classifier(args.checkpoint, img_size=size)
    elif args.model is None:
        raise ValueError("no model: give --model NAME (and --pretrained), or --checkpoint with the folder of a run")
    elif args.pretrained or args.checkpoint:
        found = named_classifier(args.model, args.checkpoint, img_size=size)
    else:
        model = visionssm.create_model(args.model).eval()
        print(f"note: {args.model} is untrained; --pretrained or --checkpoint load weights", file=sys.stderr)
        preprocessing = Preprocessing.of_model(model)
        if size is not None:
            preprocessing = replace(preprocessing, input_size=(preprocessing.input_size[0], *size))
        return Classifier(model, [], preprocessing, {"model": args.model}, Path(args.model), "untrained")
    return found


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
