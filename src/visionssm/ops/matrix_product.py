"""x W^T + b on the CPU by the fastest matrix product of the machine.

torch multiplies float32 matrices with MKL, which takes a slower path on processors that are not Intel's; oneDNN, which torch brings
along too, can be twice as fast there. With few rows both spend much of their time on preparation, and the native product is faster.
All of it is measured once per machine and torch version, and remembered.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.flop_counter import register_flop_formula

from .native_product import DTYPES, is_chosen, native_product, takes_in_place
from .product_choice import fastest, wanted
from .schema import _library

_FEW_ROWS = 4096

_library.define("linear(Tensor x, Tensor weight, Tensor? bias, bool gelu) -> Tensor")
_library.define("linear_weight_gradient(Tensor grad, Tensor x) -> Tensor")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """`torch.nn.functional.linear`, by oneDNN or for few rows by the native product, where they were measured to be faster.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out) or None.
        gelu: apply the exact GELU to the result; without gradients it costs no pass over memory.

    float32 and bfloat16 on the CPU outside of autocast go by the measurement, or by the environment variable VISIONSSM_LINEAR
    (see `product_choice.wanted`); everything else, and what is exported, is torch's own.

    Example:
        >>> linear(torch.ones(2, 3), torch.ones(4, 3)).shape
        torch.Size([2, 4])
    """
    if not (on_plain_cpu(x, weight) and fits(x.shape[-1], weight, bias) and has_faster_product(x.dtype)):
        y = F.linear(x, weight, bias)
        return F.gelu(y) if gelu else y
    recorded = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in (x, weight, bias))
    fused = gelu and not recorded
    y = torch.ops.visionssm.linear(x, weight, bias, fused)
    return F.gelu(y) if gelu and not fused else y


def on_plain_cpu(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether the operators below take these; not, for example, where quantisation has put another kind of tensor in place."""
    if not x.is_cpu or torch.is_autocast_enabled("cpu") or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    for weight in weights:
        if weight is not None and (weight.dtype != x.dtype or is_traceable_wrapper_subclass(weight)):
            return False
    return True


def fits(inner: int, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a weight is (out, inner) and a bias belongs to it; others are left to torch, which says what is wrong."""
    plain = bias is None or (bias.dtype == weight.dtype and bias.shape == weight.shape[:1])
    return plain and weight.shape[1] == inner


@torch.compiler.assume_constant_result
def has_faster_product(dtype: torch.dtype) -> bool:
    """Whether :func:`linear` takes anything but torch's own product for this dtype."""
    return uses_onednn(dtype) or _native_for_few_rows(dtype)


def uses_onednn(dtype: torch.dtype = torch.float32) -> bool:
    """Whether oneDNN is faster than torch's own product for this dtype; decided at the first call and kept for the process."""
    if dtype not in DTYPES:
        return False
    if dtype not in _decisions:
        _decisions[dtype] = _decide(dtype)
    return _decisions[dtype]


_decisions: dict[torch.dtype, bool] = {}


def _decide(dtype: torch.dtype) -> bool:
    choice = wanted()
    available = torch.backends.mkldnn.is_available()
    if dtype == torch.bfloat16:
        available = available and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if choice in ("torch", "onednn") or not available:
        return choice == "onednn" and available
    layers = _layers((784, 192, 768), (784, 768, 192), (196, 384, 1536), (196, 1536, 384), dtype=dtype)
    ways = {"torch": partial(_multiply, F.linear, layers), "onednn": partial(_multiply, _by_onednn, layers)}
    return fastest(ways, f"linear {dtype}") == "onednn"


def has_few_rows(rows: int, dtype: torch.dtype) -> bool:
    """Whether products of so many rows go by the native kernel."""
    return rows <= _FEW_ROWS and _native_for_few_rows(dtype)


def _native_for_few_rows(dtype: torch.dtype) -> bool:
    return is_chosen(dtype, "linear of few rows", _ways_for_few_rows)


def _ways_for_few_rows(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    layers = _layers((196, 192, 768), (196, 768, 192), (49, 384, 384), (784, 96, 192), dtype=dtype)
    library = _by_onednn if uses_onednn(dtype) else F.linear
    return {"library": partial(_multiply, library, layers), "native": partial(_multiply, native_product, layers)}


def _layers(*sizes: tuple[int, int, int], dtype: torch.dtype) -> list[list[Tensor]]:
    """Inputs, weights and biases for products of so many rows, inner and outer numbers."""
    return [[torch.ones(size, dtype=dtype) for size in ((m, k), (n, k), (n,))] for m, k, n in sizes]


def _multiply(way: Callable[..., Tensor], layers: list[list[Tensor]]) -> None:
    with torch.no_grad():
        for layer in layers:
            way(*layer)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    *outer, inner = x.shape
    rows = x.reshape(math.prod(outer), inner)
    return product(rows, weight, bias, gelu=gelu).view(*outer, weight.shape[0])


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False, out: Tensor | None = None
) -> Tensor:
    """:func:`linear` of a matrix x without autograd, written into `out` where that is given."""
    if has_few_rows(x.shape[0], x.dtype) and takes_in_place(x, weight):
        return native_product(x, weight, bias, gelu=gelu, out=out)
    if uses_onednn(x.dtype):
        result = _by_onednn(x, weight, bias, gelu)
        return result if out is None else out.copy_(result)
    y = torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)
    return torch.ops.aten.gelu_(y) if gelu else y


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    # oneDNN reads dense rows and biases, and weights as they lie or transposed.
    weight = weight if weight.t().is_contiguous() else weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    post = "gelu" if gelu else "none"
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, post, [], "none" if gelu else "")


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    grad, x = grad.flatten(0, -2), x.flatten(0, -2)
    # MKL is faster where the result has more rows than columns.
    return grad.t() @ x if grad.shape[1] >= x.shape[1] else (x.t() @ grad).t()


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
