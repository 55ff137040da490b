"""Depthwise convolution of channels-last maps with an activation, in one pass over memory, where the `native` back-end serves."""

import math
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .._messages import choose
from . import native
from .backends import native_serves_cpu
from .schema import _library
from .scratch import scratch

_library.define(
    "depthwise_conv(Tensor x, Tensor weight, Tensor? bias, int[] left, bool[] flip, str activation) -> Tensor"
)
_library.define(
    "depthwise_conv_into(Tensor x, Tensor weight, Tensor? bias, int[] left, bool[] flip, str activation, Tensor(a!) out) -> ()"
)

# In the order in which csrc/depthwise_arguments.h numbers them.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
}


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    left: Sequence[int] | None = None,
    flip: Sequence[bool] | None = None,
    activation: str = "none",
    transient: bool = False,
) -> Tensor:
    """Convolves each channel of a map with each of its K sets of taps; outside of the map is zero, the size stays.

    Args:
        x: (batch, H, W, E); a sequence has H = 1. Views of wider tensors are read in place.
        weight: (K, E, high, wide).
        bias: (K, E) or None.
        left: for each set the columns of taps to the left of a position, wide // 2 by default; wide - 1 makes it causal.
            high // 2 rows are above it.
        flip: for each set whether the columns of its taps are given in reverse, as for a walk backwards; False by default.
        activation: "none", "silu", "gelu" (the exact one) or "relu", applied to the result.
        transient: the caller is done with the result before the next such call, so that inside of
            :func:`visionssm.ops.scratch.reused_memory` it may be overwritten then.

    Returns:
        (batch, H, W, K, E) in x's dtype, or autocast's.

    Raises:
        ValueError: x, weight, bias, left and flip don't fit together, or an unknown activation.

    Example:
        >>> x, taps = torch.randn(2, 1, 9, 8), torch.randn(2, 8, 1, 4)
        >>> y = depthwise_conv(x, taps, left=(3, 0))  # a causal and an anti-causal convolution
        >>> y.shape
        torch.Size([2, 1, 9, 2, 8])
        >>> turned = depthwise_conv(x.flip(2), taps, left=(0, 3), flip=(True, True))
        >>> torch.allclose(turned.flip(2), y, atol=1e-6)
        True
    """
    left = [weight.shape[3] // 2] * weight.shape[0] if left is None else list(left)
    flip = [False] * weight.shape[0] if flip is None else list(flip)
    _check(x, weight, bias, left, flip)
    choose("activation", activation, ACTIVATIONS)
    if not served(x, weight, bias):
        y = _with_torch(x, weight, bias, left, flip)
        return ACTIVATIONS[activation](y)
    out = scratch("depthwise_conv", _shape(x, weight), x.dtype) if transient else None
    if out is None:
        return torch.ops.visionssm.depthwise_conv(x, weight, bias, left, flip, activation)
    torch.ops.visionssm.depthwise_conv_into(x, weight, bias, left, flip, activation, out)
    return out


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, left: Sequence[int], flip: Sequence[bool]) -> None:
    """Refuses sizes that don't belong together, beyond which the kernel would read."""
    K, E = weight.shape[:2]
    if x.shape[3] != E:
        raise ValueError(f"x: got {x.shape[3]} channels, need {E} as in weight {tuple(weight.shape)}")
    if bias is not None and tuple(bias.shape) != (K, E):
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, need {(K, E)}")
    for name, given in (("left", left), ("flip", flip)):
        if len(given) != K:
            raise ValueError(f"{name}: got {len(given)} numbers, need one for each of {K} sets of taps")


def served(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether the native kernel takes this call."""
    if not x.is_cpu or x.dtype == torch.float64:
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in (x, *weights)):
        return False
    return native_serves_cpu()


def _with_torch(x: Tensor, weight: Tensor, bias: Tensor | None, left: Sequence[int], flip: Sequence[bool]) -> Tensor:
    maps = x.permute(0, 3, 1, 2)
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    _, E, high, wide = weight.shape
    outputs = []
    for k, before in enumerate(left):
        columns = max(before, wide - 1 - before)
        out = F.conv2d(
            maps,
            (weight[k].flip(-1) if flip[k] else weight[k]).unsqueeze(1),
            None if bias is None else bias[k],
            padding=(high // 2, columns),
            groups=E,
        )
        outputs.append(out[:, :, : x.shape[1], columns - before :][..., : x.shape[2]].permute(0, 2, 3, 1))
    return outputs[0].unsqueeze(3) if len(outputs) == 1 else torch.stack(outputs, dim=3)


def _shape(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    return (*x.shape[:3], weight.shape[0], x.shape[3])


def _native(
    x: Tensor, weight: Tensor, bias: Tensor | None, left: Sequence[int], flip: Sequence[bool], activation: str
) -> Tensor:
    out = x.new_empty(_shape(x, weight))
    convolve_into(x, weight, bias, left, flip, activation, out)
    return out


def convolve_into(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Sequence[int],
    flip: Sequence[bool],
    activation: str,
    out: Tensor,
) -> None:
    """The native kernel, for arguments that :func:`served` and the sizes of :func:`depthwise_conv` allow."""
    x = x if x.stride(3) == 1 else x.contiguous()
    batch, H, W, E = x.shape
    K, _, high, wide = weight.shape
    weight = weight.float() if weight.dtype == torch.float64 else weight
    taps = torch.empty(weight.shape, dtype=torch.float32)
    bias = None if bias is None else bias.to(torch.float32).contiguous()
    columns, flips, code = array("q", left), array("q", flip), list(ACTIVATIONS).index(activation)
    native.depthwise(
        array(
            "q",
            (
                batch, H, W, K, E, high, wide, high // 2, code, native.useful_threads(out.numel()), columns.buffer_info()[0],
                x.data_ptr(), native.DTYPES[x.dtype], *x.stride()[:3],
                weight.data_ptr(), native.DTYPES[weight.dtype], *weight.stride(), flips.buffer_info()[0],
                taps.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr(),
            ),
        )
    )  # fmt: skip


_library.impl("depthwise_conv", _native, "CPU")
_library.impl("depthwise_conv_into", convolve_into, "CPU")
torch.library.register_fake(
    "visionssm::depthwise_conv",
    lambda x, weight, bias, left, flip, activation: x.new_empty(_shape(x, weight)),
    lib=_library,
)


@register_flop_formula([torch.ops.visionssm.depthwise_conv, torch.ops.visionssm.depthwise_conv_into])
def _flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0] * weight[2] * weight[3]
