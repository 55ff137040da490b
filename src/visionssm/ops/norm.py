"""LayerNorm over the last axis, by the `native` back-end where that serves."""

from array import array

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .backends import choose_backend
from .matrix_product import on_plain_cpu
from .schema import _library

_library.define("layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor")


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """`torch.nn.functional.layer_norm` over the last axis, whose statistics are float32 in lower precisions too.

    Args:
        x: (..., C).
        weight: (C) or None.
        bias: (C) or None.
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
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _served(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.dtype == torch.float64:
        return False
    parameters = [value for value in (weight, bias) if value is not None]
    if any(value.shape != x.shape[-1:] for value in parameters):  # torch refuses it
        return False
    return on_plain_cpu(x, *parameters) and choose_backend("auto", x.device, x.dtype) == "native"


def _native(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    weight, bias = (None if value is None else value.contiguous() for value in (weight, bias))
    columns, epsilon = x.shape[-1], array("d", (eps,))
    numbers = array(
        "q",
        (
            x.numel() // max(columns, 1), columns, torch.get_num_threads(), native.DTYPES[x.dtype], x.data_ptr(),
            0 if weight is None else weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
            epsilon.buffer_info()[0], y.data_ptr(),
        ),
    )  # fmt: skip
    native.layer_norm(numbers)
    return y


_library.impl("layer_norm", _native, "CPU")
torch.library.register_fake(
    "visionssm::layer_norm",
    lambda x, weight, bias, eps: torch.empty_like(x, memory_format=torch.contiguous_format),
    lib=_library,
)
