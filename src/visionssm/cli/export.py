"""`visionssm export MODEL`: a model as a file that runs without this library."""

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  visionssm export vmamba_tiny --pretrained
  visionssm export --checkpoint runs/photos-vim_tiny --format onnx --out photos.onnx
  visionssm export vmamba_tiny --pretrained --features --img-size 512 --format torch-export"""


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    parser = subparsers.add_parser(
        "export",
        help="write ONNX, torch.export, AOTInductor files",
        description="Write a model as a file that runs without this library. The file is run and compared with the model\n"
        "at several sizes and batches first; if it differs, nothing is written.",
        epilog=EXAMPLES,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a model of `visionssm list`")
    parser.add_argument("--pretrained", action="store_true", help="with its published weights")
    parser.add_argument("--checkpoint", metavar="RUN|FILE", help="weights of a run, or a weight file for MODEL")
    parser.add_argument("--format", default="onnx", metavar="NAME", help="onnx, torch-export or aoti [onnx]")
    parser.add_argument("--features", action="store_true", help="the maps of all stages instead of the classes")
    parser.add_argument(
        "--img-size", type=int, nargs="+", metavar="SIZE", help="size of the example: a side, or H W [the model's]"
    )
    parser.add_argument("--static", action="store_true", help="only batches of one image of that size")
    parser.add_argument("--fuse", action="store_true", help="fold BatchNorm into convolutions first")
    parser.add_argument("--int8", action="store_true", help="linear layers in 8-bit integers (torch-export only)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file [MODEL.onnx or MODEL.pt2]")


def run(args: argparse.Namespace) -> int:
    """Export, compare, print."""
    import sys

    from visionssm.cli.looked_at import load_model
    from visionssm.export import FORMATS, FeatureMaps, export, fuse, quantize_linear

    if args.format not in FORMATS:
        raise ValueError(f"--format: got {args.format!r}, choose from {', '.join(FORMATS)}")
    if args.int8 and args.format != "torch-export":
        raise ValueError("--int8 goes with --format torch-export: ONNX and AOTInductor have quantisers of their own")
    classifier = load_model(args)
    model = classifier.model
    if args.features:
        model = FeatureMaps(model)
    model = fuse(model) if args.fuse else model
    model = quantize_linear(model) if args.int8 else model
    metadata = {
        "model": classifier.name,
        "preprocessing": classifier.preprocessing.to_dict(),
        "class_names": None if args.features else classifier.class_names or None,
        "pixels": "RGB, divided by 255, minus mean, divided by std",
    }
    H, W = classifier.preprocessing.input_size[1:]
    out = args.out or Path(f"{classifier.name}{FORMATS[args.format]}")
    print(f"exporting {classifier.name} at {H}x{W}, which takes up to minutes", file=sys.stderr, flush=True)
    exported = export(
        model, out, args.format, img_size=(H, W), dynamic=False if args.static else None, metadata=metadata
    )
    for (batch, height, width), error in exported.errors.items():
        print(f"{batch} x {height}x{width}: largest difference {error:.1e} of the largest output")
    size = exported.file.stat().st_size / 2**20
    print(f"written to {exported.file}: {size:.1f} MiB, {', '.join(exported.outputs)}")
    return 0
