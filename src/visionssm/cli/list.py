"""`visionssm list`: the models, their sizes, scores and licences."""

import argparse
import json
import sys
from typing import Any

EXAMPLES = """\
examples:
  visionssm list                              every model
  visionssm list "vmamba*" --pretrained       published weights of one family
  visionssm list --pretrained --commercial-ok only weights whose authors allow commercial use
  visionssm list --recipes "mamba*"           settings of published runs, for visionssm train --recipe NAME"""

COLUMNS = ("name", "params", "GFLOPs", "top-1", "licence of the weights")


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    parser = subparsers.add_parser(
        "list", help="list models and published weights", description=__doc__, epilog=EXAMPLES
    )
    parser.add_argument("pattern", nargs="?", default="*", help='shell wildcard, such as "vim*"')
    parser.add_argument("--pretrained", action="store_true", help="only what has weights")
    parser.add_argument(
        "--commercial-ok",
        action="store_true",
        help="only weights whose licence allows commercial use as its authors state",
    )
    parser.add_argument("--recipes", action="store_true", help="the settings of published training runs instead")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    """Print one line per model, or per recipe."""
    if args.recipes:
        return print_recipes(args.pattern, args.json)
    rows = list_rows(args.pattern, pretrained=args.pretrained or args.commercial_ok, commercial=args.commercial_ok)
    if not rows and not list_rows(args.pattern, pretrained=False, commercial=False):
        from visionssm import list_models
        from visionssm._messages import near_matches

        raise ValueError(f"no model matches '{args.pattern}'{near_matches(args.pattern.strip('*'), list_models())}")
    if not rows:
        what = "state a licence that allows commercial use" if args.commercial_ok else "were published"
        print(f"no weights that match '{args.pattern}' {what}", file=sys.stderr)
    if args.json:
        print(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows], indent=2))
    elif rows:
        print_table(rows)
    return 0


def print_recipes(pattern: str, as_json: bool) -> int:
    """Print each recipe that matches with what its comments say."""
    from visionssm._messages import near_matches
    from visionssm.recipes import list_recipes, recipe_facts

    names = list_recipes(pattern)
    if not names:
        raise ValueError(f"no recipe matches '{pattern}'{near_matches(pattern.strip('*'), list_recipes())}")
    if as_json:
        print(json.dumps([{"name": name, **recipe_facts(name)} for name in names], indent=2))
        return 0
    width = max(map(len, names))
    for name in names:
        facts = recipe_facts(name)
        print(f"{name:<{width}}  {facts['title']}  Published: {facts['published']}")
    print("\nNone of these was run here. visionssm train --recipe NAME --data DIR; --print-config shows all settings.")
    return 0


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Columns under their names, numbers to the right."""
    widths = [max(len(row[i]) for row in (COLUMNS, *rows)) for i in range(len(COLUMNS))]
    for row in (COLUMNS, *rows):
        cells = [
            cell.ljust(w) if i in (0, 4) else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def list_rows(pattern: str, *, pretrained: bool, commercial: bool) -> list[tuple[str, ...]]:
    """Name, parameters, published GFLOPs and top-1, and licence of each release that matches."""
    from fnmatch import fnmatch

    from visionssm.models import all_releases

    rows: list[tuple[str, ...]] = []
    for name, release in sorted(all_releases().items()):
        if not (fnmatch(name, pattern) or fnmatch(name.partition(".")[0], pattern)):
            continue
        if (pretrained and not release.has_weights) or (commercial and release.commercial is not True):
            continue
        rows.append(
            (
                name,
                f"{release.params / 1e6:.1f}M" if release.params >= 1e6 else f"{release.params / 1e3:.0f}k",
                "" if release.gflops is None else f"{release.gflops:g}",
                "" if release.top1 is None else f"{release.top1:.1f}",
                release.weights_license if release.has_weights else "no weights",
            )
        )
    return rows
