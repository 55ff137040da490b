"""A depthwise convolution module applied to channels-last maps, with an activation."""

from torch import Tensor, nn

from ..ops import depthwise_conv
from ..ops.depthwise import ACTIVATIONS
from .linear import is_plain_conv


def conv_silu(conv: nn.Module, x: Tensor) -> Tensor:
    """SiLU(conv(x)) of a depthwise `nn.Conv2d` of stride 1 that keeps the size, on a (batch, H, W, C) map.

    Any other module in its place, and its hooks, are called as usual.

    Example:
        >>> import torch
        >>> conv, x = nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.randn(2, 5, 7, 8)
        >>> expected = nn.functional.silu(conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        >>> torch.allclose(conv_silu(conv, x), expected, atol=1e-6)
        True
    """
    return apply_depthwise(conv, x, "silu")


def apply_depthwise(conv: nn.Module, x: Tensor, activation: str = "none") -> Tensor:
    """The same with another activation of :func:`visionssm.ops.depthwise_conv`."""
    if not is_plain_conv(conv):
        return ACTIVATIONS[activation](conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    bias = None if conv.bias is None else conv.bias[None]
    return depthwise_conv(x, conv.weight.transpose(0, 1), bias, activation=activation)[:, :, :, 0]
