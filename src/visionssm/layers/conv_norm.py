"""Convolutions with the BatchNorm after them, as one where nothing is trained, on either layout of maps."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import depthwise_conv, linear
from ..ops.matrix_product import on_plain_cpu
from .linear import has_hooks, is_plain_conv


def conv_norm(conv: Any, norm: nn.Module, x: Tensor) -> Tensor:
    """norm(conv(x)) of a (batch, C, H, W) map; for inference the norm is folded into the weights, which saves passes over memory.

    Example:
        >>> conv, norm, x = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8).eval(), torch.randn(2, 3, 5, 7)
        >>> with torch.no_grad():
        ...     torch.allclose(conv_norm(conv, norm, x), norm(conv(x)), atol=1e-6)
        True
    """
    if not folds(conv, norm):
        return norm(conv(x))
    weight, bias = folded(conv, norm)
    return conv._conv_forward(x, weight.to(x.dtype), bias.to(x.dtype))


class StemConvolutions(nn.Module):
    """Convolutions 7x7 of stride 2, 3x3, 3x3, each with BatchNorm and ReLU, and 3x3 of stride 2.

    (batch, in_chans, H, W) to (batch, width, ceil(H / 4), ceil(W / 4)).

    Example:
        >>> StemConvolutions(3, 8, 16)(torch.randn(1, 3, 30, 33)).shape
        torch.Size([1, 16, 8, 9])
    """

    def __init__(self, in_chans: int, hidden: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, hidden, 7, stride=2, padding=3, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(hidden)
        self.proj = nn.Conv2d(hidden, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2), (self.conv3, self.norm3)):
            x = F.relu(conv_norm(conv, norm, x), inplace=True)
        return self.proj(x)


def conv_norm_last(conv: Any, norm: nn.Module, x: Tensor, activation: str = "none") -> Tensor | None:
    """The same for a (batch, H, W, C) map and a 1x1 or a depthwise convolution that keeps the size, with an activation: "none",
    "relu", or for depthwise ones any of :func:`visionssm.ops.depthwise_conv`; None where both modules have to be called.

    Example:
        >>> conv, norm, x = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8).eval(), torch.randn(2, 5, 7, 3)
        >>> with torch.no_grad():
        ...     found = conv_norm_last(conv, norm, x)
        ...     torch.allclose(found.permute(0, 3, 1, 2), norm(conv(x.permute(0, 3, 1, 2))), atol=1e-6)
        True
    """
    if not folds(conv, norm):
        return None
    weight, bias = folded(conv, norm)
    if conv.groups > 1:
        return depthwise_conv(x, weight.transpose(0, 1), bias[None], activation=activation)[:, :, :, 0]
    y = linear(x, weight.flatten(1).to(x.dtype), bias.to(x.dtype))
    return F.relu(y, inplace=True) if activation == "relu" else y


def folds(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether calling both is nothing but a convolution and a fixed scale and shift, on the CPU and without gradients."""
    return (
        is_plain_conv(conv)
        and isinstance(norm, nn.BatchNorm2d)
        and norm.affine
        and norm.track_running_stats
        and on_plain_cpu(norm.weight, conv.weight)
        and not (norm.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
        and not has_hooks(norm)
    )


def folded(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution, float32 or wider."""
    exact = torch.promote_types(conv.weight.dtype, torch.float32)
    scale = norm.weight.to(exact) * torch.rsqrt(norm.running_var.to(exact) + norm.eps)
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    return conv.weight * scale[:, None, None, None], norm.bias - mean * scale
