"""Everything that is to be known about the Triton kernels on a GPU, in one call of under nine minutes.

    PYTHONPATH=src python benchmarks/gpu.py OUT_FOLDER [--minutes 8.5] [--parts machine correctness operator blocks models]

Correctness first: the calls of the tests on the real compiler, in three precisions, with all gradients, NaN in all fresh memory,
and bit-equal second runs; maps beyond 2^31 elements. Then times: the operator against the device's limits and against the
sequence of copies, scan and copies of the published codes; models against those that their papers compare them with.
OUT_FOLDER/gpu.json is written after every part, so that nothing is lost when time runs out, and gpu.md is made from it.

`--device cpu --tiny` runs the same script on the smallest inputs in Triton's interpreter (TRITON_INTERPRET=1), as a test of it.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# cuBLAS gives the same bits every time only with a workspace of its own; to be set before torch starts it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
sys.path.insert(0, str(Path(__file__).parent))

import gpu_correctness
import gpu_models
import gpu_operator
import gpu_report
import torch
import triton

from visionssm._files import write_atomically

Found = dict[str, Any]


class Run:
    """The record of a run: what each part found, written to the folder after each step."""

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.stop = folder, time.perf_counter() + 60 * minutes
        self.record: Found = {"parts": {}, "complete": False}
        folder.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds until the run must end."""
        return self.stop - time.perf_counter()

    def save(self) -> None:
        texts = {"gpu.json": json.dumps(self.record, indent=1) + "\n", "gpu.md": gpu_report.markdown(self.record)}
        for name, text in texts.items():
            write_atomically(self.folder / name, lambda path, text=text: path.write_text(text))

    def part(self, name: str, steps: Iterator[tuple[str, Any]]) -> None:
        """Keeps each (name, result) that a part yields; a failure ends the part, not the run."""
        found: Found = {"status": "running", "results": {}}
        self.record["parts"][name] = found
        start = time.perf_counter()
        try:
            for key, value in steps:
                found["results"][key] = value
                found["seconds"] = time.perf_counter() - start
                print(f"{name}: {key} ({found['seconds']:.0f} s)", flush=True)
                self.save()
                if self.left() < 0:
                    found["status"] = "out of time"
                    break
            else:
                found["status"] = "done"
        except Exception:
            found["status"], found["error"] = "failed", traceback.format_exc()
            print(found["error"], flush=True)
        self.save()


def machine(device: str, tiny: bool) -> Iterator[tuple[str, Any]]:
    """Names and versions; bytes copied per second, and the time of a launch that does nothing."""
    yield "versions", {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__}
    if not device.startswith("cuda"):
        yield (
            "device",
            {"name": platform.machine(), "processors": 1, "clock_hz": 1e9, "copy_bytes_per_s": copy_rate(device, tiny)},
        )
        return
    properties = torch.cuda.get_device_properties(0)
    yield "device", {
        "name": properties.name, "processors": properties.multi_processor_count, "warp": properties.warp_size,
        "memory_gb": properties.total_memory / 1e9, "clock_hz": clock_rate(), "copy_bytes_per_s": copy_rate(device, tiny),
    }  # fmt: skip
    one = torch.zeros(1, device=device)
    yield "empty launch", gpu_operator.microseconds([lambda: one.add_(0)] * 20, device)


def copy_rate(device: str, tiny: bool) -> float:
    """Bytes per second of a copy, read and written ones counted."""
    size = 2**10 if tiny else 2**32
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / gpu_operator.microseconds([lambda: target.copy_(source)], device)["us"] * 1e6


def clock_rate() -> float:
    """The highest clock of the multiprocessors, in Hz; 1.98 GHz, an H200's, where the driver doesn't tell."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]) * 1e6
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return 1.98e9


def correctness(device: str, tiny: bool) -> Iterator[tuple[str, Any]]:
    workers = min(8, os.cpu_count() or 1) if device.startswith("cuda") else 1
    yield "calls", gpu_correctness.run_all(device, tiny, workers)
    yield "beyond 2^31 elements", gpu_correctness.above_2_to_the_31(device, tiny)


def operator(device: str, tiny: bool, limits: Callable[[], gpu_operator.Device]) -> Iterator[tuple[str, Any]]:
    for shape in gpu_operator.TINY if tiny else gpu_operator.SHAPES:
        yield shape.name, gpu_operator.measure(shape, limits())
    for shape in gpu_operator.TINY if tiny else gpu_operator.SHAPES[:5]:
        yield f"{shape.name}, mamba_ssm", gpu_operator.measure_mamba_ssm(shape, limits())


def blocks(device: str, tiny: bool, limits: Callable[[], gpu_operator.Device]) -> Iterator[tuple[str, Any]]:
    for shape in gpu_operator.TINY[:1] if tiny else (*gpu_operator.SHAPES[:5], gpu_operator.SHAPES[7]):
        yield shape.name, gpu_operator.try_blocks(shape, limits())


def models(device: str, tiny: bool) -> Iterator[tuple[str, Any]]:
    for name in gpu_models.TINY if tiny else gpu_models.COMPARISONS:
        yield name, gpu_models.measure(name, device, 0.01 if tiny else 3.0, tiny)
        if name == "training":
            yield "training memory", gpu_models.training_memory(device, tiny)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest inputs, to test this script")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--parts", nargs="+", default=["correctness", "operator", "models", "blocks"])
    arguments = parser.parse_args()
    device, tiny = arguments.device, arguments.tiny
    run = Run(arguments.folder, arguments.minutes)
    run.record["command"] = {"device": device, "tiny": tiny, "parts": arguments.parts}
    run.part("machine", machine(device, tiny))

    def limits() -> gpu_operator.Device:
        found = run.record["parts"]["machine"]["results"]["device"]
        return gpu_operator.Device(device, found["processors"], found["clock_hz"], found["copy_bytes_per_s"])

    parts: dict[str, Callable[[], Iterator[tuple[str, Any]]]] = {
        "correctness": lambda: correctness(device, tiny),
        "operator": lambda: operator(device, tiny, limits),
        "models": lambda: models(device, tiny),
        "blocks": lambda: blocks(device, tiny, limits),
    }
    for name in arguments.parts:
        if run.left() > 0:
            run.part(name, parts[name]())
        else:
            run.record["parts"][name] = {"status": "out of time", "results": {}}
    run.record["complete"] = all(part["status"] == "done" for part in run.record["parts"].values())
    run.record["goals"] = [goal._asdict() for goal in gpu_report.goals(run.record)]
    run.save()
    print((arguments.folder / "gpu.md").read_text())
    return 0 if run.record["complete"] and gpu_report.correct(run.record) else 1


if __name__ == "__main__":
    sys.exit(main())
