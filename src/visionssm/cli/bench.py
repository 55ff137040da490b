"""`visionssm bench`: models side by side: throughput, latency, memory."""

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  visionssm bench vmamba_tiny --vs swin_tiny_patch4_window7_224
  visionssm bench vim_tiny --vs deit_tiny_patch16_224 --sizes 224,512,1024 --batch 1 --out results/
  visionssm bench vmamba_tiny --vs swin_tiny_patch4_window7_224 --train --equal"""


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    parser = subparsers.add_parser(
        "bench",
        help="measure models side by side",
        description="Measure models side by side: throughput, latency, peak memory. The models take turns in one process, so\n"
        "ratios hold on a busy machine too. Each of ours is first checked against plain torch.",
        epilog=EXAMPLES,
    )
    parser.add_argument("models", nargs="*", default=["vmamba_tiny"], metavar="MODEL", help="models [vmamba_tiny]")
    parser.add_argument("--vs", default="", metavar="MODEL,...", help="models of timm to compare with")
    parser.add_argument("--sizes", default="224", metavar="N,...", help="sides of the images in pixels, or HxW [224]")
    parser.add_argument("--batch", default="8", metavar="N,...", help="images per call [8]")
    parser.add_argument("--dtype", default="float32", metavar="NAME,...", help="float32, bfloat16, float16 [float32]")
    parser.add_argument("--device", default=None, help="cpu, cuda, ... [cuda where there is one]")
    parser.add_argument("--train", action="store_true", help="forward and backward instead of inference")
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    parser.add_argument("--equal", action="store_true", help="give every model the matrix product that ours use")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each model and setting [10]")
    parser.add_argument("--threads", type=int, help="CPU threads [torch's]")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="also write bench.json, bench.csv and bench.png there"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, setting by setting, and print and write what is there, also where a later setting fails or is interrupted."""
    import sys

    import torch

    from visionssm._create import check_name
    from visionssm.bench import compare, table
    from visionssm.bench.measure import settings

    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads: got {args.threads}, need a positive number")
        torch.set_num_threads(args.threads)
    names = [*args.models, *(name for name in args.vs.split(",") if name)]
    for name in names:
        check_name(name)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    common = {"device": device, "train": args.train, "compile": args.compile, "equal": args.equal}
    dtypes = [name for name in args.dtype.split(",") if name]
    chosen = list(settings(_sizes(args.sizes), _numbers("--batch", args.batch), dtypes, **common))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    results: list[Any] = []
    try:
        for setting in chosen:
            results += compare(
                names, setting, seconds=args.seconds, progress=lambda line: print(line, file=sys.stderr, flush=True)
            )
            if args.out is not None:
                _write(results, args.out)
    finally:
        if results:
            print(table(results))
            if args.out is not None:
                print(f"\nwrote bench.json, bench.csv and bench.png to {args.out}")
    return 0


def _write(results: list[Any], folder: Path) -> None:
    from visionssm.bench import plot, write_csv, write_json

    write_json(results, folder / "bench.json")
    write_csv(results, folder / "bench.csv")
    plot(results, folder / "bench.png")


def _sizes(text: str) -> list[tuple[int, int]]:
    sizes = []
    for part in text.split(","):
        sides = _numbers("--sizes", part.replace("x", ","))
        if len(sides) > 2:
            raise ValueError(f"--sizes: got '{part}', need a side in pixels, or HxW")
        sizes.append((sides[0], sides[-1]))
    return sizes


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{option}: got '{text}', need positive whole numbers separated by commas")
    return numbers
