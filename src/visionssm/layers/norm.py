"""Normalisations that torch does not have in the form these models use."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from .linear import has_hooks


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` over the last axis, computed by :func:`visionssm.ops.layer_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-1:]) != self.normalized_shape:
            return super().forward(x)  # which refuses it, or takes more than one axis
        return layer_norm(x, self.weight, self.bias, self.eps)


def use_fast_norm(model: nn.Module) -> nn.Module:
    """Turns every plain `nn.LayerNorm` over one axis of a model into :class:`LayerNorm`, in place; subclasses are left alone.

    Parameters, names and, within rounding, results stay.

    Example:
        >>> model = nn.Sequential(nn.LayerNorm(8))
        >>> type(use_fast_norm(model)[0]) is LayerNorm
        True
    """
    for module in model.modules():
        if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
            module.__class__ = LayerNorm
    return model


def update_norm(norm: nn.Module, x: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
    """norm(total) and total = x + update, in one pass for a plain :class:`LayerNorm`.

    Example:
        >>> norm, x, update = LayerNorm(8), torch.randn(2, 8), torch.randn(2, 8)
        >>> y, total = update_norm(norm, x, update)
        >>> torch.equal(total, x + update), torch.allclose(y, norm(total), atol=1e-6)
        (True, True)
    """
    if type(norm) is LayerNorm and not has_hooks(norm) and tuple(x.shape[-1:]) == norm.normalized_shape:
        return add_layer_norm(x, update, norm.weight, norm.bias, norm.eps)
    total = x + update
    return norm(total), total


def norm_gelu(norm: nn.Module, x: Tensor) -> Tensor:
    """GELU(norm(x)); without gradients in the memory of norm(x), for a plain LayerNorm that nobody listens to.

    Example:
        >>> norm, x = LayerNorm(8), torch.randn(2, 8)
        >>> with torch.no_grad():
        ...     torch.allclose(norm_gelu(norm, x), F.gelu(norm(x)), atol=1e-6)
        True
    """
    y = norm(x)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.gelu(y)
    alone = type(norm) in (nn.LayerNorm, LayerNorm) and not has_hooks(norm)
    return torch.ops.aten.gelu_(y) if alone else F.gelu(y)


class LayerNorm2d(LayerNorm):
    """LayerNorm over the channels of a (batch, C, H, W) map.

    Example:
        >>> LayerNorm2d(8)(torch.randn(2, 8, 3, 5)).shape
        torch.Size([2, 8, 3, 5])
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RMSNorm(nn.Module):
    """x * (mean(x^2) + eps)^-1/2 * weight over the last axis, computed in float32.

    Args:
        channels: size of the last axis.
        eps: 1e-5 in every model that uses it.

    The output is float32 for lower precisions under autocast's rules: the caller casts.

    Example:
        >>> RMSNorm(8)(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 8])
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def add_norm(norm: nn.Module, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """norm(total) in x's dtype, and total = residual + x, in float32 or wider: in one pass for a plain :class:`RMSNorm`.

    Example:
        >>> norm, x, residual = RMSNorm(8), torch.randn(2, 8), torch.randn(2, 8)
        >>> y, total = add_norm(norm, x, residual)
        >>> torch.equal(total, x + residual), torch.allclose(y, norm(total))
        (True, True)
    """
    if type(norm) is RMSNorm and not has_hooks(norm):
        return add_rms_norm(x, residual, norm.weight, norm.eps)
    total = x.to(torch.promote_types(x.dtype, torch.float32)) if residual is None else residual + x
    return norm(total).to(x.dtype), total
