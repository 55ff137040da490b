"""Measures models in turns, so that whatever else the machine does hits all of them alike.

A result is a ratio within one run; times of different runs are not compared.
"""

import contextlib
import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visionssm._create import create_model
from visionssm._messages import choose
from visionssm.layers.linear import use_fast_linear
from visionssm.models import count_gmacs
from visionssm.models._backbone import Backbone

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How models are measured.

    Args:
        size: (H, W) of the images, in pixels.
        batch: images per call.
        dtype: "float32", or "bfloat16" or "float16" for weights and images in that precision (autocast when training).
        device: "cpu", "cuda", ...
        train: forward and backward instead of inference.
        compile: through torch.compile.
        equal: give the linear layers of every model the matrix product that ours use.

    Raises:
        ValueError: an unknown dtype.
    """

    size: tuple[int, int] = (224, 224)
    batch: int = 8
    dtype: str = "float32"
    device: str = "cpu"
    train: bool = False
    compile: bool = False
    equal: bool = False

    def __post_init__(self) -> None:
        choose("dtype", self.dtype, DTYPES)

    def describe(self) -> str:
        """One line, such as "224x224 batch 8 float32 inference, equal products".

        Example:
            >>> Setting(batch=1, equal=True).describe()
            '224x224 batch 1 float32 inference, equal products'
        """
        parts = (
            f"{self.size[0]}x{self.size[1]} batch {self.batch} {self.dtype} {'training' if self.train else 'inference'}"
        )
        return parts + (", compiled" if self.compile else "") + (", equal products" if self.equal else "")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One model in one setting. Times are seconds per call; memory in MiB above what the weights and the process hold."""

    model: str
    setting: Setting
    seconds: tuple[float, ...]
    peak_mib: float | None
    gmacs: float | None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def images_per_second(self) -> float:
        return self.setting.batch / self.median

    def percentile(self, share: float) -> float:
        """Seconds that this share of the calls did not exceed."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "model": self.model,
            **asdict(self.setting),
            "images_per_second": self.images_per_second,
            "median_s": self.median,
            **{f"p{percent}_s": self.percentile(percent / 100) for percent in (10, 90, 99)},
            "calls": len(self.seconds),
            "peak_mib": self.peak_mib,
            "gmacs": self.gmacs,
        }


def compare(
    models: Sequence[str], setting: Setting, *, seconds: float = 10.0, progress: Callable[[str], None] | None = None
) -> list[Measurement]:
    """Measures models in one setting, taking turns.

    Before anything is timed, each of our models must give the same logits on the back-end it uses as on plain torch.

    Args:
        models: names of this library or of timm.
        setting: see :class:`Setting`.
        seconds: about how long each model runs.
        progress: called with a line of text now and then.

    Returns:
        One measurement per model, in the given order.

    Raises:
        ValueError: an unknown model, or a model whose results are wrong.
    """
    return take_turns([(name, setting) for name in models], seconds=seconds, progress=progress)


def take_turns(
    entries: Sequence[tuple[str, Setting]],
    *,
    seconds: float = 10.0,
    rounds: int = 3,
    progress: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Measurement]:
    """As :func:`compare`, with a setting for each model.

    Args:
        entries: pairs of a model's name and its setting.
        seconds: about how long each model runs.
        rounds: calls of each model at the least.
        progress: called with a line of text now and then.
        clock: `time.process_time` counts what one thread computes on a machine that others use at the same time.
    """
    say = progress or (lambda line: None)
    calls, peaks = [], []
    for name, setting in entries:
        say(f"{name}: building and checking")
        call = _prepare(name, setting)
        peaks.append(peak_mib(call, setting.device))
        calls.append(call)
    spent: list[list[float]] = [[] for _ in entries]
    deadline = time.perf_counter() + seconds * len(entries)
    while time.perf_counter() < deadline or len(spent[0]) < rounds:
        for (_, setting), call, times in zip(entries, calls, spent, strict=True):
            times.append(_timed(call, setting.device, clock))
        if len(spent[0]) == 1:
            say(f"{entries[0][1].describe()}: {', '.join(f'{t[0]:.3f} s' for t in spent)} a call, measuring")
    return [
        Measurement(model=name, setting=setting, seconds=tuple(times), peak_mib=peak, gmacs=_gmacs(name, setting.size))
        for (name, setting), times, peak in zip(entries, spent, peaks, strict=True)
    ]


def _prepare(name: str, setting: Setting) -> Callable[[], Any]:
    torch.manual_seed(0)
    model = _build(name, setting.size).eval()
    if setting.equal:
        use_fast_linear(model)
    dtype, device = DTYPES[setting.dtype], torch.device(setting.device)
    x = torch.randn(setting.batch, 3, *setting.size)
    if device.type != "cpu":
        x = x.contiguous(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
    model, x = model.to(device), x.to(device)
    if isinstance(model, Backbone):
        _check(name, model, x[:1, :, :256, :256])
    if setting.train:
        return _training_call(model.train(), x, dtype, setting)
    model, x = model.to(dtype), x.to(dtype)
    function: Callable[[Tensor], Any] = torch.compile(model) if setting.compile else model

    def infer() -> Any:
        with torch.inference_mode(not setting.compile), torch.no_grad():
            return function(x)

    infer()
    return infer


def _build(name: str, size: tuple[int, int]) -> nn.Module:
    try:
        return create_model(name, img_size=size)
    except TypeError:  # models that take any size have no such argument
        return create_model(name)


def _check(name: str, model: nn.Module, x: Tensor) -> None:
    """The correctness gate: the chosen back-end against plain torch, in float32, on a corner of the image."""
    from visionssm.ops import default_backend

    with torch.inference_mode():
        found = model(x)
        with default_backend("torch"):
            expected = model(x)
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error < 1e-3:
        raise ValueError(
            f"{name}: its logits differ from the plain back-end's by {error:.1e} of their maximum; not measured"
        )


def _training_call(model: nn.Module, x: Tensor, dtype: torch.dtype, setting: Setting) -> Callable[[], None]:
    function: Callable[[Tensor], Any] = torch.compile(model) if setting.compile else model

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            output = function(x)
        logits = output[0] if isinstance(output, tuple) else output
        logits.float().logsumexp(1).mean().backward()

    step()
    return step


def _timed(call: Callable[[], Any], device: str, clock: Callable[[], float]) -> float:
    _synchronize(device)
    start = clock()
    call()
    _synchronize(device)
    return clock() - start


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak_mib(call: Callable[[], Any], device: str) -> float | None:
    """Highest memory during one call, above what is held before it; None where the system does not tell."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - held) / 2**20
    with contextlib.suppress(OSError, AttributeError):
        # Freed memory that the C library still holds would hide what the next call takes.
        ctypes.CDLL(None).malloc_trim(0)
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak of the resident set
        before = _status("VmRSS")
        call()
        return max(0.0, _status("VmHWM") - before)
    except (OSError, ValueError):
        call()
        return None


def _status(key: str) -> float:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(key + ":"):
                return float(line.split()[1]) / 1024
    raise ValueError(f"no {key} in /proc/self/status")


def _gmacs(name: str, size: tuple[int, int]) -> float | None:
    with torch.device("meta"):
        model = _build(name, size)
    return count_gmacs(model, size)


def settings(
    sizes: Sequence[tuple[int, int]], batches: Sequence[int], dtypes: Sequence[str], **common: Any
) -> Iterator[Setting]:
    """Every combination, small images first."""
    for size in sorted(sizes):
        for batch in batches:
            for dtype in dtypes:
                yield Setting(size=size, batch=batch, dtype=dtype, **common)
