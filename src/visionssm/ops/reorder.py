"""Copies between image order and walking order that only ever read, in backward too.

Reading along a path by ordinary indexing has a scatter for its backward, which is slow, and on GPUs adds up in an order that
changes from run to run. A path visits a position at most once, so the backward can be a read along the inverse table instead.
"""

from typing import Any

import torch
from torch import Tensor

from .._sizes import known_true


def reorder(values: Tensor, path: Tensor, inverse: Tensor, complete: bool = False) -> Tensor:
    """Reads along each path; differentiable in `values`.

    Args:
        values: (batch, S, E) for all paths, or (batch, S, K, E) with one map per path.
        path: (K, T) integer positions; -1 reads zeros.
        inverse: (K, S), `paths.inverse(path, S)`. With the two tables exchanged the function undoes itself.
        complete: whether each path is known to visit every position (or its inverse, every step); it saves a pass.

    Returns:
        (batch, T, K, E).

    Example:
        >>> from visionssm.ops import paths
        >>> path = paths.windows(3, 3, 2)
        >>> inverse = paths.inverse(path, 9)
        >>> image = torch.arange(9.0).view(1, 9, 1)
        >>> walked = reorder(image, path, inverse)
        >>> walked.flatten().int().tolist()
        [0, 1, 3, 4, 2, 0, 5, 0, 6, 7, 0, 0, 8, 0, 0, 0]
        >>> bool((reorder(walked, inverse, path)[:, :, 0] == image).all())
        True
    """
    return _Reorder.apply(values, path, inverse, complete)


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, path: Tensor, inverse: Tensor, complete: bool) -> Tensor:
        ctx.save_for_backward(path, inverse)
        ctx.shared, ctx.complete = values.dim() == 3, complete
        return _read(values, path, masked=_has_gaps(path, inverse, complete))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        path, inverse = ctx.saved_tensors
        grad = _read(grad, inverse, masked=_has_gaps(inverse, path, ctx.complete))
        return grad.sum(2) if ctx.shared else grad, None, None, None


def _has_gaps(table: Tensor, other: Tensor, complete: bool) -> bool:
    """Whether a table may hold -1: of two that are each other's inverse and miss nothing, only the longer one does."""
    return not (complete and known_true(table.shape[1] <= other.shape[1]))


def _read(values: Tensor, table: Tensor, masked: bool) -> Tensor:
    rows = table.t()
    index = rows.clamp(min=0).long() if masked else rows.long()
    if values.dim() == 4:
        K = rows.shape[1]
        index = index * K + torch.arange(K, device=rows.device)
        values = values.flatten(1, 2)
    taken = values.index_select(1, index.flatten()).unflatten(1, rows.shape)
    return taken * (rows >= 0)[..., None] if masked else taken
