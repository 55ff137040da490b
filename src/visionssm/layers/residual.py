"""Addition to a residual stream, and scaling of branches."""

import torch
from torch import Tensor


def add_to(x: Tensor, branch: Tensor) -> Tensor:
    """x + branch; without gradients in the place of x, which must have been made by the caller and be read by nobody else.

    Example:
        >>> with torch.no_grad():
        ...     x = torch.ones(2)
        ...     add_to(x, torch.ones(2)) is x
        True
    """
    if torch.is_grad_enabled() or x.dtype != torch.promote_types(x.dtype, branch.dtype):
        return x + branch
    return x.add_(branch)


def scale_by(x: Tensor, scale: Tensor) -> Tensor:
    """x * scale; like :func:`add_to` in the place of x."""
    if torch.is_grad_enabled() or x.dtype != torch.promote_types(x.dtype, scale.dtype):
        return x * scale
    return x.mul_(scale)
