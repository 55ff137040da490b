"""Which way of multiplying matrices is the fastest on this machine: measured once, and remembered in the user's cache."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from .._machine import processor
from . import native

CHOICES = ("auto", "torch", "onednn", "native")
_NEEDED_GAIN = 1.02  # below that a second library in use is not worth its caches


def wanted() -> str:
    """The environment variable VISIONSSM_LINEAR.

    "auto" lets a measurement decide, "torch" and "onednn" take one of torch's two libraries for every product, and "native" takes
    the kernel of this library wherever `native_product` is used: for few rows, MLPs and products of groups.

    Raises:
        ValueError: it says something else, or what is not there.
    """
    choice = os.environ.get("VISIONSSM_LINEAR", "auto")
    if choice not in CHOICES:
        raise ValueError(f"VISIONSSM_LINEAR: got {choice!r}, choose from {', '.join(CHOICES)}")
    if choice == "onednn" and not torch.backends.mkldnn.is_available():
        raise ValueError(
            "VISIONSSM_LINEAR=onednn: this torch was built without it; leave it out to let a measurement decide"
        )
    if choice == "native" and native.unavailable() is not None:
        raise ValueError(f"VISIONSSM_LINEAR=native: the native back-end {native.unavailable()}")
    return choice


def fastest(ways: Mapping[str, Callable[[], object]], question: str) -> str:
    """The name of the fastest way to do the same, or the first where none is 2 % faster.

    Args:
        ways: functions that do it once, by name.
        question: what is done; the answer is kept for it, the machine, the number of threads, and the versions of torch and of the
            native kernels.
    """
    gains = _remembered(ways, question)
    best = max(gains, key=lambda name: gains[name])
    return best if gains[best] >= _NEEDED_GAIN else next(iter(ways))


def measure_gains(ways: Mapping[str, Callable[[], object]], repeats: int = 7) -> dict[str, float]:
    """How many times faster each way is than the first one.

    They take turns, and the fastest turns are compared, so that a busy machine does not switch by accident.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    fastest_turns = {name: min(turns) for name, turns in times.items()}
    return {name: fastest_turns[next(iter(ways))] / turn for name, turn in fastest_turns.items()}


def _remembered(ways: Mapping[str, Callable[[], object]], question: str) -> dict[str, float]:
    """The gains on this machine: read from the user's cache, or measured now and kept there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visionssm"
    key = (
        question,
        *ways,
        torch.__version__,
        native.version(),
        platform.machine(),
        processor(),
        torch.get_num_threads(),
    )
    file = cache / f"products-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}.json"
    try:
        found = json.loads(file.read_text())
        if (
            isinstance(found, dict)
            and set(found) == set(ways)
            and all(isinstance(gain, float) for gain in found.values())
        ):
            return found
    except (OSError, ValueError):
        pass
    gains = measure_gains(ways)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(gains))
        os.replace(unfinished, file)
    except OSError:
        pass  # a home that cannot be written to: the next process measures again
    return gains
