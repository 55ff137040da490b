"""Linear layers of groups of channels, one each."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .matrix_product import on_plain_cpu
from .native_product import is_chosen, native_product, takes_in_place
from .schema import _library

_library.define("grouped_linear(Tensor x, Tensor weight) -> Tensor")


def grouped_linear(x: Tensor, weight: Tensor) -> Tensor:
    """(..., groups, in) and (groups, out, in) to (..., groups, out).

    On the CPU, outside of autocast, of graphs and without gradients, by torch's batched product or the native one, whichever was
    measured to be faster for such narrow matrices; the environment variable VISIONSSM_LINEAR says "torch" or "native" by hand.

    Example:
        >>> x, weight = torch.randn(2, 5, 4, 8), torch.randn(4, 3, 8)
        >>> torch.allclose(grouped_linear(x, weight)[:, :, 1], x[:, :, 1] @ weight[1].T, atol=1e-6)
        True
    """
    fits = weight.dim() == 3 and x.shape[-2:] == weight.shape[::2]
    if not fits or torch.is_grad_enabled() or torch.compiler.is_compiling() or not on_plain_cpu(x, weight):
        return torch.einsum("...gi,goi->...go", x, weight)
    return torch.ops.visionssm.grouped_linear(x, weight)


def grouped_product(x: Tensor, weight: Tensor) -> Tensor:
    """:func:`grouped_linear` on the CPU without autograd, for sizes that fit."""
    rows = x.flatten(0, -3)
    native = takes_in_place(rows, weight) and is_chosen(x.dtype, "grouped linear", _ways)
    return (native_product if native else _by_torch)(rows, weight).view(*x.shape[:-1], weight.shape[1])


def _by_torch(x: Tensor, weight: Tensor) -> Tensor:
    # Written to where it belongs: einsum would copy it there.
    out = x.new_empty(len(x), *weight.shape[:2])
    torch.bmm(x.transpose(0, 1), weight.transpose(1, 2), out=out.transpose(0, 1))
    return out


def _ways(dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    x, weight = torch.ones(196, 4, 88, dtype=dtype), torch.ones(4, 88, 88, dtype=dtype)
    return {"library": lambda: _by_torch(x, weight), "native": lambda: native_product(x, weight)}


_library.impl("grouped_linear", grouped_product, "CPU")
torch.library.register_fake(
    "visionssm::grouped_linear", lambda x, weight: x.new_empty(*x.shape[:-1], weight.shape[1]), lib=_library
)


@register_flop_formula(torch.ops.visionssm.grouped_linear)
def _flops(x: Any, weight: Any, **_: Any) -> int:
    return 2 * math.prod(x) * weight[1]
