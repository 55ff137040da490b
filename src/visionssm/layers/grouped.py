"""Linear layers of groups of channels, one each."""

import torch
from torch import Tensor

from ..ops.matrix_product import on_plain_cpu


def grouped_linear(x: Tensor, weight: Tensor) -> Tensor:
    """(..., groups, in) and (groups, out, in) to (..., groups, out).

    Example:
        >>> x, weight = torch.randn(2, 5, 4, 8), torch.randn(4, 3, 8)
        >>> torch.allclose(grouped_linear(x, weight)[:, :, 1], x[:, :, 1] @ weight[1].T, atol=1e-6)
        True
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not on_plain_cpu(x, weight):
        return torch.einsum("...gi,goi->...go", x, weight)
    # The same product, written to where it belongs: einsum would copy it there.
    rows = x.flatten(0, -3)
    out = torch.empty((len(rows), *weight.shape[:2]), dtype=torch.result_type(x, weight), device=x.device)
    torch.bmm(rows.transpose(0, 1), weight.transpose(1, 2), out=out.transpose(0, 1))
    return out.view(*x.shape[:-1], -1)
