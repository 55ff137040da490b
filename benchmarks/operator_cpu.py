"""Speed of the operator on the CPU: the `native` back-end against `torch` and `reference`, forward and backward.

    python benchmarks/operator_cpu.py [--threads 1 2] [--dtypes float32 bfloat16] [--quick] [--json FILE]

Every ratio is between times of one run. Outputs are compared before anything is timed. A time is the median of several, with half
the range as its spread. Prints a table, and writes all numbers with machine, versions and date as JSON.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from visionssm._machine import processor
from visionssm.ops import native, path_scan, paths


@dataclass(frozen=True)
class Shape:
    """One call: K paths over `batch` maps of H x W positions and E channels, N states, dt of rank R (0: dense)."""

    name: str
    batch: int
    H: int
    W: int
    E: int
    N: int
    R: int
    K: int

    @property
    def states(self) -> int:
        return self.batch * self.H * self.W * self.E * self.N * self.K


SHAPES = (
    Shape("VMamba stage 1", 1, 56, 56, 96, 1, 6, 4),
    Shape("VMamba stage 1, dense dt", 1, 56, 56, 96, 1, 0, 4),
    Shape("VMamba stage 3", 1, 14, 14, 384, 1, 24, 4),
    Shape("VMamba stage 3, batch 8", 8, 14, 14, 384, 1, 24, 4),
    Shape("VMamba at 1024, stage 1", 1, 256, 256, 96, 1, 6, 4),
    Shape("one path, N=16, 56 x 56", 1, 56, 56, 384, 16, 0, 1),
    Shape("Vim at 224, one direction", 1, 14, 14, 384, 16, 12, 1),
    Shape("Vim at 1248, one direction", 1, 78, 78, 384, 16, 12, 1),
    Shape("MambaVision stage 3", 8, 14, 14, 160, 8, 10, 1),
)


def make_inputs(shape: Shape, dtype: torch.dtype) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Arguments of path_scan as models give them: dt, B and C are slices of one projection."""
    generator = torch.Generator().manual_seed(0)
    batch, L, E, N, R, K = shape.batch, shape.H * shape.W, shape.E, shape.N, shape.R, shape.K

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    low_rank, B, C = draw(batch, L, K, R + 2 * N).to(dtype).split([R, N, N], dim=3)
    dt = low_rank if R else draw(batch, L, K, E).to(dtype)
    weight = (draw(K, E, R) / R**0.5).to(dtype) if R else None
    A = -torch.rand(K, E, N, generator=generator) * N - 0.1
    path = paths.cross(shape.H, shape.W) if K == 4 else paths.raster(shape.H, shape.W)
    return [draw(batch, L, E).to(dtype), dt, A, B, C, draw(K, E), draw(K, E) - 3, path], {"dt_weight": weight}


def measure(run: Callable[[], Any], budget: float) -> tuple[float, float]:
    """Median seconds of one call, and half the range as a fraction of it."""
    run()
    times: list[float] = []
    stop = time.perf_counter() + budget
    while len(times) < 3 or (time.perf_counter() < stop and len(times) < 200):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    times.sort()
    middle = times[len(times) // 8 : len(times) - len(times) // 8] if len(times) >= 8 else times
    median = statistics.median(times)
    return median, (middle[-1] - middle[0]) / 2 / median


def compare(shape: Shape, dtype: torch.dtype, budget: float, quick: bool) -> dict[str, Any]:
    """Times of one shape, after a check that the back-ends agree."""
    inputs, options = make_inputs(shape, dtype)

    def forward(backend: str) -> torch.Tensor:
        with torch.no_grad():
            y = path_scan(*inputs, **options, backend=backend)
        assert isinstance(y, torch.Tensor)
        return y

    expected = forward("torch").double()
    error = float((forward("native").double() - expected).norm() / expected.norm())
    if error > (1e-5 if dtype == torch.float32 else 2e-2):
        raise SystemExit(f"{shape.name}: native differs from torch by {error:.1e}; nothing was timed")

    leaves = [v.detach().clone().requires_grad_(v.is_floating_point()) for v in inputs]
    weight = options["dt_weight"]
    weight = None if weight is None else weight.detach().clone().requires_grad_()
    y = path_scan(*leaves, dt_weight=weight, backend="native")
    assert isinstance(y, torch.Tensor)
    wanted = [v for v in (*leaves, weight) if v is not None and v.requires_grad]
    gradient = torch.randn_like(y)
    result: dict[str, Any] = {
        "shape": asdict(shape),
        "dtype": str(dtype)[6:],
        "threads": torch.get_num_threads(),
        "error": error,
    }
    timed = {
        "forward": lambda: forward("native"),
        "backward": lambda: torch.autograd.grad(y, wanted, gradient, retain_graph=True),
        "torch_forward": lambda: forward("torch"),
    }
    if not quick:
        timed["reference_forward"] = lambda: forward("reference")
    for name, run in timed.items():
        seconds, spread = measure(run, budget)
        result[name] = {"seconds": seconds, "spread": spread, "ns_per_state": seconds * 1e9 / shape.states}
    return result


def describe() -> dict[str, Any]:
    """The machine and the versions, for the record."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "instruction_set": native.use_instruction_set(os.environ.get("VISIONSSM_CPU", "")),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def row(result: dict[str, Any]) -> str:
    """One line of the table."""
    shape, forward, backward = result["shape"], result["forward"], result["backward"]
    size = f"{shape['batch']} x {shape['H']}x{shape['W']}x{shape['E']} N={shape['N']} R={shape['R']} K={shape['K']}"
    ratios = [result["torch_forward"]["seconds"] / forward["seconds"]]
    if "reference_forward" in result:
        ratios.append(result["reference_forward"]["seconds"] / forward["seconds"])
    return (
        f"{shape['name']:27} {size:33} {result['dtype']:9} {result['threads']:2} "
        f"{forward['ns_per_state']:8.3f} ±{forward['spread'] * 100:3.0f} % {backward['seconds'] / forward['seconds']:9.1f} x "
        + " ".join(f"{ratio:9.1f} x" for ratio in ratios)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--shapes", nargs="+", help="only shapes whose name contains one of these words")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each measurement")
    parser.add_argument("--quick", action="store_true", help="leave the slow reference out")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "operator_cpu.json")
    arguments = parser.parse_args()
    shapes = [s for s in SHAPES if not arguments.shapes or any(word in s.name for word in arguments.shapes)]

    record = {**describe(), "results": []}
    print(
        f"{record['processor']}, {record['instruction_set']}, torch {record['torch']}, load {record['load_at_start']}"
    )
    print(
        f"{'shape':27} {'':33} {'dtype':9} {'threads':2} {'ns/state':>8} {'':7} {'backward':>8} {'torch':>12} {'reference':>12}"
    )
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name in arguments.dtypes:
            for shape in shapes:
                result = compare(shape, getattr(torch, name), arguments.seconds, arguments.quick)
                record["results"].append(result)
                print(row(result), flush=True)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    temporary = arguments.json.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(arguments.json)
    print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
