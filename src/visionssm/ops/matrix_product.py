"""x W^T + b on the CPU by the faster of torch's two matrix products.

torch multiplies float32 matrices with MKL, which takes a slower path on processors that are not Intel's; oneDNN, which torch brings
along too, can be twice as fast there. Which one is faster is measured once per machine and torch version, and remembered.
"""

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.flop_counter import register_flop_formula

from .._machine import processor
from .schema import _library

CHOICES = ("auto", "torch", "onednn")
DTYPES = (torch.float32, torch.bfloat16)
_NEEDED_GAIN = 1.02  # below that a second library in use is not worth its caches

_library.define("linear(Tensor x, Tensor weight, Tensor? bias, bool gelu) -> Tensor")
_library.define("linear_weight_gradient(Tensor grad, Tensor x) -> Tensor")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """`torch.nn.functional.linear`, by oneDNN where that was measured to be faster.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out) or None.
        gelu: apply the exact GELU to the result; without gradients it costs no pass over memory.

    float32 and bfloat16 on the CPU outside of autocast go by the measurement, or by the environment variable VISIONSSM_LINEAR
    ("auto", "torch", "onednn"); everything else, and what is exported, is torch's own.

    Example:
        >>> linear(torch.ones(2, 3), torch.ones(4, 3)).shape
        torch.Size([2, 4])
    """
    if not (on_plain_cpu(x, weight) and fits(x.shape[-1], weight, bias) and uses_onednn(x.dtype)):
        y = F.linear(x, weight, bias)
        return F.gelu(y) if gelu else y
    recorded = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in (x, weight, bias))
    fused = gelu and not recorded
    y = torch.ops.visionssm.linear(x, weight, bias, fused)
    return F.gelu(y) if gelu and not fused else y


def on_plain_cpu(x: Tensor, *weights: Tensor) -> bool:
    """Whether the operators below take these; not, for example, where quantisation has put another kind of tensor in place."""
    return (
        x.device.type == "cpu"
        and all(weight.dtype == x.dtype and not is_traceable_wrapper_subclass(weight) for weight in weights)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_exporting()
    )


def fits(inner: int, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a weight is (out, inner) and a bias belongs to it; others are left to torch, which says what is wrong."""
    plain = bias is None or (bias.dtype == weight.dtype and bias.shape == weight.shape[:1])
    return plain and weight.shape[1] == inner


@torch.compiler.assume_constant_result
def uses_onednn(dtype: torch.dtype = torch.float32) -> bool:
    """Whether :func:`linear` takes oneDNN for this dtype on this machine; decided at the first call and kept for the process."""
    if dtype not in DTYPES:
        return False
    if dtype not in _decisions:
        _decisions[dtype] = _decide(dtype)
    return _decisions[dtype]


_decisions: dict[torch.dtype, bool] = {}


def _decide(dtype: torch.dtype) -> bool:
    choice = os.environ.get("VISIONSSM_LINEAR", "auto")
    if choice not in CHOICES:
        raise ValueError(f"VISIONSSM_LINEAR: got {choice!r}, choose from {', '.join(CHOICES)}")
    available = torch.backends.mkldnn.is_available()
    if dtype == torch.bfloat16:
        available = available and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if choice != "auto" or not available:
        return choice == "onednn"
    return _remembered(dtype) >= _NEEDED_GAIN


def _remembered(dtype: torch.dtype) -> float:
    """The gain on this machine: read from the user's cache, or measured now and kept there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visionssm"
    key = f"{torch.__version__} {platform.machine()} {processor()} {torch.get_num_threads()} {dtype}"
    file = cache / f"products-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
    try:
        found = json.loads(file.read_text())
        if isinstance(found, dict) and isinstance(found.get("onednn_gain"), float):
            return found["onednn_gain"]
    except (OSError, ValueError):
        pass
    gain = measure_gain(dtype)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps({"onednn_gain": gain}))
        os.replace(unfinished, file)
    except OSError:
        pass  # a home that cannot be written to: the next process measures again
    return gain


def measure_gain(dtype: torch.dtype = torch.float32, repeats: int = 7) -> float:
    """How many times faster oneDNN's products are than torch's, in a row of them as models here have; about 0.1 s.

    The two take turns, and the fastest rows are compared, so that a busy machine does not switch by accident.
    """
    shapes = [(784, 192, 768), (784, 768, 192), (196, 384, 1536), (196, 1536, 384)]  # rows, inner, outer
    layers = [[torch.ones(size, dtype=dtype) for size in ((m, k), (n, k), (n,))] for m, k, n in shapes]
    functions: tuple[Callable[..., Tensor], ...] = (F.linear, _linear_by_onednn)
    times: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for _ in range(repeats):
            for function, spent in zip(functions, times, strict=True):
                start = time.perf_counter()
                for x, weight, bias in layers:
                    function(x, weight, bias)
                spent.append(time.perf_counter() - start)
    return min(times[0]) / min(times[1])


def _linear_by_onednn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.visionssm.linear(x, weight, bias, False)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    # oneDNN reads dense rows and biases, and weights as they lie or transposed.
    weight = weight if weight.t().is_contiguous() else weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    post = "gelu" if gelu else "none"
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, post, [], "none" if gelu else "")


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    grad, x = grad.flatten(0, -2), x.flatten(0, -2)
    # MKL is faster where the result has more rows than columns.
    return grad.t() @ x if grad.shape[1] >= x.shape[1] else (x.t() @ grad).t()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x W^T + bias of a matrix x, without autograd, by what was measured to be faster; written into `out` where that is given."""
    if uses_onednn(x.dtype):
        result = _forward(x, weight, bias, gelu=False)
        return result if out is None else out.copy_(result)
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
    # Where gradients of gradients are asked for, all of it has to be differentiable.
    weight_gradient = _weight_gradient if torch.is_grad_enabled() else torch.ops.visionssm.linear_weight_gradient
    return (
        torch.ops.visionssm.linear(grad, weight.t(), None, False) if needs_x else None,
        weight_gradient(grad, x) if needs_weight else None,
        grad.flatten(0, -2).sum(0) if ctx.has_bias and needs_bias else None,
        None,
    )


_library.impl("linear", _forward, "CPU")
_library.impl("linear_weight_gradient", _weight_gradient, "CPU")
torch.library.register_fake(
    "visionssm::linear", lambda x, weight, bias, gelu: x.new_empty((*x.shape[:-1], weight.shape[0])), lib=_library
)
torch.library.register_fake(
    "visionssm::linear_weight_gradient", lambda grad, x: x.new_empty((grad.shape[-1], x.shape[-1])), lib=_library
)
torch.library.register_autograd("visionssm::linear", _differentiate, setup_context=_setup_context, lib=_library)


@register_flop_formula(torch.ops.visionssm.linear)
def _linear_flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


@register_flop_formula(torch.ops.visionssm.linear_weight_gradient)
def _linear_weight_gradient_flops(grad: Any, x: Any, **_: Any) -> int:
    return 2 * math.prod(grad) * x[-1]
