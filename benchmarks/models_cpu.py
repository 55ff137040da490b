"""Whole models on the CPU beside models of timm: time, memory, cost against size, threads, start-up.

    python benchmarks/models_cpu.py [--list] [--only ROW ...] [--again] [--busy] [--out FOLDER]

Every row runs in a process of its own and takes about a minute; its models take turns, so that a ratio is one of a single run.
Rows that the result file has already are left out unless --again is given, so that an interrupted run goes on where it stopped.
Writes models_cpu.json and, made from it, models_cpu.md. "Equal" rows give every linear layer of the baseline the matrix product
that ours use; "raw" rows leave it alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

SWIN, CONVNEXT, DEIT = "swin_tiny_patch4_window7_224", "convnext_tiny", "deit_tiny_patch16_224"
Result = dict[str, Any]
BUSY = bool(os.environ.get("MODELS_CPU_BUSY"))
CLOCK = time.process_time if BUSY else time.perf_counter


def against(
    ours: str,
    baselines: list[str],
    size: int,
    batch: int = 8,
    seconds: float = 3.0,
    only_equal: bool = False,
    **options: Any,
) -> Result:
    """`ours` and every baseline, raw and with equal products, in turns."""
    import torch

    from visionssm.bench.measure import Setting, take_turns

    raw = Setting(size=(size, size), batch=batch, **options)
    equal = Setting(size=(size, size), batch=batch, equal=True, **options)
    entries = [(ours, equal), *((name, setting) for name in baselines for setting in (raw, equal))]
    if options.get("compile"):
        entries = [(ours, equal), *((name, raw) for name in baselines)]  # a compiled linear layer is inductor's
    if only_equal:
        entries = [entry for entry in entries if entry[1].equal]
    if BUSY:
        torch.set_num_threads(1)
    mine, *others = take_turns(entries, seconds=seconds, rounds=2, progress=say, clock=CLOCK)
    result = {
        "clock": "seconds of one thread's computing" if BUSY else "wall clock",
        "images_per_second": {ours: mine.images_per_second},
        "milliseconds": {ours: 1e3 * mine.median},
        "gmacs": {ours: mine.gmacs},
        "ratio": {},
        "spread": spread(mine.seconds),
        "calls": len(mine.seconds),
    }
    for other in others:
        label = other.model + (" equal" if other.setting.equal else " raw")
        result["images_per_second"][label] = other.images_per_second
        result["milliseconds"][label] = 1e3 * other.median
        result["gmacs"][other.model] = other.gmacs
        result["ratio"][label] = statistics.median(b / a for a, b in zip(mine.seconds, other.seconds, strict=True))
    return result


def stepwise(size: int = 1024) -> Result:
    """VMamba-T beside itself with the scan as the published code falls back to in plain torch, and with our reference back-end."""
    import torch

    import visionssm
    from visionssm.layers import SelectiveScan
    from visionssm.ops import default_backend

    model, x = visionssm.create_model("vmamba_tiny").eval(), torch.randn(1, 3, size, size)
    times: dict[str, float] = {}
    with torch.inference_mode():
        for name in ("native", "reference"):
            with default_backend(name):
                model(x[..., :224, :224])
                times[name] = statistics.median(timed(lambda: model(x)) for _ in range(3 if name == "native" else 1))
        SelectiveScan.forward = copies_and_steps  # type: ignore[assignment, method-assign]
        model(x[..., :224, :224])
        times["copies and steps"] = timed(lambda: model(x))
    slower = {name: value / times["native"] for name, value in times.items() if name != "native"}
    return {"milliseconds": {name: 1e3 * value for name, value in times.items()}, "ratio": slower}


def copies_and_steps(self: Any, x: Any, path: Any, **_: Any) -> Any:
    """The four directions as copies, decays and inputs of all steps at once, a loop over the steps, and the copies' sum."""
    import torch
    import torch.nn.functional as F

    orders = path.unbind(0)
    copies = torch.stack([x[:, order].transpose(1, 2) for order in orders], dim=1)  # (batch, K, E, L)
    projected = torch.einsum("bkel,kre->bkrl", copies, self.x_proj_weight)
    dt, B, C = projected.split((self.dt_rank, self.state, self.state), dim=2)
    dt = F.softplus(torch.einsum("bkrl,ker->bkel", dt, self.dt_weight) + self.dt_bias[:, :, None])
    decay = torch.exp(torch.einsum("bkel,ken->bkeln", dt, self.A()))
    inputs = torch.einsum("bkel,bknl,bkel->bkeln", dt, B, copies)
    state, outputs = torch.zeros_like(decay[..., 0, :]), []
    for step in range(x.shape[1]):
        state = decay[..., step, :] * state + inputs[..., step, :]
        outputs.append(torch.einsum("bken,bkn->bke", state, C[..., step]))
    y = torch.stack(outputs, dim=-1) + copies * self.D[:, :, None]
    merged = torch.zeros_like(x)
    for order, own in zip(orders, y.unbind(1), strict=True):
        merged[:, order] += own.transpose(1, 2)
    return merged


def memory(name: str, size: int, batch: int, fused: bool = True) -> float:
    """MiB: peak memory of one inference above the loaded process."""
    if not fused:
        os.environ["TIMM_FUSED_ATTN"] = "0"
    import torch

    import visionssm
    from visionssm.bench.measure import peak_mib

    model = visionssm.create_model(name, img_size=size).eval()
    with torch.inference_mode():
        model(torch.randn(1, 3, size, size))
        x = torch.randn(batch, 3, size, size)
        peak = peak_mib(lambda: model(x), "cpu")
    assert peak is not None, "this system does not tell the peak memory of a process"
    return peak


def memories(size: int, batch: int, plain: bool) -> Result:
    """Vim-Ti's peak memory and DeiT-Ti's with fused and plain attention, each in a process of its own."""
    peaks = {"vim_tiny": in_process("memory", name="vim_tiny", size=size, batch=batch)}
    for fused in (True, False) if plain else (True,):
        label = f"{DEIT} {'fused' if fused else 'plain'} attention"
        peaks[label] = in_process("memory", name=DEIT, size=size, batch=batch, fused=fused)
    ratio = {label: peaks["vim_tiny"] / value for label, value in peaks.items() if label != "vim_tiny"}
    return {"peak_mib": peaks, "memory_ratio": ratio}


def sizes(sides: tuple[int, ...] = (224, 512, 768, 1024, 1536, 2048)) -> Result:
    """VMamba-T, batch 1: seconds and memory at each size, and the straight line through them."""
    import torch

    import visionssm
    from visionssm.bench.measure import peak_mib

    if BUSY:
        torch.set_num_threads(1)
    model = visionssm.create_model("vmamba_tiny").eval()
    seconds, peaks = [], []
    with torch.inference_mode():
        for side in sides:
            x = torch.randn(1, 3, side, side)
            peaks.append(peak_mib(partial(model, x), "cpu"))
            seconds.append(statistics.median(timed(partial(model, x)) for _ in range(1 if side > 1024 else 3)))
            say(f"{side}: {seconds[-1]:.3f} s, {peaks[-1]:.0f} MiB")
    pixels = [side**2 for side in sides]
    return {
        "sides": list(sides),
        "seconds": seconds,
        "peak_mib": peaks,
        "clock": "seconds of one thread's computing" if BUSY else "wall clock",
        "seconds_fit": fit(pixels, seconds),
        "memory_fit": fit(pixels, peaks),
    }


def fit(x: list[int], y: list[float]) -> Result:
    """The straight line with the smallest relative deviations: intercept, slope per 10^6, largest relative deviation, R^2."""
    import numpy as np

    weight = 1 / np.array(y)
    columns = np.stack([np.ones(len(x)), np.array(x) / 1e6], 1)
    intercept, slope = np.linalg.lstsq(columns * weight[:, None], np.ones(len(x)), rcond=None)[0]
    line = columns @ np.array([intercept, slope])
    unexplained = ((np.array(y) - line) ** 2).sum() / ((np.array(y) - np.mean(y)) ** 2).sum()
    return {
        "intercept": float(intercept),
        "slope": float(slope),
        "largest_deviation": float(np.abs(line / np.array(y) - 1).max()),
        "r_squared": float(1 - unexplained),
    }


def threads(name: str = "vmamba_tiny", size: int = 224, batch: int = 8) -> Result:
    """Images per second with one thread and with two."""
    found = {n: in_process("on_threads", count=n, name=name, size=size, batch=batch) for n in (1, 2)}
    speed = {f"{n} threads": value["images_per_second"] for n, value in found.items()}
    return {"images_per_second": speed, "ratio": {"2 threads to 1": speed["2 threads"] / speed["1 threads"]}}


def on_threads(count: int, name: str, size: int, batch: int) -> Result:
    """One model on a number of threads."""
    import torch

    from visionssm.bench.measure import Setting, compare

    torch.set_num_threads(count)
    (found,) = compare([name], Setting(size=(size, size), batch=batch), seconds=5)
    return {"images_per_second": found.images_per_second}


def start_up(repeats: int = 3) -> Result:
    """Seconds to import, in turns, and the first forward pass against the following ones."""
    times: dict[str, list[float]] = {"timm": [], "visionssm": []}
    for _ in range(repeats):
        for name, found in times.items():
            found.append(timed(lambda name=name: subprocess.run([sys.executable, "-c", f"import {name}"], check=True)))
    forward = in_process("first_forward")
    seconds = {name: statistics.median(found) for name, found in times.items()}
    return {
        "seconds": seconds,
        "ratio": {"import visionssm to import timm": seconds["visionssm"] / seconds["timm"]},
        **forward,
    }


def first_forward() -> Result:
    """The first call of a model in a process, and the median of the next."""
    import torch

    import visionssm

    model, x = visionssm.create_model("vmamba_tiny").eval(), torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        found = [timed(lambda: model(x)) for _ in range(8)]
    return {"milliseconds": {"first forward": 1e3 * found[0], "later forward": 1e3 * statistics.median(found[1:])}}


_vmamba = partial(against, "vmamba_tiny", [SWIN, CONVNEXT])
_vim = partial(against, "vim_tiny", [DEIT])
ROWS: dict[str, Callable[[], Result]] = {
    "VMamba-T, 224 b1": partial(_vmamba, 224, 1),
    "VMamba-T, 224 b8": partial(_vmamba, 224, 8),
    "VMamba-T, 512 b1": partial(_vmamba, 512, 1),
    "VMamba-T, 1024 b1": partial(_vmamba, 1024, 1, only_equal=True),
    "VMamba-T, 224 b1, bfloat16": partial(_vmamba, 224, 1, dtype="bfloat16"),
    "VMamba-T, 224 b8, bfloat16": partial(_vmamba, 224, 8, dtype="bfloat16"),
    "VMamba-T, 512 b1, bfloat16": partial(_vmamba, 512, 1, dtype="bfloat16"),
    "VMamba-T, 1024 b1, bfloat16": partial(_vmamba, 1024, 1, only_equal=True, dtype="bfloat16"),
    "VMamba-T, 224 b8, compiled": partial(_vmamba, 224, 8, compile=True),
    "VMamba-T, 224 b8, compiled, bfloat16": partial(_vmamba, 224, 8, compile=True, dtype="bfloat16"),
    "VMamba-T, 1024 b1, step by step": stepwise,
    "Vim-Ti, 224 b1": partial(_vim, 224, 1),
    "Vim-Ti, 224 b8": partial(_vim, 224, 8),
    "Vim-Ti, 512 b1": partial(_vim, 512, 1),
    "Vim-Ti, 1248 b1": partial(_vim, 1248, 1, only_equal=True),
    "Vim-Ti, 1248 b8": partial(_vim, 1248, 8, 1, only_equal=True),
    "Vim-Ti, 1248 b1, bfloat16": partial(_vim, 1248, 1, only_equal=True, dtype="bfloat16"),
    "Vim-Ti, 1248 b1, memory": partial(memories, 1248, 1, plain=True),
    "Vim-Ti, 1248 b8, memory": partial(memories, 1248, 8, plain=False),
    "MambaVision-T, 224 b8": partial(against, "mambavision_tiny", [CONVNEXT], 224),
    "GroupMamba-T, 224 b8": partial(against, "groupmamba_tiny", [SWIN], 224),
    "LocalVMamba-T, 224 b8": partial(against, "local_vmamba_tiny", ["nest_tiny_jx"], 224),
    "EfficientVMamba-T, 224 b8": partial(against, "efficient_vmamba_tiny", ["regnety_008"], 224),
    "VMamba-T, training step, 224 b8": partial(against, "vmamba_tiny", [SWIN], 224, 8, 6, train=True),
    "VMamba-T, cost against size": sizes,
    "VMamba-T, threads": threads,
    "start-up": start_up,
}


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = CLOCK()
    call()
    return CLOCK() - start


def spread(seconds: tuple[float, ...]) -> float:
    """Half the distance from the fastest to the slowest fifth, over the median."""
    ordered = sorted(seconds)
    n = len(ordered)
    return (ordered[int(0.8 * (n - 1))] - ordered[int(0.2 * (n - 1))]) / 2 / statistics.median(ordered)


def say(line: str) -> None:
    """Progress, beside the results."""
    print("  " + line, file=sys.stderr, flush=True)


def in_process(function: str, **arguments: Any) -> Any:
    """Calls a function of this file in a process of its own."""
    command = [sys.executable, __file__, "--call", function, json.dumps(arguments)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def markdown(rows: dict[str, Result]) -> str:
    """The rows as a Markdown table. A ratio above 1 says that ours is faster, or takes more memory."""
    lines = ["| row | ours | beside it |", "|---|---|---|"]
    for name, row in rows.items():
        cells = []
        if "images_per_second" in row and "ratio" in row and "calls" in row:
            (mine, speed), *_ = row["images_per_second"].items()
            ours = f"{mine} {speed:.2f} images/s ({row['milliseconds'][mine]:.0f} ms, ±{100 * row['spread']:.0f} %)"
            cells = [
                f"{label}: {row['images_per_second'][label]:.2f}, **{r:.2f}**" for label, r in row["ratio"].items()
            ]
        elif "peak_mib" in row and "memory_ratio" in row:
            (mine, peak), *_ = row["peak_mib"].items()
            ours = f"{mine} {peak:.0f} MiB"
            cells = [
                f"{label}: {row['peak_mib'][label]:.0f} MiB, **{r:.2f}**" for label, r in row["memory_ratio"].items()
            ]
        elif "seconds_fit" in row:
            ours = f"{row['seconds'][-1]:.2f} s and {row['peak_mib'][-1]:.0f} MiB at {row['sides'][-1]}"
            for quantity, unit in (("seconds", "s"), ("memory", "MiB")):
                line = row[f"{quantity}_fit"]
                cells.append(
                    f"{line['intercept']:.2f} + {line['slope']:.3g} {unit} per megapixel, R² {line['r_squared']:.4f}, "
                    f"off by at most {100 * line['largest_deviation']:.0f} %"
                )
        else:
            ours = ", ".join(f"{k} {v:.0f} ms" for k, v in row.get("milliseconds", {}).items())
            cells = [f"{label}: **{r:.2f}**" for label, r in row["ratio"].items()]
        name += ", one thread" if row.get("clock", "wall clock") != "wall clock" else ""
        lines.append(f"| {name} | {ours} | {'; '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(file: Path, text: str) -> None:
    """Whole or not at all."""
    from visionssm._files import write_atomically

    write_atomically(file, lambda path: path.write_text(text))


def main() -> None:
    """Measures what is missing, and writes after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="rows whose name contains one of these")
    parser.add_argument("--again", action="store_true", help="measure rows again that the result file has")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder of the result files"
    )
    parser.add_argument(
        "--busy", action="store_true", help="one thread, by its computing time: where others use the machine"
    )
    parser.add_argument("--call", nargs=2, metavar=("FUNCTION", "ARGUMENTS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.call:
        print(json.dumps(globals()[args.call[0]](**json.loads(args.call[1]))))
        return
    wanted = [name for name in ROWS if not args.only or any(part.lower() in name.lower() for part in args.only)]
    if not wanted:
        parser.error(f"--only: no row's name contains {' or '.join(map(repr, args.only))}; --list names all rows")
    if args.busy:
        os.environ["MODELS_CPU_BUSY"] = "1"
    if args.list:
        print("\n".join(ROWS))
        return
    from visionssm.bench import machine

    file = args.out / "models_cpu.json"
    content: Result = json.loads(file.read_text()) if file.exists() else {"rows": {}}
    for name in wanted:
        if name in content["rows"] and not args.again:
            print(f"{name}: measured before, see {file}; --again measures it again", file=sys.stderr)
            continue
        print(name, file=sys.stderr, flush=True)
        row = in_process("row", name=name)
        content = {"machine": machine(), "rows": {**content["rows"], name: row}}
        content["rows"] = {name: content["rows"][name] for name in ROWS if name in content["rows"]}
        args.out.mkdir(parents=True, exist_ok=True)
        write(file, json.dumps(content, indent=1))
        write(args.out / "models_cpu.md", markdown(content["rows"]))
        print(markdown({name: row}).splitlines()[-1], flush=True)


def row(name: str) -> Result:
    """Measures one row."""
    return ROWS[name]()


if __name__ == "__main__":
    main()
