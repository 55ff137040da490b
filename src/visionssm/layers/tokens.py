"""Sequences of patches with class tokens among them, and their position embeddings."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._sizes import known_true

Grid = tuple[int, int]
CLASS_TOKENS = {"none": 0, "first": 1, "middle": 1, "last": 1, "double": 2}  # how many there are, by their place
POS_RESIZES = ("aligned", "published")


def same_grid(a: Grid, b: Grid) -> bool:
    """Whether two grids are known to be the same; under export with dynamic sizes they are not."""
    return known_true(a[0] == b[0]) and known_true(a[1] == b[1])


def class_positions(class_token: str, patches: int) -> tuple[int, ...]:
    """Where class tokens are in the sequence, by the number of patches M.

    Example:
        >>> class_positions("middle", 196), class_positions("double", 196)
        ((98,), (0, 197))
    """
    return {
        "none": (),
        "first": (0,),
        "middle": (patches // 2,),
        "last": (patches,),
        "double": (0, patches + 1),
    }[class_token]


def insert_rows(tokens: Tensor, rows: Tensor, positions: Sequence[int]) -> Tensor:
    """(batch, M, C) and (batch, T, C) to (batch, M + T, C), with the rows at increasing `positions` of the result."""
    pieces, start = [], 0
    for i, position in enumerate(positions):
        pieces += [tokens[:, start : position - i], rows[:, i : i + 1]]
        start = position - i
    return torch.cat([*pieces, tokens[:, start:]], dim=1) if pieces else tokens


def take_rows(tokens: Tensor, positions: Sequence[int]) -> Tensor:
    """The rows of (batch, M + T, C) at `positions`: (batch, T, C)."""
    return torch.cat([tokens[:, :0], *(tokens[:, position : position + 1] for position in positions)], dim=1)


def remove_rows(tokens: Tensor, positions: Sequence[int]) -> Tensor:
    """The inverse of :func:`insert_rows`: (batch, M + T, C) to (batch, M, C)."""
    pieces, start = [], 0
    for position in positions:
        pieces.append(tokens[:, start:position])
        start = position + 1
    return torch.cat([*pieces, tokens[:, start:]], dim=1) if pieces else tokens


def resize_pos_embed(
    pos_embed: Tensor,
    old: Grid,
    new: Grid,
    class_token: str,
    procedure: str = "aligned",
    new_class_token: str | None = None,
) -> Tensor:
    """A position embedding for another grid, or another place of the class token.

    Args:
        pos_embed: (1, M + T, C), M patches of the grid `old` and T class tokens.
        old, new: rows and columns of patches.
        class_token: where the class tokens are.
        procedure: "aligned" resizes the patches' rows and keeps those of class tokens. "published" takes the first rows
            for the class tokens' wherever those are, as the authors' code does. Both resize bicubically.
        new_class_token: where they shall be; the same place by default, "none" to drop them.

    Returns:
        (1, M' + T', C).

    Example:
        >>> resize_pos_embed(torch.randn(1, 197, 8), (14, 14), (16, 20), "middle").shape
        torch.Size([1, 321, 8])
    """
    new_class_token = class_token if new_class_token is None else new_class_token
    positions = class_positions(class_token, math.prod(old))
    new_positions = class_positions(new_class_token, math.prod(new))
    if procedure == "published":
        positions = tuple(range(len(positions)))
        new_positions = tuple(range(len(new_positions)))
    if len(new_positions) not in (0, len(positions)):
        raise ValueError(
            f"class tokens: got {len(positions)} ({class_token}), need {len(new_positions)} ({new_class_token})"
        )
    patches = remove_rows(pos_embed, positions)
    if not same_grid(old, new):
        exact = torch.promote_types(patches.dtype, torch.float32)
        maps = patches.to(exact).transpose(1, 2).unflatten(2, old)
        maps = F.interpolate(maps, size=tuple(new), mode="bicubic", align_corners=False)
        patches = maps.flatten(2).transpose(1, 2).to(pos_embed.dtype)
    return insert_rows(patches, take_rows(pos_embed, positions), new_positions)
