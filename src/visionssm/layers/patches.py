"""Patch embedding and patch merging in channels-last layout, shared by the families that descend from Swin."""

import torch.nn.functional as F
from torch import Tensor, nn


class PatchStem(nn.Module):
    """4x4 patches, then LayerNorm: (batch, 3, H, W) to (batch, H // 4, W // 4, C); up to three last rows and columns
    are dropped.

    Example:
        >>> import torch
        >>> PatchStem(3, 16)(torch.randn(1, 3, 30, 33)).shape
        torch.Size([1, 7, 8, 16])
    """

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 4, stride=4)
        self.norm1 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm1(self.conv1(x).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """2x2 neighbours side by side, LayerNorm, linear: (batch, H, W, C) to (batch, ceil(H / 2), ceil(W / 2), out_width).

    The neighbours come in the order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1).

    Example:
        >>> import torch
        >>> PatchMerging(8, 16)(torch.randn(1, 5, 7, 8)).shape
        torch.Size([1, 3, 4, 16])
    """

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, out_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # Current published code pads odd sides at the bottom and the right; the archived one dropped the last row or
        # column.
        batch, H, W, C = x.shape
        rows, columns = (H + 1) // 2, (W + 1) // 2
        x = F.pad(x, (0, 0, 0, 2 * columns - W, 0, 2 * rows - H))
        x = x.reshape(batch, rows, 2, columns, 2, C).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))
