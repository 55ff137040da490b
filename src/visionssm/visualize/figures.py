"""PNG files of maps: every one with a title, a colour bar and its unit."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .._files import save_png
from .receptive_field import ReceptiveField, area_ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle

SHARES = (0.2, 0.3, 0.5, 0.99)


def save_receptive_field(field: ReceptiveField, file: Path, title: str) -> None:
    """The contribution to the power 0.2, as the papers draw it, with the squares that hold shares of it."""
    from matplotlib.figure import Figure

    H, W = field.contribution.shape
    figure = Figure(figsize=(5.6, 0.6 + 4.4 * min(H / W, 2.0)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(field.displayed().numpy(), cmap="RdYlGn", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.85, label="(contribution / largest)$^{0.2}$")
    quarter = field.displayed(0.25)
    for share in SHARES:
        found = area_ratio(quarter, share)
        if found is None:
            continue
        side = found[0]
        corner = (W // 2 - side / 2, H // 2 - side / 2)
        axes.add_patch(_rectangle(corner, side))
        axes.annotate(f"{share:g}", corner, (1, -2), textcoords="offset points", fontsize=8, va="top", color="black")
    _pixels(axes)
    axes.set_title(f"{title}\n{_count(field)}; squares: share of contribution$^{{0.25}}$", loc="left", fontsize=9)
    save_png(figure, file)


def save_overlay(photo: Tensor, heat: Tensor, file: Path, title: str, unit: str) -> None:
    """A photo beside the same photo under a map of any resolution.

    Args:
        photo: (3, H, W) or (1, H, W), 0 .. 1.
        heat: (h, w), 0 .. 1.
        file: the PNG.
        title: what the map shows.
        unit: label of the colour bar.
    """
    from matplotlib.figure import Figure

    H, W = photo.shape[1:]
    figure = Figure(figsize=(9, 0.7 + 3.9 * min(H / W, 2.0)), layout="constrained")
    plain, overlay = figure.subplots(1, 2)
    for axes in (plain, overlay):
        axes.imshow(_displayed(photo), extent=(0, W, H, 0))
        _pixels(axes)
    image = overlay.imshow(
        heat.numpy(), extent=(0, W, H, 0), cmap="inferno", alpha=0.6, interpolation="bilinear", vmin=0, vmax=1
    )
    figure.colorbar(image, ax=overlay, shrink=0.85, label=unit)
    plain.set_title("input", loc="left", fontsize=10)
    overlay.set_title(title, loc="left", fontsize=10)
    save_png(figure, file)


def save_attention(
    photo: Tensor, maps: Tensor, names: Sequence[str], pixel: tuple[int, int], file: Path, title: str
) -> None:
    """The photo with the query pixel, a signed map for each path, and their sum.

    Args:
        photo: (3, H, W) or (1, H, W), 0 .. 1.
        maps: (K, h, w), from `attention_row`.
        names: of the paths.
        pixel: (row, column) of the query on the maps.
        file: the PNG.
        title: what was looked at.
    """
    from matplotlib.figure import Figure

    H, W = photo.shape[1:]
    h, w = maps.shape[1:]
    panels = [*zip(names, maps, strict=True), *([("sum", maps.sum(0))] if len(maps) > 1 else [])]
    columns = min(1 + len(panels), 3)
    rows = -(-(1 + len(panels)) // columns)
    figure = Figure(figsize=(3.5 * columns, 0.5 + 3.1 * rows * min(H / W, 2.0)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    grid[0].imshow(_displayed(photo), extent=(0, W, H, 0))
    grid[0].set_title("input, + is the query", loc="left", fontsize=9)
    for axes, (name, values) in zip(grid[1:], panels, strict=False):
        largest = float(values.abs().max()) or 1.0
        image = axes.imshow(values.numpy(), extent=(0, W, H, 0), cmap="RdBu_r", vmin=-largest, vmax=largest)
        figure.colorbar(image, ax=axes, shrink=0.85, format="%.0e").ax.tick_params(labelsize=7)
        axes.set_title(name, loc="left", fontsize=9)
    for axes in grid:
        axes.plot((pixel[1] + 0.5) * W / w, (pixel[0] + 0.5) * H / h, "+", color="black", markersize=9)
        _pixels(axes)
    for axes in grid[1 + len(panels) :]:
        axes.remove()
    figure.suptitle(
        f"{title}\ncontribution of each pixel to the query (mean over channels)", fontsize=10, x=0.01, ha="left"
    )
    save_png(figure, file)


def _rectangle(corner: tuple[float, float], side: int) -> "Rectangle":
    from matplotlib.patches import Rectangle

    return Rectangle(corner, side, side, fill=False, color="black", linewidth=0.8)


def _count(field: ReceptiveField) -> str:
    images = f"{field.images} image{'s' if field.images != 1 else ''}"
    return images + (f" ({field.skipped} skipped, not finite)" if field.skipped else "")


def _displayed(photo: Tensor) -> np.ndarray:
    return photo.expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).numpy()


def _pixels(axes: "Axes") -> None:
    axes.set_xlabel("pixels", fontsize=8)
    axes.tick_params(labelsize=7)
