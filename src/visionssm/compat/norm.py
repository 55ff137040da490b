"""The norms of mamba_ssm that also add the residual, in plain torch: `layer_norm_fn`, `rms_norm_fn`, `RMSNorm`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """norm(x + residual), computed in float32 (float64 for float64).

    Args:
        x: (..., C).
        weight: (C).
        bias: (C) or None.
        residual: (..., C) or None.
        eps: of the norm.
        prenorm: also return x + residual, for the next block: in the residual's dtype where there is one.
        residual_in_fp32: without a residual, return it in float32 instead of x's dtype.
        is_rms_norm: divide by the root mean square, without taking off the mean.

    Returns:
        (..., C) in x's dtype; with `prenorm` also the sum.

    Example:
        >>> x, weight = torch.tensor([[3.0, 4.0]]), torch.ones(2)
        >>> y, total = layer_norm_fn(x, weight, None, residual=x, prenorm=True, is_rms_norm=True)
        >>> y, total
        (tensor([[0.8485, 1.1314]]), tensor([[6., 8.]]))
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    total = x.to(exact) if residual is None else x.to(exact) + residual.to(exact)
    shape = (x.shape[-1],)
    if is_rms_norm:
        y = F.rms_norm(total, shape, weight.to(exact), eps)
        y = y if bias is None else y + bias.to(exact)
    else:
        y = F.layer_norm(total, shape, weight.to(exact), None if bias is None else bias.to(exact), eps)
    if not prenorm:
        return y.to(x.dtype)
    if residual is not None:
        return y.to(x.dtype), total.to(residual.dtype)
    return y.to(x.dtype), total if residual_in_fp32 else x


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`layer_norm_fn` by the root mean square."""
    return layer_norm_fn(
        x, weight, bias, residual, eps=eps, prenorm=prenorm, residual_in_fp32=residual_in_fp32, is_rms_norm=True
    )


class RMSNorm(nn.Module):
    """mamba_ssm's `RMSNorm`: a weight, and no bias; called as :func:`rms_norm_fn`.

    Example:
        >>> RMSNorm(2)(torch.tensor([[3.0, 4.0]]))
        tensor([[0.8485, 1.1314]], grad_fn=<MulBackward0>)
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        return rms_norm_fn(
            x,
            self.weight,
            None,
            residual=residual,
            eps=self.eps,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )
