"""Drawings and animations of scan paths: the order in which a family reads an image."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._files import save_png, write_atomically
from .._messages import near_matches
from ..ops import paths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOCAL_DIRECTIONS = ("h", "v_flip", "w2", "w7_flip")

# name: (how the table is made for a grid, what each path is called)
WALKS: dict[str, tuple[Callable[[int, int], Tensor], tuple[str, ...]]] = {
    "raster": (paths.raster, ("rows",)),
    "vim": (paths.forward_backward, ("forwards", "backwards")),
    "vmamba": (paths.cross, ("rows", "columns", "rows, reversed", "columns, reversed")),
    "mambavision": (paths.raster, ("rows of a window",)),
    "groupmamba": (
        lambda H, W: paths.cross_cycle(H, W, 4),
        ("group 1: rows", "group 2: columns", "group 3: rows, reversed", "group 4: columns, reversed"),
    ),
    "local_mamba": (
        lambda H, W: paths.directions(H, W, LOCAL_DIRECTIONS),
        ("h: rows", "v_flip: columns, reversed", "w2: windows of 2", "w7_flip: windows of 7, reversed"),
    ),
    "efficient_vmamba": (paths.atrous, ("even rows and columns", "odd rows", "odd columns", "odd rows and columns")),
    "simba": (paths.raster, ("rows",)),
    "zigzag": (paths.zigzag, ("zigzag",)),
    "spiral": (paths.spiral, ("spiral",)),
    "hilbert": (paths.hilbert, ("Hilbert curve",)),
}


def walk(name: str, H: int, W: int) -> tuple[Tensor, tuple[str, ...]]:
    """The path table (K, T) of a named walk over an (H, W) grid, and the names of its paths.

    Raises:
        ValueError: there is no such walk.

    Example:
        >>> table, names = walk("vmamba", 2, 3)
        >>> table[1].tolist(), names[1]
        ([0, 3, 1, 4, 2, 5], 'columns')
    """
    if name not in WALKS:
        raise ValueError(f"walk: there is no {name!r}{near_matches(name, WALKS)}; choose from {', '.join(WALKS)}")
    if H < 1 or W < 1:
        raise ValueError(f"grid: got {H}x{W}, need at least 1x1")
    build, names = WALKS[name]
    return build(H, W), names


def save_walks(table: Tensor, names: Sequence[str], grid: tuple[int, int], file: Path, title: str) -> None:
    """Every path of a table as a line from its first to its last step, coloured by time, as a PNG."""
    figure, panels = _panels(len(table), grid, title)
    for axes, path, name in zip(panels, table, names, strict=True):
        line = _line(axes, path, grid, name)
        line.set_array(torch.arange(len(line.get_segments())).numpy())
    figure.colorbar(line, ax=list(panels), shrink=0.8, label="step")
    save_png(figure, file, dpi=110)


def save_walks_animation(
    table: Tensor, names: Sequence[str], grid: tuple[int, int], file: Path, title: str, seconds: float = 6.0
) -> None:
    """The same as a GIF in which all paths walk at once."""
    from matplotlib.animation import FuncAnimation, PillowWriter

    figure, panels = _panels(len(table), grid, title)
    lines = [_line(axes, path, grid, name) for axes, path, name in zip(panels, table, names, strict=True)]
    segments = [line.get_segments() for line in lines]
    longest = max(map(len, segments))
    frames = min(longest + 1, 60)

    def draw(frame: int) -> list[Any]:
        steps = round(longest * frame / max(frames - 1, 1))
        for line, whole in zip(lines, segments, strict=True):
            line.set_segments(whole[:steps])
            line.set_array(torch.arange(min(steps, len(whole))).numpy())
            line.set_clim(0, longest)
        return lines

    animation = FuncAnimation(figure, draw, frames=frames, blit=False)
    writer = PillowWriter(fps=max(1, round(frames / seconds)))
    with tempfile.TemporaryDirectory() as folder:
        # Pillow goes by the suffix, which a temporary name beside the file doesn't have.
        drawn = Path(folder) / "walk.gif"
        animation.save(str(drawn), writer=writer, dpi=80)
        write_atomically(file, lambda temporary: temporary.write_bytes(drawn.read_bytes()))


def _panels(count: int, grid: tuple[int, int], title: str) -> "tuple[Figure, list[Axes]]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    H, W = grid
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.9 * columns + 0.6, 0.6 + 2.9 * rows * min(H / W, 2.0)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}, {H}x{W}", x=0.01, ha="left", fontsize=11)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flatten()[:count])


def _line(axes: "Axes", path: Tensor, grid: tuple[int, int], name: str) -> Any:
    from matplotlib.collections import LineCollection

    H, W = grid
    visited = path[path >= 0]
    rows, columns = visited // W, visited % W
    points = torch.stack([columns, rows], dim=1).double()
    segments = torch.stack([points[:-1], points[1:]], dim=1)
    axes.plot(*torch.meshgrid(torch.arange(W), torch.arange(H), indexing="xy"), ".", color="#cccccc", markersize=3)
    line = LineCollection(list(segments.numpy()), cmap="viridis", linewidths=1.8)
    axes.add_collection(line)
    axes.plot(*points[0], "o", color="#1f5fa8", markersize=6)
    axes.plot(*points[-1], "s", color="#d1701d", markersize=5)
    axes.set(xlim=(-0.7, W - 0.3), ylim=(H - 0.3, -0.7), aspect="equal", xticks=[], yticks=[])
    axes.set_title(name, loc="left", fontsize=9)
    axes.spines[:].set_visible(False)
    return line
