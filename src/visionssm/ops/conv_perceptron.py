"""Linear, depthwise convolution, GELU, linear over channels-last maps, worked through in bands of rows.

As in `perceptron`, the hidden activations stay in the cache from one step to the next. Each band reads the rows beside it once more
for the convolution.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .depthwise import depthwise_conv, served
from .matrix_product import DTYPES, fits, linear, on_plain_cpu, product
from .schema import _library
from .scratch import reused_memory

_TILE_BYTES = 2**22  # of the hidden activations

_library.define(
    "conv_mlp(Tensor x, Tensor weight1, Tensor? bias1, Tensor taps, Tensor? taps_bias, Tensor weight2, Tensor? bias2) -> Tensor"
)


def conv_mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    taps: Tensor,
    taps_bias: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
) -> Tensor:
    """Linear, depthwise convolution that keeps the size, exact GELU, linear.

    Args:
        x: (batch, H, W, in).
        weight1: (hidden, in).
        bias1: (hidden) or None.
        taps: (hidden, 1, high, wide), odd numbers.
        taps_bias: (hidden) or None.
        weight2: (out, hidden).
        bias2: (out) or None.

    On the CPU, without gradients and outside of autocast, float32 and bfloat16 go in bands.

    Example:
        >>> taps = torch.ones(8, 1, 3, 3)
        >>> conv_mlp(torch.ones(1, 5, 7, 3), torch.ones(8, 3), None, taps, None, torch.ones(4, 8), None).shape
        torch.Size([1, 5, 7, 4])
    """
    if (
        on_plain_cpu(x, weight1, taps, weight2)
        and x.dtype in DTYPES
        and fits(x.shape[-1], weight1, bias1)
        and fits(weight1.shape[0], weight2, bias2)
        and served(x, weight1, bias1, taps, taps_bias, weight2, bias2)
    ):
        return torch.ops.visionssm.conv_mlp(x, weight1, bias1, taps, taps_bias, weight2, bias2)
    return linear(_convolve(linear(x, weight1, bias1), taps, taps_bias), weight2, bias2)


def _convolve(hidden: Tensor, taps: Tensor, bias: Tensor | None, transient: bool = False) -> Tensor:
    bias = None if bias is None else bias[None]
    return depthwise_conv(hidden, taps.transpose(0, 1), bias, activation="gelu", transient=transient)[:, :, :, 0]


def _bands(batch: int, H: int, row_bytes: int, halo: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of bands of about _TILE_BYTES: whole images, or rows of one, at least four times what is read twice."""
    rows = _TILE_BYTES // row_bytes
    if rows >= H:
        images = rows // H
        yield from ((slice(i, min(i + images, batch)), slice(0, H)) for i in range(0, batch, images))
        return
    count = max(1, H // max(rows, 8 * halo))
    edges = [round(i * H / count) for i in range(count + 1)]
    yield from ((slice(i, i + 1), slice(*pair)) for i in range(batch) for pair in pairwise(edges))


def _forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    taps: Tensor,
    taps_bias: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
) -> Tensor:
    batch, H, W, _ = x.shape
    halo = taps.shape[2] // 2
    out = x.new_empty(batch, H, W, len(weight2))
    bands = _bands(batch, H, W * len(taps) * x.element_size(), halo)
    with reused_memory():  # for what is between the products, from one band to the next
        for images, rows in bands:
            first, last = max(rows.start - halo, 0), min(rows.stop + halo, H)
            band = x[images, first:last]
            hidden = _hidden(band, weight1, bias1, taps, taps_bias)[:, rows.start - first : rows.stop - first]
            place = out[images, rows]
            product(hidden.reshape(-1, len(taps)), weight2, bias2, out=place.view(-1, len(weight2)))
    return out


def _hidden(band: Tensor, weight1: Tensor, bias1: Tensor | None, taps: Tensor, taps_bias: Tensor | None) -> Tensor:
    hidden = product(band.reshape(-1, band.shape[3]), weight1, bias1).view(*band.shape[:3], -1)
    return _convolve(hidden, taps, taps_bias, transient=True)


_library.impl("conv_mlp", _forward, "CPU")


@torch.library.register_fake("visionssm::conv_mlp", lib=_library)
def _fake(x: Tensor, weight1: Tensor, bias1: Any, taps: Tensor, taps_bias: Any, weight2: Tensor, bias2: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight2.shape[0]))


@register_flop_formula(torch.ops.visionssm.conv_mlp)
def _flops(x: Any, weight1: Any, bias1: Any, taps: Any, taps_bias: Any, weight2: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x[:-1]) * (math.prod(weight1) + math.prod(taps) + math.prod(weight2))
