"""Normalisations that torch does not have in the form these models use."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
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
        exact = x if x.dtype == torch.float64 else x.float()
        weight = self.weight.to(exact.dtype)
        if torch.is_grad_enabled():
            return F.rms_norm(exact, weight.shape, weight, self.eps)
        # The same with one full-size temporary instead of four.
        scale = (
            torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_().div_(len(weight)).add_(self.eps).rsqrt_()
        )
        return (exact * scale).mul_(weight)
