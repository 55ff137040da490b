"""What a run of `benchmarks/gpu.py` says: goals met and missed, and its numbers as tables."""

from collections.abc import Callable
from typing import Any, NamedTuple

Found = dict[str, Any]


class Goal(NamedTuple):
    """A goal, in the words of the project's plan, and what was measured; None where it was not."""

    name: str
    needed: str
    measured: float | None
    met: bool | None


def goals(record: Found) -> list[Goal]:
    """All goals for an H200, in order."""
    found: list[Goal] = []

    def goal(
        name: str, unit: str, measure: Callable[[], float], *, most: float | None = None, least: float | None = None
    ) -> None:
        needed = f"at most {most:g}{unit}" if most is not None else f"at least {least:g}{unit}"
        try:
            value = measure()
        except (KeyError, TypeError, StopIteration, ZeroDivisionError):
            found.append(Goal(name, needed, None, None))
            return
        found.append(Goal(name, needed, value, value <= most if most is not None else value >= (least or 0)))

    def operator(shape: str) -> Found:
        return record["parts"]["operator"]["results"][shape]

    def us(shape: str, what: str = "forward") -> float:
        return operator(shape)[what]["us"]

    def model(comparison: str, name: str, key: str = "images_per_second") -> float:
        rows = record["parts"]["models"]["results"][comparison]
        return next(row[key] for row in rows if row["model"] == name)

    vmamba = [f"VMamba-T stage {stage}" for stage in (1, 2, 3, 4)]
    goal("Vim-Ti 224 forward, a layer", " us", lambda: us("Vim-Ti 224"), most=120)
    for shape in ("Vim-Ti 224", "Vim-S 224"):
        goal(
            f"{shape} forward / limit by exponentials",
            "",
            lambda s=shape: share(operator(s), "exponentials_us"),
            least=0.65,
        )
    for shape, most in zip(vmamba, (400, 200, 80, 40), strict=True):
        goal(f"{shape} forward", " us", lambda s=shape: us(s), most=most)
    for shape in vmamba[2:]:
        goal(f"{shape} forward / limit by instructions", "", lambda s=shape: share(operator(s), "issue_us"), least=0.5)
    for shape, least in [*((s, 2.0) for s in vmamba), ("Vim-Ti 224", 1.5)]:
        goal(f"{shape}: copies, scan, copies / ours", "x", lambda s=shape: us(s, "unfused") / us(s), least=least)
    for shape, most in [*((s, 2.5) for s in vmamba), ("Vim-Ti 224", 5.5)]:
        goal(f"{shape}: backward / forward", "x", lambda s=shape: us(s, "backward") / us(s), most=most)
    swin, deit = "swin_tiny_patch4_window7_224", "deit_tiny_patch16_224"

    def ratio(comparison: str, ours: str, theirs: str, key: str = "images_per_second") -> float:
        return model(comparison, ours, key) / model(comparison, theirs, key)

    goal("VMamba-T inference", " img/s", lambda: model("inference", "vmamba_tiny"), least=10_000)
    goal("VMamba-T inference / Swin-T", "x", lambda: ratio("inference", "vmamba_tiny", swin), least=1.5)
    goal("VMamba-T training", " img/s", lambda: model("training", "vmamba_tiny"), least=2500)
    goal("VMamba-T training / Swin-T", "x", lambda: ratio("training", "vmamba_tiny", swin), least=1)
    memory = lambda: record["parts"]["models"]["results"]["training memory"]["peak_gb"] + 0.0  # noqa: E731
    goal("VMamba-T training, 128 images", " GB", memory, most=12.4)
    goal(
        "MambaVision-T inference / ConvNeXt-T",
        "x",
        lambda: ratio("inference", "mambavision_tiny", "convnext_tiny"),
        least=1.8,
    )
    goal("Vim-Ti inference", " img/s", lambda: model("inference, plain", "vim_tiny"), least=12_000)
    goal("Vim-Ti inference at 1248 / DeiT-Ti", "x", lambda: ratio("inference at 1248", "vim_tiny", deit), least=2)
    goal(
        "Vim-Ti peak memory at 1248 / DeiT-Ti",
        "x",
        lambda: ratio("inference at 1248", "vim_tiny", deit, "peak_mib"),
        most=1,
    )
    return found


def share(shape: Found, limit: str) -> float:
    """How much of a limit forward reaches, 1 at most."""
    return shape["floors"][limit] / shape["forward"]["us"]


def correct(record: Found) -> bool:
    """Whether every check of every result passed; False where there is none."""
    results = record["parts"].get("correctness", {}).get("results", {})
    checks = [check for rows in results.values() for check in rows]
    return bool(checks) and all(check["passed"] for check in checks)


def markdown(record: Found) -> str:
    """The report."""
    parts = record["parts"]
    lines = ["# GPU run", ""]
    for key, value in parts.get("machine", {}).get("results", {}).items():
        lines.append(f"- {key}: {', '.join(f'{name} {number(item)}' for name, item in value.items())}")
    lines += [f"- part {name}: {part['status']}, {part.get('seconds', 0):.0f} s" for name, part in parts.items()]
    lines += ["", "## Goals", "", "| goal | needed | measured | |", "|---|---|---|---|"]
    words = {True: "met", False: "MISSED", None: "not measured"}
    lines += [f"| {g.name} | {g.needed} | {number(g.measured)} | {words[g.met]} |" for g in goals(record)]
    lines += _correctness(parts) + _operator(parts) + _models(parts) + _blocks(parts)
    for name, part in parts.items():
        if "error" in part:
            lines += ["", f"## Failure in {name}", "", "```", part["error"].strip(), "```"]
    return "\n".join(lines) + "\n"


def number(value: Any) -> str:
    """Four digits are enough."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _results(parts: Found, name: str) -> Found:
    return parts.get(name, {}).get("results", {})


def _correctness(parts: Found) -> list[str]:
    results = _results(parts, "correctness")
    checks = [check for rows in results.values() for check in rows]
    if not checks:
        return []
    lines = [
        "",
        "## Correctness",
        "",
        f"{sum(check['passed'] for check in checks)} of {len(checks)} passed. Worst relative errors:",
        "",
    ]
    for dtype in ("float32", "bfloat16", "float16"):
        worst = [
            check.get("worst") for check in results.get("calls", []) if check["dtype"] == dtype and "worst" in check
        ]
        lines += [f"- {dtype}: {max(worst):.1e}"] if worst else []
    failed = [check for check in checks if not check["passed"]]
    return lines + [f"- FAILED: {', '.join(f'{key} {value}' for key, value in check.items())}" for check in failed]


def _operator(parts: Found) -> list[str]:
    rows = {key: row for key, row in _results(parts, "operator").items() if row and "floors" in row}
    if not rows:
        return []
    ways = ("serial", "parts", "pairs, serial", "pairs, parts")
    lines = ["", "## Operator", "", "Microseconds. Limits are for 100 % of bytes, exponentials, instruction issue.", ""]
    lines += [f"| shape | limits | forward | backward | copies, scan, copies | mamba_ssm | {' | '.join(ways)} |"]
    lines += ["|---" * (6 + len(ways)) + "|"]
    for name, row in rows.items():
        limits = " / ".join(number(limit) for limit in row["floors"].values())
        other = _results(parts, "operator").get(f"{name}, mamba_ssm")
        times = [row.get(key, {}).get("us") for key in ("forward", "backward", "unfused")] + [other and other["us"]]
        times += [row.get(way, {}).get("us") for way in ways]
        lines.append(f"| {name} | {limits} | {' | '.join(number(value) for value in times)} |")
        if "failed" in row:
            lines.append(f"| {name} | {row['failed']} |" + " |" * (4 + len(ways)))
    return lines


def _models(parts: Found) -> list[str]:
    lines: list[str] = []
    for name, rows in _results(parts, "models").items():
        if isinstance(rows, list):
            lines += ["", f"## Models: {name}", "", "| model | images/s | ms a call | peak MiB |", "|---|---|---|---|"]
            for row in rows:
                values = (row["images_per_second"], row["median_s"] * 1e3, row["peak_mib"])
                lines.append(f"| {row['model']} | {' | '.join(number(value) for value in values)} |")
    return lines


def _blocks(parts: Found) -> list[str]:
    rows = [row for found in _results(parts, "blocks").values() for row in found]
    if not rows:
        return []
    lines = ["", "## Other blocks", "", "| shape | choice | BE | BT | VEC | us |", "|---|---|---|---|---|---|"]
    return lines + [
        f"| {r['shape']} | {r['choice']} | {r['BE']} | {r['BT']} | {r['VEC']} | {number(r['us'])} |" for r in rows
    ]
