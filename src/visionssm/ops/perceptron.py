"""Linear, GELU, linear, worked through in tiles of rows.

The hidden activations are the largest tensors of most models. In tiles of rows they stay in the cache from one product to the next,
forward and backward, and no fresh memory of their size is needed, whose pages the system would have to clear first.
"""

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .backends import native_serves_cpu
from .matrix_product import DTYPES, fits, linear, on_plain_cpu, product
from .native import bias_gelu, gelu_backward
from .native_product import add_native_product, is_chosen, native_product, takes
from .schema import _library

_TILE_BYTES = 2**22  # of the hidden activations

_library.define(
    "mlp(Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, bool keep) -> (Tensor, Tensor)"
)
_library.define(
    "mlp_backward(Tensor grad, Tensor x, Tensor hidden, Tensor weight1, Tensor weight2)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None) -> Tensor:
    """Linear, exact GELU, linear, over the last axis.

    Args:
        x: (..., in).
        weight1: (hidden, in).
        bias1: (hidden) or None.
        weight2: (out, hidden).
        bias2: (out) or None.

    On the CPU and outside of autocast, float32, and bfloat16 without gradients, go in tiles; backward reads x and the
    hidden values before the GELU, which are all that is kept.

    Example:
        >>> mlp(torch.ones(2, 3), torch.ones(8, 3), None, torch.ones(4, 8), None).shape
        torch.Size([2, 4])
    """
    tensors = (x, weight1, bias1, weight2, bias2)
    keep = torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in tensors)
    fit = fits(x.shape[-1], weight1, bias1) and fits(weight1.shape[0], weight2, bias2)
    if fit and on_plain_cpu(x, weight1, weight2) and x.dtype in (DTYPES[:1] if keep else DTYPES):
        return torch.ops.visionssm.mlp(*tensors, keep)[0]
    return linear(linear(x, weight1, bias1, gelu=True), weight2, bias2)


def _tiles(rows: int, hidden: int, element_size: int) -> list[slice]:
    """Equal tiles, of about _TILE_BYTES but no fewer than 256 rows each."""
    count = max(1, min(round(rows * hidden * element_size / _TILE_BYTES), rows // 256))
    size = -(-rows // count)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _forward(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor]:
    rows = x.reshape(-1, x.shape[-1])
    kept = x.new_empty((len(rows), len(weight1)) if keep else 0)
    tiles = _tiles(len(rows), len(weight1), x.element_size())
    out = x.new_empty(len(rows), len(weight2)) if len(tiles) > 1 else None
    native = _natively(x, weight1)
    for tile in tiles:
        place, before = None if out is None else out[tile], kept[tile] if keep else None
        if native:
            result = native_product(_native_hidden(rows[tile], weight1, bias1, before), weight2, bias2, out=place)
        else:
            hidden = _activate(product(rows[tile], weight1, out=before), bias1, keep)
            result = product(hidden, weight2, bias2, out=place)
    return (result if out is None else out).view(*x.shape[:-1], -1), kept


def _natively(x: Tensor, weight1: Tensor) -> bool:
    return takes(x.dtype, x.shape[-1], len(weight1)) and is_chosen(x.dtype, "MLP in tiles", _ways)


def _native_hidden(rows: Tensor, weight1: Tensor, bias1: Tensor | None, before: Tensor | None) -> Tensor:
    """The hidden activations, in memory that the next tile takes again; with `before` the values before the GELU go there."""
    columns = len(weight1)
    if before is not None:
        native_product(rows, weight1, bias1, out=before)
        return bias_gelu(before, None, _memory.take("hidden", before.shape, before.dtype))
    # Rows a multiple of 1 KiB apart would displace each other from the cache.
    apart = columns + (32 if columns % 256 == 0 else 0)
    hidden = _memory.take("hidden", (len(rows), apart), rows.dtype)[:, :columns]
    return native_product(rows, weight1, bias1, gelu=True, out=hidden)


def _ways(dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    sizes = [(2730, 96, 384), (682, 384, 1536)]  # rows, width and hidden width of tiles
    layers = [[torch.ones(size, dtype=dtype) for size in ((n, w), (h, w), (h,), (w, h), (w,))] for n, w, h in sizes]

    def library() -> None:
        for rows, weight1, bias1, weight2, bias2 in layers:
            product(_activate(product(rows, weight1), bias1, keep=False), weight2, bias2)

    def native() -> None:
        for rows, weight1, bias1, weight2, bias2 in layers:
            native_product(_native_hidden(rows, weight1, bias1, None), weight2, bias2)

    # Inside of a model the native one is ahead of what is measured here, because it brings no fresh memory into the caches:
    # it is left only for what is clearly faster.
    return {"native": native, "library": library}


class _Memory(threading.local):
    """Matrices of the size of a tile, kept by each thread for its next call: new memory costs more than filling it."""

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        if name not in self.held or self.held[name].nbytes < size:
            self.held[name] = torch.empty(size, dtype=torch.uint8)
        return self.held[name][:size].view(dtype).view(*shape)


_memory = _Memory()


def _activate(hidden: Tensor, bias: Tensor | None, keep: bool) -> Tensor:
    """GELU(hidden + bias); in the place of `hidden`, or with `keep` in new memory, and hidden + bias in its place."""
    if native_serves_cpu():
        return bias_gelu(hidden, bias, torch.empty_like(hidden) if keep else hidden)
    if bias is not None:
        hidden += bias
    return F.gelu(hidden) if keep else torch.ops.aten.gelu_(hidden)


def _differentiate_gelu(x: Tensor, gradient: Tensor, out: Tensor | None) -> Tensor:
    """GELU(x), in `out` where the native kernel computes it; `gradient`, by GELU(x), becomes that by x."""
    if native_serves_cpu():
        return gelu_backward(x, gradient, torch.empty_like(x) if out is None else out)
    torch.ops.aten.gelu_backward(gradient, x, grad_input=gradient)
    return F.gelu(x)


def _backward(
    grad: Tensor, x: Tensor, hidden: Tensor, weight1: Tensor, weight2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    grad_x = torch.empty_like(rows)
    # The first one transposed, as (in, hidden): products of few rows and many columns are faster.
    grad_weight1, grad_weight2 = x.new_zeros(weight1.shape[::-1]), x.new_zeros(weight2.shape)
    grad_bias1 = x.new_zeros(len(weight1))
    native = _natively(x, weight1)
    multiply = native_product if native else product
    native_gradients = is_chosen(x.dtype, "weight gradients of an MLP", _ways_of_weight_gradients)
    add_product = add_native_product if native_gradients else _add_product
    for tile in _tiles(len(rows), len(weight1), x.element_size()):
        before = hidden[tile]
        first, second = (
            _memory.take(name, before.shape, x.dtype) if native else None for name in ("gradient", "hidden")
        )
        grad_hidden = multiply(grad[tile], weight2.t(), out=first)
        activated = _differentiate_gelu(before, grad_hidden, second)
        add_product(grad_weight2, grad[tile].t(), activated.t())
        add_product(grad_weight1, rows[tile].t(), grad_hidden.t())
        grad_bias1 += grad_hidden.sum(0)
        multiply(grad_hidden, weight1.t(), out=grad_x[tile])
    return grad_x.view(x.shape), grad_weight1.t().contiguous(), grad_bias1, grad_weight2, grad.sum(0)


def _add_product(total: Tensor, x: Tensor, weight: Tensor) -> None:
    total.addmm_(x, weight.t())


def _ways_of_weight_gradients(dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    sizes = [(2730, 96, 384), (682, 384, 1536)]  # rows, width and hidden width of tiles
    tiles = [[torch.ones(size, dtype=dtype) for size in ((w, h), (n, w), (n, h))] for n, w, h in sizes]

    def way(add_product: Callable[..., None]) -> Callable[[], None]:
        def run() -> None:
            for total, grad, hidden in tiles:
                add_product(total, grad.t(), hidden.t())

        return run

    return {"library": way(_add_product), "native": way(add_native_product)}


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight1, bias1, weight2, bias2, _ = inputs
    ctx.save_for_backward(x, weight1, bias1, weight2, output[1])
    ctx.has_bias = bias1 is not None, bias2 is not None
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # of the hidden values, which nobody differentiates


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    x, weight1, bias1, weight2, hidden = ctx.saved_tensors
    if torch.is_grad_enabled():  # gradients of gradients are asked for: all of it has to be differentiable
        hidden = F.linear(x.reshape(-1, x.shape[-1]), weight1, bias1)
        gradients = _differentiable_backward(grad, x, hidden, weight1, weight2)
    else:
        gradients = torch.ops.visionssm.mlp_backward(grad, x, hidden, weight1, weight2)
    grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2 = gradients
    has_bias1, has_bias2 = ctx.has_bias
    return (
        grad_x,
        grad_weight1,
        grad_bias1 if has_bias1 else None,
        grad_weight2,
        grad_bias2 if has_bias2 else None,
        None,
    )


def _differentiable_backward(
    grad: Tensor, x: Tensor, hidden: Tensor, weight1: Tensor, weight2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    grad_hidden = torch.ops.aten.gelu_backward(grad @ weight2, hidden)
    return (
        (grad_hidden @ weight1).view(x.shape),
        grad_hidden.t() @ rows,
        grad_hidden.sum(0),
        grad.t() @ F.gelu(hidden),
        grad.sum(0),
    )


_library.impl("mlp", _forward, "CPU")
_library.impl("mlp_backward", _backward, "CPU")
torch.library.register_autograd("visionssm::mlp", _differentiate, setup_context=_setup_context, lib=_library)


@torch.library.register_fake("visionssm::mlp", lib=_library)
def _fake(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor]:
    hidden = (math.prod(x.shape[:-1]), weight1.shape[0]) if keep else (0,)
    return x.new_empty((*x.shape[:-1], weight2.shape[0])), x.new_empty(hidden)


@torch.library.register_fake("visionssm::mlp_backward", lib=_library)
def _fake_backward(
    grad: Tensor, x: Tensor, hidden: Tensor, weight1: Tensor, weight2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    new = x.new_empty
    return (
        new(x.shape),
        new(weight1.shape),
        new(weight1.shape[0]),
        new(weight2.shape),
        new(weight2.shape[0]),
    )


@register_flop_formula(torch.ops.visionssm.mlp)
def _flops(x: Any, weight1: Any, bias1: Any, weight2: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x[:-1]) * (math.prod(weight1) + math.prod(weight2))


@register_flop_formula(torch.ops.visionssm.mlp_backward)
def _backward_flops(grad: Any, x: Any, hidden: Any, weight1: Any, weight2: Any, **__: Any) -> int:
    return 4 * math.prod(x[:-1]) * (math.prod(weight1) + math.prod(weight2))
