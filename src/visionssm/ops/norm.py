"""LayerNorm and RMSNorm over the last axis, by the `native` back-end where that serves."""

from array import array

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .backends import native_serves_cpu
from .matrix_product import on_plain_cpu
from .schema import _library
from .walk import state_dtype

_library.define("layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor")
_library.define("add_layer_norm(Tensor x, Tensor update, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor)")
_library.define("add_rms_norm(Tensor x, Tensor? residual, Tensor weight, float eps) -> (Tensor, Tensor)")


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """`torch.nn.functional.layer_norm` over the last axis, whose statistics are float32 in lower precisions too.

    Args:
        x: (..., C).
        weight: (C), or (groups, C) for an x of (..., groups, C), or None.
        bias: like weight, or None.
        eps: added to the variance.

    Without gradients, on the CPU, outside of autocast and of graphs, the native kernel computes it; elsewhere torch, which
    fuses it with what is around it.

    Example:
        >>> x = torch.randn(2, 3, 8)
        >>> with torch.no_grad():
        ...     torch.allclose(layer_norm(x, torch.ones(8)), F.layer_norm(x, (8,)), atol=1e-6)
        True
    """
    if _served(x, weight, bias):
        return torch.ops.visionssm.layer_norm(x, weight, bias, eps)
    if all(value is None or value.dim() < 2 for value in (weight, bias)):
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    y = F.layer_norm(x, x.shape[-1:], eps=eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def add_layer_norm(
    x: Tensor, update: Tensor, weight: Tensor | None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """LayerNorm(total), and total = x + update, in one pass where :func:`layer_norm` is native.

    Args:
        x: (..., C).
        update: like x.
        weight, bias, eps: as in :func:`layer_norm`.

    Example:
        >>> x, update = torch.randn(2, 8), torch.randn(2, 8)
        >>> y, total = add_layer_norm(x, update, torch.ones(8))
        >>> torch.allclose(y, layer_norm(x + update, torch.ones(8))), torch.equal(total, x + update)
        (True, True)
    """
    if update.shape == x.shape and update.dtype == x.dtype and update.device == x.device and _served(x, weight, bias):
        return torch.ops.visionssm.add_layer_norm(x, update, weight, bias, eps)
    total = x + update
    return layer_norm(total, weight, bias, eps), total


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """x * (mean(x^2) + eps)^-1/2 * weight over the last axis; computed and returned in float32 (float64 for float64).

    Args:
        x: (..., C).
        weight: (C).
        eps: added to the mean.

    Example:
        >>> rms_norm(torch.tensor([3.0, 4.0]), torch.ones(2), eps=0.0)
        tensor([0.8485, 1.1314])
    """
    exact = x if x.dtype == torch.float64 else x.float()
    weight = weight.to(exact.dtype)
    if torch.is_grad_enabled():
        return F.rms_norm(exact, weight.shape, weight, eps)
    if _served(exact, weight, None):
        return torch.ops.visionssm.add_rms_norm(exact, None, weight, eps)[0]
    # The same with one full-size temporary instead of four.
    scale = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_().div_(len(weight)).add_(eps).rsqrt_()
    return (exact * scale).mul_(weight)


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """RMSNorm(total) in x's dtype, and total = residual + x in float32 (float64 for float64).

    Args:
        x: (..., C).
        residual: like x, in float32 or wider; None for none.
        weight: (C).
        eps: as in :func:`rms_norm`.

    Example:
        >>> x, residual = torch.ones(2, 8), torch.ones(2, 8)
        >>> y, total = add_rms_norm(x, residual, torch.ones(8))
        >>> torch.allclose(y, rms_norm(x + residual, torch.ones(8))), torch.equal(total, x + residual)
        (True, True)
    """
    fits = residual is None or (
        residual.dtype == torch.float32 and residual.shape == x.shape and residual.device == x.device
    )
    if fits and _served(x, weight, None):
        return torch.ops.visionssm.add_rms_norm(x, residual, weight, eps)
    total = x.to(state_dtype(x.dtype)) if residual is None else residual + x
    return rms_norm(total, weight, eps).to(x.dtype), total


def _served(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.dtype == torch.float64:
        return False
    parameter = bias if weight is None else weight
    if parameter is not None and parameter.shape not in (x.shape[-1:], x.shape[-2:]):  # torch refuses it
        return False
    if weight is not None and bias is not None and bias.shape != weight.shape:
        return False
    return on_plain_cpu(x, weight, bias) and native_serves_cpu()


def _native(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return normalize(x.contiguous(), None, weight, bias, eps, None)


def _native_add(
    x: Tensor, update: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    total = torch.empty_like(x)
    return normalize(x, update.contiguous(), weight, bias, eps, total), total


def normalize(
    x: Tensor, update: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, total: Tensor | None
) -> Tensor:
    """LayerNorm of x + update, by the native kernel, for contiguous tensors of one dtype; the sum goes to `total`."""
    y = torch.empty_like(x)
    weight, bias = None if weight is None else weight.contiguous(), None if bias is None else bias.contiguous()
    parameter = bias if weight is None else weight
    grouped = parameter is not None and parameter.dim() == 2
    columns, epsilon = x.shape[-1], array("d", (eps,))
    numbers = array(
        "q",
        (
            x.numel() // max(columns, 1), columns, native.useful_threads(x.numel()), native.DTYPES[x.dtype],
            x.shape[-2] if grouped else 1, x.data_ptr(), native.pointer(update), native.pointer(weight), native.pointer(bias),
            epsilon.buffer_info()[0], native.pointer(total), y.data_ptr(),
        ),
    )  # fmt: skip
    native.layer_norm(numbers)
    return y


def _native_rms(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, weight = x.contiguous(), weight.contiguous()
    residual = None if residual is None else residual.contiguous()
    total, y = torch.empty(x.shape, dtype=torch.float32), torch.empty(x.shape, dtype=x.dtype)
    columns, epsilon = x.shape[-1], array("d", (eps,))
    numbers = array(
        "q",
        (
            x.numel() // max(columns, 1), columns, native.useful_threads(x.numel()), native.DTYPES[x.dtype], x.data_ptr(),
            native.pointer(residual), weight.data_ptr(), epsilon.buffer_info()[0], total.data_ptr(), y.data_ptr(),
        ),
    )  # fmt: skip
    native.rms_norm(numbers)
    return y, total


def _fake_rms(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _like(x), torch.empty_like(_like(x), dtype=torch.float32)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_library.impl("layer_norm", _native, "CPU")
_library.impl("add_layer_norm", _native_add, "CPU")
_library.impl("add_rms_norm", _native_rms, "CPU")
torch.library.register_fake("visionssm::add_rms_norm", _fake_rms, lib=_library)
torch.library.register_fake("visionssm::layer_norm", lambda x, weight, bias, eps: _like(x), lib=_library)
torch.library.register_fake(
    "visionssm::add_layer_norm", lambda x, update, weight, bias, eps: (_like(x), _like(x)), lib=_library
)
