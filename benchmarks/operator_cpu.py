"""Speed and memory of the operator on the CPU: the `native` back-end alone and against `torch` and `reference`.

    python benchmarks/operator_cpu.py [--threads 1 2] [--dtypes float32 bfloat16] [--quick] [--json FILE]

Measures forward, backward, the order of the path against raster order, the states kept for backward, what more threads bring,
and what a call costs in Python. Every ratio is between times of one run. Outputs are compared before anything is timed. A time is
the median of several, with half the range as its spread. Prints a table, and writes all numbers with machine, versions and date
as JSON and the table as Markdown beside it.
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
from visionssm.ops.tensors import ScanTensors


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
    Shape("VMamba stage 1, batch 8", 8, 56, 56, 96, 1, 6, 4),
    Shape("VMamba stage 3", 1, 14, 14, 384, 1, 24, 4),
    Shape("VMamba stage 3, dense dt", 1, 14, 14, 384, 1, 0, 4),
    Shape("VMamba stage 3, batch 8", 8, 14, 14, 384, 1, 24, 4),
    Shape("VMamba at 1024, stage 1", 1, 256, 256, 96, 1, 6, 4),
    Shape("one path, N=16, 56 x 56", 1, 56, 56, 384, 16, 0, 1),
    Shape("Vim at 224, one direction", 1, 14, 14, 384, 16, 12, 1),
    Shape("Vim at 1248, one direction", 1, 78, 78, 384, 16, 12, 1),
    Shape("MambaVision stage 3", 8, 14, 14, 160, 8, 10, 1),
)

LONGEST_COMPARED = 4_000  # steps; on longer paths the other back-ends take seconds for a call


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

    def forward(backend: str, arguments: list[torch.Tensor] = inputs) -> torch.Tensor:
        with torch.no_grad():
            y = path_scan(*arguments, **options, backend=backend)
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
    scanned = ScanTensors(*inputs[:7], options["dt_weight"], inputs[7], None)
    flags = {"softplus": True, "zoh": False, "merge": True, "complete": True}
    kept = native.forward(scanned, **flags, out_dtype=dtype, save=True)[2]
    raster = [*inputs[:7], inputs[7][:1].expand(shape.K, -1)]  # the first path of both tables is raster order
    result: dict[str, Any] = {
        "shape": asdict(shape),
        "kept_for_backward": kept.nbytes / inputs[0].nbytes,
        "dtype": str(dtype)[6:],
        "threads": torch.get_num_threads(),
        "error": error,
    }
    timed = {
        "forward": lambda: forward("native"),
        "forward_raster": lambda: forward("native", raster),
        "backward": lambda: torch.autograd.grad(y, wanted, gradient, retain_graph=True),
    }
    if shape.H * shape.W <= LONGEST_COMPARED:
        timed["torch_forward"] = lambda: forward("torch")
    if not quick and "torch_forward" in timed:
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


def call_overhead() -> float:
    """Seconds of a call on a map so small that nothing else counts."""
    inputs, options = make_inputs(Shape("smallest", 1, 2, 2, 16, 1, 0, 4), torch.float32)
    with torch.no_grad():
        return measure(lambda: path_scan(*inputs, **options, backend="native"), 0.2)[0]


COLUMNS = (
    "shape", "batch, H, W, E, N, R, K", "dtype", "threads", "ns/state", "spread", "faster than 1 thread", "order / raster",
    "backward / forward", "kept / x", "faster than `torch`", "faster than `reference`",
)  # fmt: skip


def row(result: dict[str, Any], one_thread: dict[tuple[str, str], float]) -> list[str]:
    """One line of the table."""
    shape, seconds = result["shape"], result["forward"]["seconds"]

    def ratio(name: str, sign: str = "x", digits: int = 1) -> str:
        return f"{result[name]['seconds'] / seconds:.{digits}f}{sign}" if name in result else ""

    single = one_thread.get((shape["name"], result["dtype"]))
    return [
        shape["name"],
        ", ".join(str(shape[key]) for key in ("batch", "H", "W", "E", "N", "R", "K")),
        result["dtype"],
        str(result["threads"]),
        f"{result['forward']['ns_per_state']:.3f}",
        f"{result['forward']['spread'] * 100:.0f} %",
        "" if single is None or result["threads"] == 1 else f"{single / seconds:.2f}x",
        f"{seconds / result['forward_raster']['seconds']:.2f}",
        ratio("backward", sign=""),
        f"{result['kept_for_backward'] * 100:.1f} %",
        ratio("torch_forward"),
        ratio("reference_forward"),
    ]


def table(record: dict[str, Any]) -> str:
    """All results as Markdown."""
    results = record["results"]
    single = {(r["shape"]["name"], r["dtype"]): r["forward"]["seconds"] for r in results if r["threads"] == 1}
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row(result, single) for result in results)]
    about = (
        f"{record['processor']}, {record['instruction_set']}, torch {record['torch']}, {record['date']}. "
        f"A call costs {record['call_overhead'] * 1e6:.0f} us before anything is computed."
    )
    return about + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write(file: Path, text: str) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(file)
    print(f"written to {file}")


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

    record = {**describe(), "call_overhead": call_overhead(), "results": []}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name in arguments.dtypes:
            for shape in shapes:
                print(f"{threads} threads, {name}: {shape.name}", flush=True)
                record["results"].append(compare(shape, getattr(torch, name), arguments.seconds, arguments.quick))
    print(table(record))
    write(arguments.json, json.dumps(record, indent=1) + "\n")
    write(arguments.json.with_suffix(".md"), table(record))


if __name__ == "__main__":
    main()
