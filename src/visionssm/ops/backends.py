"""Which implementation serves a call, and why the others do not."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from . import native, torch_chunked, triton_launch

BACKENDS = ("triton", "native", "torch", "reference")
_KERNELS = {"triton": triton_launch, "native": native, "torch": torch_chunked}
_default = os.environ.get("VISIONSSM_BACKEND", "auto")


def kernels(backend: str) -> ModuleType:
    """The module that holds `forward` and `backward` of a registered back-end."""
    return _KERNELS[backend]


@torch.compiler.assume_constant_result
def _refusal(backend: str, device: str, dtype: torch.dtype) -> str | None:
    if backend == "native":
        if device != "cpu":
            return f"runs on CPU tensors only, got {device}"
        return native.unavailable()
    if backend == "triton":
        reason = triton_launch.unavailable(device)
        if reason is None and dtype == torch.float64:
            return "keeps its state in float32, got float64"
        return reason
    return None


def explain_backend(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, str | None]:
    """Says for every back-end why it cannot serve tensors of this device and dtype; None where it can.

    `backend="auto"` takes the first that can, in the order of the result, and never `reference`.

    Example:
        >>> explain_backend("cpu")["torch"] is None
        True
        >>> explain_backend("cuda")["native"]
        'runs on CPU tensors only, got cuda'
    """
    kind = torch.device(device).type
    return {name: _refusal(name, kind, dtype) for name in BACKENDS}


@contextmanager
def default_backend(name: str) -> Iterator[None]:
    """Makes every call with `backend="auto"` inside the block use this back-end; it does not fall back.

    The environment variable VISIONSSM_BACKEND sets the same for a whole process.

    Example:
        >>> with default_backend("reference"):
        ...     pass
    """
    global _default
    _check_name(name)
    before, _default = _default, name
    try:
        yield
    finally:
        _default = before


def current_default() -> str:
    """What `backend="auto"` stands for at the moment: "auto", unless one was named for a block or for the process."""
    return _default


def native_serves_cpu() -> bool:
    """Whether `backend="auto"` is `native` for tensors on the CPU, which every operator beside the scan asks at every call."""
    if _default == "auto" and _refusal("native", "cpu", torch.float32) is None:
        return True
    return choose_backend("auto", torch.device("cpu"), torch.float32) == "native"


def choose_backend(requested: str, device: torch.device, dtype: torch.dtype) -> str:
    """The back-end that serves a call, or a ValueError with every reason why none does."""
    name = _default if requested == "auto" else requested
    _check_name(name)
    kind = device.type
    if name != "auto":
        reason = _refusal(name, kind, dtype)
        if reason is None:
            return name
        raise ValueError(
            f"backend={name!r} cannot serve this call: it {reason}. Use backend='auto' to let the first that can."
        )
    order = ("triton", "native") if kind != "cpu" else ("native",)
    reasons = {}
    for candidate in order:
        reason = _refusal(candidate, kind, dtype)
        if reason is None:
            return candidate
        reasons[candidate] = reason
    if kind in ("cpu", "cuda", "xpu") and not torch.compiler.is_compiling():
        _warn_slow(kind, str(dtype), "; ".join(f"{name} {reason}" for name, reason in reasons.items()))
    return "torch"


_warned: set[str] = set()


def _warn_slow(kind: str, dtype: str, reasons: str) -> None:
    if kind in _warned:
        return
    _warned.add(kind)
    warnings.warn(
        f"path_scan runs on the slow `torch` back-end for {kind} tensors ({dtype}): {reasons}. "
        "`visionssm doctor` says how to get a fast one.",
        stacklevel=4,
    )


def _check_name(name: str) -> None:
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"backend: got {name!r}, choose from {', '.join(('auto', *BACKENDS))}")
