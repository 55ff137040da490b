"""Two-dimensional rotary position embedding, applied to tokens instead of queries and keys, as Vim and LocalVim do."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._sizes import known_true

RESIZES = ("positions", "tables")


class Rotary2d(nn.Module):
    """Rotates adjacent pairs of channels: of the first half by the token's row, of the second half by its column.

    Pair j of a half turns by position * 10000^(-2 j / (channels / 2)). Positions always run over [0, side): on a grid
    of g rows row i has the position i / g * side. There are no parameters and no buffers.

    Args:
        channels: a multiple of 4.
        side: rows and columns of the grid of pretraining.
        resize: "positions" computes the angles for the grid at hand. "tables" resizes the cosines and sines of the
            grid that the model was built for bicubically, as LocalVim's published code does; then they are no pure
            rotations any more.

    Example:
        >>> rotary = Rotary2d(8, side=2)
        >>> cos, sin = rotary.tables((2, 3), native=(2, 2))
        >>> cos.shape
        torch.Size([6, 8])
        >>> bool((rotate_pairs(torch.ones(6, 8), cos, sin).square().sum(1) - 8 < 1e-5).all())
        True
    """

    def __init__(self, channels: int, side: int = 14, resize: str = "positions") -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"rotary: got {channels} channels, need a multiple of 4")
        if resize not in RESIZES:
            raise ValueError(f"resize: got {resize!r}, choose from {', '.join(RESIZES)}")
        self.channels, self.side, self.resize = channels, side, resize

    def tables(
        self,
        grid: tuple[int, int],
        native: tuple[int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each (H * W, channels), for a grid of H x W tokens.

        `native` is the grid that the model was built for.
        """
        H, W = grid if self.resize == "positions" else native
        rows, columns = (self._angles(n, dtype, device) for n in (H, W))
        angles = torch.cat((rows[:, None].expand(-1, W, -1), columns[None].expand(H, -1, -1)), dim=-1)
        cos, sin = angles.cos(), angles.sin()
        if self.resize == "tables" and not all(known_true(a == b) for a, b in zip(grid, native, strict=True)):
            cos, sin = (_resized(table, grid) for table in (cos, sin))
        return cos.flatten(0, 1), sin.flatten(0, 1)

    def _angles(self, positions: int, dtype: torch.dtype, device: torch.device | None) -> Tensor:
        """(positions, channels / 2): each angle twice, for the two channels of a pair."""
        half = self.channels // 2
        frequencies = 10000.0 ** (-torch.arange(0, half, 2, dtype=dtype, device=device) / half)
        where = torch.arange(positions, dtype=dtype, device=device) / positions * self.side
        return torch.outer(where, frequencies).repeat_interleave(2, dim=1)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin) for adjacent channels.

    Args:
        x: (..., L, C).
        cos, sin: (L, C), float32 or wider.

    Returns:
        As x in shape and dtype.
    """
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-b, a), dim=-1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)


def _resized(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """(H, W, C) to another grid."""
    maps = F.interpolate(table.permute(2, 0, 1)[None], size=tuple(grid), mode="bicubic", align_corners=False)
    return maps[0].permute(1, 2, 0)
