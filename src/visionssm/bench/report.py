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

COLUMNS = ("model", "setting", "images/s", "ratio", "median ms", "p90 ms", "p99 ms", "peak MiB", "GFLOPs")


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
            f"{1e3 * result.percentile(0.9):.1f}",
            f"{1e3 * result.percentile(0.99):.1f}",
            "" if result.peak_mib is None else f"{result.peak_mib:.0f}",
            "" if result.gmacs is None else f"{result.gmacs:.3g}",
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
    """Throughput and peak memory against the side of the image, both axes logarithmic.

    One line per model, batch size and dtype; what all of them share is in the title.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    lines: dict[tuple[str, int, str], list[Measurement]] = {}
    for result in sorted(results, key=_side):
        lines.setdefault((result.model, result.setting.batch, result.setting.dtype), []).append(result)
    batches, dtypes = ({key[i] for key in lines} for i in (1, 2))
    for name, batch, dtype in dict.fromkeys((r.model, r.setting.batch, r.setting.dtype) for r in results):
        own = lines[name, batch, dtype]
        parts = (name, f"batch {batch}" if len(batches) > 1 else "", dtype if len(dtypes) > 1 else "")
        options: dict[str, Any] = {"marker": "o", "label": ", ".join(part for part in parts if part)}
        left.plot([_side(r) for r in own], [r.images_per_second for r in own], **options)
        known = [r for r in own if r.peak_mib]
        right.plot([_side(r) for r in known], [r.peak_mib for r in known], **options)
    for axes, label in ((left, "images per second"), (right, "peak memory of a call (MiB)")):
        axes.set(xscale="log", yscale="log", xlabel="side of the image (pixels)", ylabel=label)
        ticks = sorted({_side(r) for r in results})
        axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
        axes.set_xlim(0.9 * ticks[0], 1.1 * ticks[-1])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend()
    setting = results[0].setting
    shared = [f"batch {setting.batch}" if len(batches) == 1 else "", setting.dtype if len(dtypes) == 1 else ""]
    shared += ["training" if setting.train else "inference", "compiled" if setting.compile else "", setting.device]
    figure.suptitle(", ".join(part for part in shared if part))
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=140)
    _write(path, content.getvalue())


def _side(result: Measurement) -> float:
    return (result.setting.size[0] * result.setting.size[1]) ** 0.5


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
