"""`visionssm doctor`: what is installed, which back-end serves each device, what to do where a fast one is missing."""

import argparse
import json
from typing import Any

from visionssm.cli.errors import EXTRAS


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "doctor",
        help="show versions, devices and back-ends, and what is missing",
        description="Show versions, devices and the back-end that serves each, say what to do where a fast one is\n"
        "missing, and compare the back-ends on a small scan. Exit code 1 if something does not work.",
        epilog="examples:\n  visionssm doctor\n  visionssm doctor --json > doctor.json     to attach to a bug report",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 if something does not work."""
    from visionssm.cli.diagnosis import examine

    report = examine()
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    return 1 if report["problems"] else 0


def as_text(report: dict[str, Any]) -> str:
    """The report for a person."""
    lines = ["versions"]
    for name, version in report["versions"].items():
        extra = EXTRAS.get(name)
        missing = f"not installed (pip install 'visionssm[{extra}]')" if extra else "not installed"
        lines.append(f"  {name:<18}{version or missing}")
    lines += ["", "system"]
    lines += [f"  {name.replace('_', ' '):<18}{value}" for name, value in report["system"].items()]
    for device in report["devices"]:
        lines += ["", f"{device['device']}: {device['name']}", f"  auto takes        {device['auto'] or 'nothing'}"]
        lines += [f"  {name:<18}{reason or 'available'}" for name, reason in device["backends"].items()]
        for name, difference in device["self_check"].items():
            lines.append(f"  self check        {name} differs from reference by {difference:.1e} of the largest value")
    lines.append("")
    lines += [f"note: {note}" for note in report["notes"]]
    lines += [f"problem: {problem}" for problem in report["problems"]]
    if not report["problems"]:
        lines.append("everything works")
    return "\n".join(lines)
