"""Between image order and walking order: the two moves that every plain-torch back-end makes.

Legend: batch, L positions, K paths, T steps, E channels, N states, R rank of dt.
"""

import torch
from torch import Tensor


def gather_steps(values: Tensor, path: Tensor) -> Tensor:
    """Reads `values` along each path.

    Args:
        values: (batch, L, E) shared by all paths, or (batch, L, K, E) with one map per path.
        path: (K, T) integer; -1 is a step over padding and reads zeros.

    Returns:
        (batch, K, T, E).
    """
    index = path.clamp(min=0).long()
    if values.dim() == 3:
        steps = values[:, index]
    else:
        which = torch.arange(path.shape[0], device=path.device)[:, None]
        steps = values[:, index, which]
    return steps * (path >= 0).to(values.dtype)[None, :, :, None]


def scatter_steps(steps: Tensor, path: Tensor, length: int) -> Tensor:
    """Writes (batch, K, T, E) steps back to image order: (batch, L, K, E), zero where a path never goes.

    Steps over padding (-1) are dropped. The adjoint of :func:`gather_steps` with one map per path.
    """
    target = torch.where(path < 0, length, path).long()
    maps = [
        steps.new_zeros(steps.shape[0], length + 1, steps.shape[3]).index_add(1, target[k], steps[:, k])
        for k in range(path.shape[0])
    ]
    return torch.stack(maps, dim=2)[:, :length]


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the state and of all sums: float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
