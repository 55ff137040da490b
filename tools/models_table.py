"""Writes docs/models.md: every registered model with its size, its cost by two rules, its published score and weights.

    python tools/models_table.py                                          write the page; half a minute
    python tools/models_table.py --peak-memory mambavision_large3_512    measure one forward pass instead

A family's paragraphs are the description at the top of its file in visionssm/models; its own rule for GFLOPs is below.
"""

import argparse
import inspect
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.models import model_entrypoint
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import visionssm
from visionssm.models import Release, all_releases, count_gmacs, count_parameters

PAGE = Path(__file__).parents[1] / "docs" / "models.md"

INTRODUCTION = """\
# Models

Made by `tools/models_table.py`; do not edit.

- **Parameters** are those of the classifier as published, auxiliary heads included. The script stops if a model has another
  number than the release.
- **GFLOPs** are 10^9 multiply-adds for one image of the size given. *Published* is what the authors print. *Their rule* is what
  we count by the rule that they used, where it is known; it is named below each table. *Ours* is one rule for all:
  convolutions, matrix products and attention products, and for each step, path and channel of a scan 9 per state, one, and
  the low-rank projection of the step size. Norms, activations, pooling and FFTs are not counted. `visionssm info MODEL
  --img-size H W` counts for any size. Only the last column compares families with each other.
- **Top-1** is the published ImageNet-1K accuracy in percent, at that size.
- **Weights** stay where their authors put them, under their terms; [NOTICE](../NOTICE) says what is known of these. We host
  none. `pretrained=True` fetches them, `checkpoint=FILE` loads them from a file. The small models tagged `.digits` are our own,
  trained on scikit-learn's handwritten digits, and part of the package: with them everything works without network.
"""


@dataclass
class Counts:
    """Multiply-adds of one forward pass by kind, and what the scans and norms saw."""

    convolution: float = 0.0
    depthwise: float = 0.0  # part of convolution
    linear: float = 0.0
    batched: float = 0.0  # products of two activations, or with one matrix per path
    scans: list[tuple[int, int, int, int, int]] = field(default_factory=list)  # L, K, E, N, R
    normalised: float = 0.0  # elements
    pooled: float = 0.0  # elements

    def scan(self, per_state: float, per_channel: float) -> float:
        """Multiply-adds of the recurrence, without the projection of the step size."""
        return sum(L * K * E * (per_state * N + per_channel) for L, K, E, N, _ in self.scans)

    @property
    def step_projection(self) -> float:
        """Multiply-adds of the low-rank projections of the step size."""
        return sum(L * K * E * R for L, K, E, _, R in self.scans)


def count(model: nn.Module, size: tuple[int, int, int]) -> Counts:
    """Counts one image of (channels, H, W) on the meta device, where nothing is computed."""
    counts = Counts()

    def convolution(x: Any, weight: Any, *rest: Any, out_shape: Any, **__: Any) -> int:
        transposed = rest[4]
        found = math.prod(x if transposed else out_shape) * math.prod(weight[1:])
        counts.convolution += found
        counts.depthwise += found if weight[1] == 1 else 0
        return 0

    def scan(x: Any, dt: Any, A: Any, *rest: Any, **__: Any) -> int:
        dt_weight, path = rest[4:6]
        counts.scans += [(path[1], *A, 0 if dt_weight is None else dt_weight[2])] * x[0]
        return 0

    def norm(x: Any, *_: Any, **__: Any) -> int:
        counts.normalised += math.prod(x)
        return 0

    def pool(x: Any, *_: Any, **__: Any) -> int:
        counts.pooled += math.prod(x)
        return 0

    aten = torch.ops.aten
    mapping = {
        aten.convolution: convolution,
        torch.ops.visionssm.path_scan: scan,
        aten.native_layer_norm: norm,
        aten.mean: pool,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter, torch.no_grad():
        model(torch.empty(1, *size, device="meta"))
    for operator, found in counter.flop_counts["Global"].items():
        if operator in (aten.mm, aten.addmm, torch.ops.visionssm.linear):
            counts.linear += found / 2
        elif operator not in mapping:
            counts.batched += found / 2
    return counts


@dataclass(frozen=True)
class Rule:
    """How the authors of a family count."""

    text: str
    gmacs: Callable[[Counts], float]


def _vmamba(c: Counts) -> float:
    products = c.convolution + c.linear + c.batched + c.step_projection
    return products + c.scan(9, 1) + 5 * c.normalised + c.pooled


def _local_vim(c: Counts) -> float:
    every_direction = c.depthwise + c.batched + c.step_projection
    return c.convolution - c.depthwise + c.linear + every_direction / 4 + c.scan(5, 2)


_VMAMBA = Rule("as ours, and 5 per element that a LayerNorm sees and 1 per element that is pooled", _vmamba)

# By the start of a model's name.
RULES = {
    "vim_": Rule(
        "convolutions and linear layers, and 4 per state, step and channel of each scan, as in the paper's formula; the "
        "authors publish no numbers",
        lambda c: c.convolution + c.linear + c.batched + c.step_projection + c.scan(4, 0),
    ),
    "vmamba_": _VMAMBA,
    "vanilla_vmamba_": _VMAMBA,
    "mambavision_": Rule(
        "convolutions and linear layers, without attention products and without the scan",
        lambda c: c.convolution + c.linear + c.step_projection,
    ),
    "local_vim_": Rule(
        "of LocalVim, the convolution and both projections of one direction in place of four, and 5 per state and 2 per "
        "channel for each scan step of all four: about a quarter less than ours",
        _local_vim,
    ),
    "simba_": Rule(
        "convolutions and linear layers, without the scan and without the products of the EinFFT mixer; their counter also adds "
        "biases, 0.3 % at most, which we leave out",
        lambda c: c.convolution + c.linear + c.step_projection,
    ),
}

# What else a reader should know before choosing a model.
REMARKS = {
    "mambavision": "Memory: `mambavision_large3_512`, the largest of all, takes 3.7 GiB at most for one 512 x 512 image on a "
    "CPU in float32, 2.8 GiB of it weights; `python tools/models_table.py --peak-memory mambavision_large3_512` measures it.",
}


def family(name: str) -> str:
    """The file in visionssm/models that a model is in."""
    return model_entrypoint(name.partition(".")[0]).__module__.rpartition(".")[2]


def rule_of(name: str) -> Rule | None:
    """The rule by which a model's authors count, where it is known."""
    return next((rule for start, rule in RULES.items() if name.startswith(start)), None)


def row(name: str, release: Release) -> str:
    """One line of a table."""
    with torch.device("meta"):
        model = visionssm.create_model(name.partition(".")[0]).eval()
    parameters = count_parameters(model)
    if parameters != release.params:
        raise ValueError(f"{name} has {parameters:,} parameters, but its release {release.params:,}")
    rule = rule_of(name)
    _, H, W = release.input_size
    cells = (
        f"`{name}`",
        f"{parameters:,}",
        f"{H}" if H == W else f"{H} x {W}",
        _optional(release.gflops, "g"),
        "-" if rule is None else _giga(rule.gmacs(count(model, release.input_size)) / 1e9),
        _giga(count_gmacs(model, (H, W))),
        _optional(release.top1, ".1f"),
        f"[file]({'../src/' if release.file else ''}{release.source})"
        if release.has_weights
        else release.note or "none released",
        release.weights_license if release.has_weights else "-",
    )
    return f"| {' | '.join(cells)} |"


def _optional(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _giga(value: float) -> str:
    return f"{value:.3g}" if value < 1 else f"{value:.2f}"


COLUMNS = (
    "model",
    "parameters",
    "size",
    "GFLOPs published",
    "GFLOPs, their rule",
    "GFLOPs, ours",
    "top-1",
    "weights",
    "their licence",
)


def page() -> str:
    """The whole page."""
    families: dict[str, dict[str, Release]] = {}
    for name, release in all_releases().items():
        families.setdefault(family(name), {})[name] = release
    ordered = sorted(families, key=lambda module: min(r.paper for r in families[module].values() if r.paper))
    return "\n".join([INTRODUCTION, *(section(module, families[module]) for module in ordered)])


def section(module: str, releases: dict[str, Release]) -> str:
    """A family's heading, description, table and rule."""
    description = inspect.getdoc(sys.modules[f"visionssm.models.{module}"]) or module
    title, _, text = description.partition("\n")
    lines = [
        f"## {title.rstrip('.')}",
        "",
        text.strip(),
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(row(name, release) for name, release in releases.items()),
        "",
    ]
    rules = {id(rule): rule for name in releases if (rule := rule_of(name))}
    lines += [f"Their rule: {rule.text}.\n" for rule in rules.values()] or ["The authors do not say how they count.\n"]
    if module in REMARKS:
        lines += [REMARKS[module], ""]
    return "\n".join(lines)


def peak_memory(name: str) -> str:
    """Peak memory of the process over one forward pass of one image on the CPU, in float32, weights included."""
    model = visionssm.create_model(name).eval()
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30
    size = model.pretrained_cfg["input_size"]
    start = time.perf_counter()
    with torch.inference_mode():
        model(torch.zeros(1, *size))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"{name} at {size[1]}x{size[2]}: {peak:.2f} GiB at most, {weights:.2f} GiB of it weights, in {seconds:.0f} s"


def main() -> None:
    """Write the page, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak-memory", metavar="MODEL", help="measure the memory of a model instead")
    args = parser.parse_args()
    if args.peak_memory:
        print(peak_memory(args.peak_memory))
        return
    unfinished = PAGE.with_suffix(".unfinished")
    unfinished.write_text(page())
    os.replace(unfinished, PAGE)
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
