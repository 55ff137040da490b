"""Many images on one page, each with a caption."""

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

TILE, MARGIN, CAPTION = 112, 10, 22
COLORS = {None: "#202020", True: "#12722c", False: "#c01c28"}


@dataclass(frozen=True)
class Tile:
    """An image with its caption, and whether the caption is right, if that is known."""

    image: Image.Image
    caption: str
    right: bool | None = None


def contact_sheet(tiles: list[Tile]) -> Image.Image:
    """Arrange tiles in a grid that is somewhat wider than high.

    Example:
        >>> contact_sheet([Tile(Image.new("L", (8, 8)), "7  99.1 %")] * 6).size
        (498, 298)
    """
    columns = min(len(tiles), max(3, math.ceil(math.sqrt(1.6 * len(tiles)))))
    rows = math.ceil(len(tiles) / columns)
    width, height = TILE + MARGIN, TILE + CAPTION + MARGIN
    page = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=13)
    for number, tile in enumerate(tiles):
        left, top = MARGIN + number % columns * width, MARGIN + number // columns * height
        image = _fitted(tile.image)
        page.paste(image, (left + (TILE - image.width) // 2, top + (TILE - image.height) // 2))
        text = _shortened(tile.caption, draw, font)
        draw.text((left + TILE / 2, top + TILE + CAPTION / 2), text, COLORS[tile.right], font, anchor="mm")
    return page


def _fitted(image: Image.Image) -> Image.Image:
    """As large as a tile allows; images smaller than a tile keep their pixels visible."""
    scale = TILE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 3 else Image.Resampling.BICUBIC)


def _shortened(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Drop letters from the label's end until the caption fits; the confidence stays."""
    label, gap, rest = text.partition("  ")
    shown = text
    while len(label) > 1 and draw.textlength(shown, font) > TILE + MARGIN - 4:
        label = label[:-1]
        shown = f"{label}…{gap}{rest}"
    return shown
