"""Pictures of what a detector or a segmenter sees: boxes, masks and names over the image, colours with their legend."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LEAST_SIDE = 480  # smaller images are enlarged, so that names can be read
MASK_STRENGTH, LABEL_STRENGTH = 0.45, 0.6
FONT_SIZE = 15
MOST_NAMES = 40  # of a legend


@dataclass(frozen=True)
class DrawnObject:
    """One object to draw."""

    box: Sequence[float]  # left, top, right, bottom in pixels of the image
    label: int  # chooses the colour
    caption: str
    mask: np.ndarray | None = None  # (H, W), bool


def class_color(label: int) -> tuple[int, int, int]:
    """A colour for a class: neighbours in the list differ most.

    Example:
        >>> class_color(0), class_color(1)
        ((230, 61, 61), (61, 110, 230))
    """
    hue = label * 0.618034 % 1.0
    lightness = (0.57, 0.42, 0.72)[label // 8 % 3]
    return tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.773))  # type: ignore[return-value]


def draw_objects(image: Image.Image, objects: Sequence[DrawnObject]) -> Image.Image:
    """Boxes with captions, and masks, over an image; the first object is drawn last, on top.

    Example:
        >>> draw_objects(Image.new("RGB", (64, 48)), [DrawnObject((4, 4, 20, 20), 3, "cat 98 %")]).size
        (640, 480)
    """
    factor = max(1, -(-LEAST_SIDE // min(image.size)))
    pixels = np.array(_enlarged(image.convert("RGB"), factor), dtype=np.float32)
    for item in reversed(objects):
        if item.mask is not None:
            mask = item.mask.repeat(factor, axis=0).repeat(factor, axis=1)
            tint = np.array(class_color(item.label), dtype=np.float32)
            pixels[mask] = (1 - MASK_STRENGTH) * pixels[mask] + MASK_STRENGTH * tint
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(FONT_SIZE)
    for item in reversed(objects):
        left, top, right, bottom = (round(factor * side) for side in item.box)
        color = class_color(item.label)
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=2)
        _write(draw, font, item.caption, (left, top), color, drawn.size)
    return drawn


def draw_label_map(image: Image.Image, labels: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """The classes of pixels as colours over an image, and beside it their names and shares, the largest first.

    Args:
        image: the image.
        labels: (H, W), integers: the class of every pixel; values that are no class are left as they are.
        class_names: in the order of the labels.

    Example:
        >>> drawn = draw_label_map(Image.new("RGB", (48, 48)), np.zeros((48, 48), int), ["sky"])
        >>> drawn.height, drawn.width > 480
        (480, True)
    """
    factor = max(1, -(-LEAST_SIDE // min(image.size)))
    pixels = np.array(_enlarged(image.convert("RGB"), factor), dtype=np.float32)
    enlarged = labels.repeat(factor, axis=0).repeat(factor, axis=1)
    present = [label for label in np.unique(labels).tolist() if 0 <= label < len(class_names)]
    shares = {label: float((labels == label).mean()) for label in present}
    for label in present:
        mask = enlarged == label
        color = np.array(class_color(label), dtype=np.float32)
        pixels[mask] = (1 - LABEL_STRENGTH) * pixels[mask] + LABEL_STRENGTH * color
    colored = Image.fromarray(pixels.round().astype(np.uint8))
    ranked = sorted(present, key=lambda label: -shares[label])
    entries = [(class_color(label), f"{class_names[label]}  {100 * shares[label]:.1f} %") for label in ranked]
    if len(entries) > MOST_NAMES:
        entries = [*entries[:MOST_NAMES], ((255, 255, 255), f"... and {len(ranked) - MOST_NAMES} more")]
    return _with_legend(colored, entries)


def _with_legend(image: Image.Image, entries: Sequence[tuple[tuple[int, int, int], str]]) -> Image.Image:
    font = ImageFont.load_default(FONT_SIZE)
    row, margin = FONT_SIZE + 8, 10
    width = margin * 3 + row + round(max((font.getlength(text) for _, text in entries), default=0))
    height = max(image.height, len(entries) * row + 2 * margin)
    page = Image.new("RGB", (image.width + width, height), "white")
    page.paste(image, (0, 0))
    draw = ImageDraw.Draw(page)
    for number, (color, text) in enumerate(entries):
        left, top = image.width + margin, margin + number * row
        draw.rectangle((left, top, left + row - 6, top + row - 6), fill=color)
        draw.text((left + row + 4, top + (row - 6) / 2), text, "#202020", font, anchor="lm")
    return page


def _enlarged(image: Image.Image, factor: int) -> Image.Image:
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _write(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    text: str,
    corner: tuple[int, int],
    color: tuple[int, int, int],
    size: tuple[int, int],
) -> None:
    """A caption on a coloured ground above the box, or inside it at the image's upper border."""
    width, height = round(draw.textlength(text, font)) + 6, FONT_SIZE + 5
    left = max(0, min(corner[0], size[0] - width))
    top = corner[1] - height if corner[1] >= height else corner[1]
    draw.rectangle((left, top, left + width, top + height), fill=color)
    bright = sum(weight * part for weight, part in zip((0.299, 0.587, 0.114), color, strict=True)) > 140
    draw.text((left + 3, top + height / 2), text, "black" if bright else "white", font, anchor="lm")
