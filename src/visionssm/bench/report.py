"""Measurements as a table, JSON, CSV and a picture."""

import csv
import datetime
import io
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .._files import write_atomically
from .measure import Measurement

COLUMNS = ("model", "setting", "images/s", "ratio", "median ms", "p20-p80 ms", "peak MiB", "GFLOPs")


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import timm

    import visionssm
    from visionssm._machine import processor
    from visionssm.ops.matrix_product import uses_onednn

    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "visionssm": visionssm.__version__,
        "matrix_product": "onednn" if uses_onednn() else "torch",
    }


def table(results: Sequence[Measurement]) -> str:
    """A Markdown table; `ratio` is the first model's images/s over this one's, in the same run."""
    first: dict[Any, Measurement] = {}
    for result in results:
        first.setdefault(result.setting, result)
    rows = [
        (
            result.model,
            result.setting.describe(),
            f"{result.images_per_second:.2f}",
            f"{first[result.setting].images_per_second / result.images_per_second:.2f}",
            f"{1e3 * result.median:.1f}",
            f"{1e3 * result.percentile(0.2):.1f}-{1e3 * result.percentile(0.8):.1f}",
            "" if result.peak_mib is None else f"{result.peak_mib:.0f}",
            "" if result.gmacs is None else f"{result.gmacs:.2f}",
        )
        for result in results
    ]
    lines = ["| " + " | ".join(row) + " |" for row in (COLUMNS, ("---",) * len(COLUMNS), *rows)]
    return "\n".join(lines)


def write_json(results: Sequence[Measurement], path: Path) -> None:
    """Machine and measurements as JSON."""
    content = {"machine": machine(), "measurements": [result.as_dict() for result in results]}
    _write(path, json.dumps(content, indent=1).encode())


def write_csv(results: Sequence[Measurement], path: Path) -> None:
    """One line per measurement."""
    text = io.StringIO()
    rows = [{**result.as_dict(), "size": "x".join(map(str, result.setting.size))} for result in results]
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    _write(path, text.getvalue().encode())


def plot(results: Sequence[Measurement], path: Path) -> None:
    """Throughput and peak memory against the side of the image, both axes logarithmic, one line per model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(result.model for result in results):
        own = sorted((r for r in results if r.model == name), key=lambda r: r.setting.size)
        sides = [(r.setting.size[0] * r.setting.size[1]) ** 0.5 for r in own]
        left.plot(sides, [r.images_per_second for r in own], marker="o", label=name)
        if all(r.peak_mib for r in own):
            right.plot(sides, [r.peak_mib or 0.0 for r in own], marker="o", label=name)
    for axes, label in ((left, "images per second"), (right, "peak memory of a call (MiB)")):
        axes.set(xscale="log", yscale="log", xlabel="side of the image (pixels)", ylabel=label)
        ticks = sorted({(r.setting.size[0] * r.setting.size[1]) ** 0.5 for r in results})
        axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend()
    setting = results[0].setting
    figure.suptitle(
        f"batch {setting.batch}, {setting.dtype}, {'training' if setting.train else 'inference'}, {setting.device}"
    )
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=140)
    _write(path, content.getvalue())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
