"""Scan paths as data: tables of positions, (K, T) int32, that :func:`visionssm.ops.path_scan` walks along.

A position is row * W + column. -1 is a step over padding. Every function takes the grid's height and width and returns
a table with one row per path; rows of one length can be stacked with torch.cat, and any order of your own is such a
tensor too. Tables of plain integers are cached; under torch.compile and torch.export they are computed in the graph,
with dynamic sizes.
"""

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any

import torch
from torch import Tensor

from .checks import PathFacts

Device = str | torch.device | None
_Builder = Callable[..., Tensor]


def cached(build: _Builder | None = None, *, complete: bool = False, mirrored: bool = False) -> Any:
    """Decorator for functions of a grid, `build(H, W, ..., device=None)`, that make tables: each is made once.

    Under torch.compile and torch.export nothing is remembered, and the table is computed in the graph. Its entries can't be
    looked at there, so the decorator says what saves time to know: whether every path visits every position (`complete`), and
    whether path k + K / 2 is path k from its end (`mirrored`). Other tables are taken for neither.
    """
    if build is None:
        return partial(cached, complete=complete, mirrored=mirrored)
    facts = PathFacts(complete, mirrored)

    def make(*args: Any, **kwargs: Any) -> Tensor:
        path = build(*args, **kwargs)
        if complete:
            path.facts = facts  # type: ignore[attr-defined]
        return path

    remembered = lru_cache(maxsize=512)(make)

    @wraps(build)
    def table(H: int, W: int, *args: object, device: Device = None, **kwargs: object) -> Tensor:
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return make(H, W, *args, device=device, **kwargs)
        if min(H, W) < 1:
            raise ValueError(f"grid: got {H} x {W}, need at least 1 x 1")
        with torch.inference_mode(False):
            return remembered(int(H), int(W), *args, device=torch.device(device or "cpu"), **kwargs)

    return table


def _grid(H: int, W: int, device: Device) -> Tensor:
    return torch.arange(H * W, dtype=torch.int32, device=device).view(H, W)


def _transposed_grid(H: int, W: int, device: Device) -> Tensor:
    """The grid's transpose, computed instead of viewed: a view's strides would tie an exported model to its image size."""
    rows, columns = (torch.arange(side, dtype=torch.int32, device=device) for side in (H, W))
    return columns[:, None] + rows * W


def _padded_grid(H: int, W: int, multiple: int, device: Device) -> Tensor:
    """Positions on a grid enlarged at the bottom and at the right to multiples; -1 on what was added."""
    rows = torch.arange((H + multiple - 1) // multiple * multiple, dtype=torch.int32, device=device)[:, None]
    columns = torch.arange((W + multiple - 1) // multiple * multiple, dtype=torch.int32, device=device)[None]
    return torch.where((rows < H) & (columns < W), rows * W + columns, -1)


def _rows(*paths: Tensor) -> Tensor:
    return torch.stack([path.reshape(-1) for path in paths])


@cached(complete=True)
def raster(H: int, W: int, *, device: Device = None) -> Tensor:
    """Row by row, left to right: (1, H W).

    Example:
        >>> raster(2, 3)
        tensor([[0, 1, 2, 3, 4, 5]], dtype=torch.int32)
    """
    return _rows(_grid(H, W, device))


@cached(complete=True)
def transposed(H: int, W: int, *, device: Device = None) -> Tensor:
    """Column by column, top to bottom: (1, H W).

    Example:
        >>> transposed(2, 3)
        tensor([[0, 3, 1, 4, 2, 5]], dtype=torch.int32)
    """
    return _rows(_transposed_grid(H, W, device))


def reverse(path: Tensor) -> Tensor:
    """The same walks from their ends: (K, T).

    Example:
        >>> reverse(raster(2, 3))
        tensor([[5, 4, 3, 2, 1, 0]], dtype=torch.int32)
    """
    return path.flip(1)


@cached(complete=True, mirrored=True)
def cross(H: int, W: int, *, device: Device = None) -> Tensor:
    """VMamba's four paths ("cross2d", arXiv 2401.10166): raster, transposed, and both reversed: (4, H W).

    Example:
        >>> cross(2, 2)
        tensor([[0, 1, 2, 3],
                [0, 2, 1, 3],
                [3, 2, 1, 0],
                [3, 1, 2, 0]], dtype=torch.int32)
    """
    grid, columns = _grid(H, W, device), _transposed_grid(H, W, device)
    return _rows(grid, columns, grid.flip(0, 1), columns.flip(0, 1))


@cached(complete=True)
def cross_cycle(H: int, W: int, count: int, *, device: Device = None) -> Tensor:
    """The four paths of :func:`cross` over and over, `count` in all: (count, H W).

    One for each group of channels of GroupMamba (arXiv 2407.13772).

    Example:
        >>> cross_cycle(2, 2, 2)
        tensor([[0, 1, 2, 3],
                [0, 2, 1, 3]], dtype=torch.int32)
    """
    return cross(H, W, device=device).repeat((count + 3) // 4, 1)[:count]


@cached(complete=True)
def raster_transposed(H: int, W: int, *, device: Device = None) -> Tensor:
    """Raster, transposed, and both again: (4, H W).

    How EfficientVMamba (arXiv 2403.09977) walks its four sub-grids; :func:`atrous` is the same in positions of the
    whole map.

    Example:
        >>> raster_transposed(2, 2)
        tensor([[0, 1, 2, 3],
                [0, 2, 1, 3],
                [0, 1, 2, 3],
                [0, 2, 1, 3]], dtype=torch.int32)
    """
    grid, columns = _grid(H, W, device), _transposed_grid(H, W, device)
    return _rows(grid, columns, grid, columns)


@cached(complete=True)
def unidirectional(H: int, W: int, *, device: Device = None) -> Tensor:
    """Four times the raster path (VMamba's "unidi" ablation): (4, H W)."""
    return _rows(*[_grid(H, W, device)] * 4)


@cached(complete=True, mirrored=True)
def bidirectional(H: int, W: int, *, device: Device = None) -> Tensor:
    """Twice the raster path, then twice its reversal (VMamba's "bidi" ablation): (4, H W)."""
    grid = _grid(H, W, device)
    return _rows(grid, grid, grid.flip(0, 1), grid.flip(0, 1))


@cached(complete=True, mirrored=True)
def forward_backward(H: int, W: int, *, device: Device = None) -> Tensor:
    """The raster path and its reversal (Vim, arXiv 2401.09417): (2, H W). With H = 1 the two directions of a sequence.

    Example:
        >>> forward_backward(1, 3)
        tensor([[0, 1, 2],
                [2, 1, 0]], dtype=torch.int32)
    """
    grid = _grid(H, W, device)
    return _rows(grid, grid.flip(0, 1))


@cached(complete=True, mirrored=True)
def rotations(H: int, W: int, *, device: Device = None) -> Tensor:
    """Path k walks the map rotated by k times 90 degrees counter-clockwise, row by row (VMamba's ablation): (4, H W).

    Example:
        >>> rotations(2, 2)
        tensor([[0, 1, 2, 3],
                [1, 3, 0, 2],
                [3, 2, 1, 0],
                [2, 0, 3, 1]], dtype=torch.int32)
    """
    grid = _grid(H, W, device)
    return _rows(*(torch.rot90(grid, k, (0, 1)) for k in range(4)))


@cached
def rows_forward_backward(H: int, W: int, *, device: Device = None) -> Tensor:
    """Each row on its own, left to right and right to left: (2 H, W), rows 2 i and 2 i + 1 walk image row i."""
    grid = _grid(H, W, device)
    return torch.stack((grid, grid.flip(1)), dim=1).reshape(-1, W)


@cached
def columns_forward_backward(H: int, W: int, *, device: Device = None) -> Tensor:
    """Each column on its own, downwards and upwards: (2 W, H), rows 2 j and 2 j + 1 walk image column j."""
    grid = _grid(H, W, device).t()
    return torch.stack((grid, grid.flip(1)), dim=1).reshape(-1, H)


@cached(complete=True)
def windows(H: int, W: int, size: int, *, device: Device = None) -> Tensor:
    """Window after window in raster order, raster order inside each (LocalMamba, arXiv 2403.09338): (1, T).

    The grid is padded at the bottom and at the right to multiples of `size`, so T = ceil(H / size) ceil(W / size)
    size^2.

    Example:
        >>> windows(3, 2, 2)
        tensor([[ 0,  1,  2,  3,  4,  5, -1, -1]], dtype=torch.int32)
    """
    grid = _padded_grid(H, W, size, device)
    tiles = grid.view(grid.shape[0] // size, size, grid.shape[1] // size, size)
    return _rows(tiles.transpose(1, 2))


@cached(complete=True)
def directions(H: int, W: int, names: tuple[str, ...], *, device: Device = None) -> Tensor:
    """Paths by LocalMamba's names for them (arXiv 2403.09338), padded at the end to the longest: (K, T).

    "h" is the raster path, "v" the transposed one, "w2" and "w7" (or any other size) go through windows, and "_flip"
    after a name walks the same path from its end.

    Raises:
        ValueError: a name that is none of these.

    Example:
        >>> directions(2, 3, ("h", "v_flip", "w2"))
        tensor([[ 0,  1,  2,  3,  4,  5, -1, -1],
                [ 5,  2,  4,  1,  3,  0, -1, -1],
                [ 0,  1,  3,  4,  2, -1,  5, -1]], dtype=torch.int32)
    """
    rows = [_direction(H, W, name, device) for name in names]
    steps: Any = rows[0].shape[1]
    for row in rows[1:]:
        steps = torch.sym_max(steps, row.shape[1])
    return torch.cat([pad(row, steps) for row in rows])


def _direction(H: int, W: int, name: str, device: Device) -> Tensor:
    kind = name.removesuffix("_flip")
    if kind == "h":
        path = raster(H, W, device=device)
    elif kind == "v":
        path = transposed(H, W, device=device)
    elif kind[:1] == "w" and kind[1:].isdigit() and int(kind[1:]) > 0:
        path = windows(H, W, int(kind[1:]), device=device)
    else:
        raise ValueError(
            f"direction: got {name!r}, need h, v, or w and a window size as in w7, each with or without _flip"
        )
    return path if kind == name else reverse(path)


@cached
def atrous(H: int, W: int, *, device: Device = None) -> Tensor:
    """EfficientVMamba's four sub-grids of every second pixel (arXiv 2403.09977): (4, ceil(H / 2) ceil(W / 2)).

    Even rows and columns in raster order; odd rows, even columns transposed; even rows, odd columns in raster order;
    odd rows and columns transposed. Odd sizes are padded at the bottom and at the right.

    Example:
        >>> atrous(3, 2)
        tensor([[ 0,  4],
                [ 2, -1],
                [ 1,  5],
                [ 3, -1]], dtype=torch.int32)
    """
    grid = _padded_grid(H, W, 2, device)
    return _rows(grid[::2, ::2], grid[1::2, ::2].t(), grid[::2, 1::2], grid[1::2, 1::2].t())


@cached(complete=True)
def zigzag(H: int, W: int, *, device: Device = None) -> Tensor:
    """Row by row, every second row from right to left, so that each step goes to a neighbour: (1, H W).

    Example:
        >>> zigzag(2, 3)
        tensor([[0, 1, 2, 5, 4, 3]], dtype=torch.int32)
    """
    grid = _grid(H, W, device)
    odd = torch.arange(H, device=device)[:, None] % 2 == 1
    return _rows(torch.where(odd, grid.flip(1), grid))


@cached(complete=True)
def spiral(H: int, W: int, *, device: Device = None) -> Tensor:
    """From the top left corner clockwise inwards: (1, H W).

    Example:
        >>> spiral(3, 3)
        tensor([[0, 1, 2, 5, 8, 7, 6, 3, 4]], dtype=torch.int32)
    """
    grid, parts = _grid(H, W, device), []
    while grid.numel():
        parts.append(grid[0])
        grid = grid[1:].t().flip(0)
    return _rows(torch.cat(parts))


@cached(complete=True)
def hilbert(H: int, W: int, *, device: Device = None) -> Tensor:
    """The Hilbert curve of the smallest square power of two that holds the grid, without the points outside: (1, H W).

    Example:
        >>> hilbert(2, 2)
        tensor([[0, 2, 3, 1]], dtype=torch.int32)
    """
    side: int = 1
    while side < max(H, W):
        side *= 2
    visited = [(y, x) for x, y in (_hilbert_point(side, d) for d in range(side * side)) if y < H and x < W]
    return torch.tensor([[y * W + x for y, x in visited]], dtype=torch.int32, device=device)


def _hilbert_point(side: int, distance: int) -> tuple[int, int]:
    """Column and row of a point on the curve through a square whose side is a power of two."""
    x = y = 0
    scale = 1
    while scale < side:
        right = 1 & (distance // 2)
        down = 1 & (distance ^ right)
        if down == 0:
            if right == 1:
                x, y = scale - 1 - x, scale - 1 - y
            x, y = y, x
        x, y = x + scale * right, y + scale * down
        distance //= 4
        scale *= 2
    return x, y


def inverse(path: Tensor, length: int) -> Tensor:
    """The step at which each of `length` positions is visited, -1 where it never is: (K, length).

    Example:
        >>> inverse(transposed(2, 3), 6)
        tensor([[0, 2, 4, 1, 3, 5]], dtype=torch.int32)
    """
    steps = torch.arange(path.shape[1], dtype=path.dtype, device=path.device).expand(path.shape)
    table = path.new_full((path.shape[0], length + 1), -1)
    return table.scatter(1, torch.where(path < 0, length, path).long(), steps)[:, :length]


def pad(path: Tensor, steps: int) -> Tensor:
    """Lengthens paths to `steps` with steps over padding, so that paths of different lengths can share a table.

    Padding at the end of a walk changes nothing but the last state.

    Example:
        >>> pad(raster(1, 2), 4)
        tensor([[ 0,  1, -1, -1]], dtype=torch.int32)
    """
    missing = steps - path.shape[1]
    return torch.nn.functional.pad(path, (0, missing), value=-1)
