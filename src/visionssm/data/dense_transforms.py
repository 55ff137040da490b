"""Random changes of an image together with its boxes, masks or labels; the published training pipelines.

Everything takes and gives what torchvision's transforms (v2) do: an image (3, H, W) and a dictionary of boxes, labels and
masks. A label map is a mask of shape (H, W) under the key "label_map". Outputs are float32 in [0, 1]: models normalise.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from visionssm.data.ade20k import IGNORE

DenseTransform = Callable[[torch.Tensor, dict[str, Any]], tuple[torch.Tensor, dict[str, Any]]]
MEAN_COLOR = (124, 116, 104)  # of ImageNet: what a model sees there is zero
MULTISCALE = tuple(range(480, 801, 32))
LONGEST = 1333


class RandomRangeCrop(v2.Transform):
    """Crop to a size drawn from a range, height and width each on their own; smaller sides stay as they are."""

    def __init__(self, smallest: int, largest: int):
        super().__init__()
        self.smallest, self.largest = smallest, largest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a window."""
        sides = v2.query_size(flat_inputs)
        wanted = [_draw_int(min(side, self.smallest), min(side, self.largest)) for side in sides]
        return _window(sides, wanted)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut the window out."""
        return F.crop(inpt, **params)


class RandomResizeInside(v2.Transform):
    """Scale by a random factor of the largest size that fits a frame, keeping the ratio of the sides.

    Args:
        short_side, long_side: the frame, in pixels.
        ratios: smallest and largest factor.
    """

    def __init__(self, short_side: int, long_side: int, ratios: tuple[float, float]):
        super().__init__()
        self.short_side, self.long_side, self.ratios = short_side, long_side, ratios

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a size."""
        height, width = v2.query_size(flat_inputs)
        factor = float(torch.empty(()).uniform_(*self.ratios))
        scale = factor * min(self.short_side / min(height, width), self.long_side / max(height, width))
        return {"size": [max(1, round(height * scale)), max(1, round(width * scale))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize: labels by the nearest pixel."""
        return F.resize(inpt, **params)


class RandomLabelCrop(v2.Transform):
    """Crop to a size where no single class covers more than a share of the labelled pixels, in up to ten attempts.

    Args:
        size: height and width; smaller sides stay as they are.
        largest_share: of one class.
    """

    def __init__(self, size: tuple[int, int], largest_share: float):
        super().__init__()
        self.size, self.largest_share = size, largest_share

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw windows until one holds a mixture; the last one is taken as it is."""
        sides = v2.query_size(flat_inputs)
        labels = next(entry for entry in flat_inputs if isinstance(entry, tv_tensors.Mask))
        wanted = [min(pair) for pair in zip(sides, self.size, strict=True)]
        for _ in range(10 if wanted != list(sides) else 1):  # an image that isn't larger has a single window
            window = _window(sides, wanted)
            counts = torch.bincount(F.crop(labels, **window).flatten(), minlength=IGNORE + 1)[:IGNORE]
            if (counts > 0).sum() > 1 and counts.max() < self.largest_share * counts.sum():
                break
        return window

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut the window out."""
        return F.crop(inpt, **params)


class PhotometricDistortion(v2.Transform):
    """Change brightness, contrast, saturation and hue, each with probability one half, in the published ranges.

    Brightness moves by up to 32 of 255 levels, contrast and saturation by a factor of 0.5 to 1.5, hue by up to a
    tenth of the circle to either side; contrast comes first or last. Input: float32, [0, 1].
    """

    _transformed_types = (tv_tensors.Image,)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw what is changed, and by how much; None: not changed."""
        ranges = {
            "brightness": (-32 / 255, 32 / 255),
            "contrast": (0.5, 1.5),
            "saturation": (0.5, 1.5),
            "hue": (-0.1, 0.1),
        }
        drawn: dict[str, Any] = {
            name: float(torch.empty(()).uniform_(*limits)) if _coin() else None for name, limits in ranges.items()
        }
        return drawn | {"contrast_first": _coin()}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply the changes."""
        image = inpt
        if params["brightness"] is not None:
            image = (image + params["brightness"]).clamp(0, 1)
        steps = [("saturation", F.adjust_saturation), ("hue", F.adjust_hue)]
        contrast = ("contrast", lambda image, factor: (image * factor).clamp(0, 1))
        steps = [contrast, *steps] if params["contrast_first"] else [*steps, contrast]
        for name, change in steps:
            if params[name] is not None:
                image = change(image, params[name])
        return tv_tensors.wrap(image, like=inpt)


class PadTo(v2.Transform):
    """Pad at the right and below, up to a size: images with the mean colour, label maps with the label to ignore."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The widths of the margins."""
        height, width = v2.query_size(flat_inputs)
        return {"padding": [0, 0, max(0, self.size[1] - width), max(0, self.size[0] - height)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Add the margins."""
        if isinstance(inpt, tv_tensors.Mask):
            # Masks of objects, (objects, H, W), have nothing there; a label map, (H, W), has pixels to ignore.
            return F.pad(inpt, **params, fill=IGNORE if inpt.ndim == 2 else 0)
        return F.pad(inpt, **params, fill=list(MEAN_COLOR))


class DropEmptyObjects(torch.nn.Module):
    """Leave out objects that a crop has cut away: boxes of less than a pixel, and masks without a pixel."""

    def forward(self, image: torch.Tensor, target: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        """(image, target) to the same image and the objects that remain."""
        boxes = F.clamp_bounding_boxes(target["boxes"])
        kept = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)
        masks = target.get("masks")
        if masks is not None:
            kept &= (masks.flatten(1) != 0).any(dim=1)
        target = {
            name: tv_tensors.wrap(value[kept], like=value) if isinstance(value, tv_tensors.TVTensor) else value[kept]
            for name, value in (target | {"boxes": boxes}).items()
        }
        return image, target


def detection_train_transform(
    resize: str = "fixed",
    short_sides: Sequence[int] = (800,),
    long_side: int = LONGEST,
    crop_size: int = 1024,
    scale: tuple[float, float] = (0.1, 2.0),
    hflip: float = 0.5,
) -> DenseTransform:
    """The published training pipelines of detectors.

    Args:
        resize: "fixed" scales the shorter side to one of `short_sides`, drawn for every image; "multiscale" does that,
            or with probability one half crops 384 to 600 pixels of an image of 400 to 600 pixels before (DETR's, used
            with Swin's 3x schedule); "lsj" scales by `scale` and crops or pads to a square of `crop_size` (large-scale
            jitter, ViTDet's); "none" leaves the size as it is.
        short_sides, long_side: of "fixed" and "multiscale", pixels.
        crop_size, scale: of "lsj".
        hflip: probability of a horizontal flip.

    Raises:
        ValueError: another value of `resize`.

    Example:
        >>> transform = detection_train_transform("fixed", short_sides=(64,), long_side=100, hflip=0)
        >>> image = tv_tensors.Image(torch.zeros(3, 40, 80, dtype=torch.uint8))
        >>> boxes = tv_tensors.BoundingBoxes([[0.0, 0, 20, 20]], format="XYXY", canvas_size=(40, 80))
        >>> image, target = transform(image, {"boxes": boxes, "labels": torch.tensor([1])})
        >>> tuple(image.shape), target["boxes"].tolist()
        ((3, 50, 100), [[0.0, 0.0, 25.0, 25.0]])
    """
    shortest = v2.RandomShortestSize(list(short_sides), long_side)
    if resize == "fixed":
        steps: list[Any] = [shortest]
    elif resize == "multiscale":
        smaller = v2.RandomShortestSize([400, 500, 600], 4200)
        steps = [v2.RandomChoice([shortest, v2.Compose([smaller, RandomRangeCrop(384, 600), shortest])])]
    elif resize == "lsj":
        size = (crop_size, crop_size)
        steps = [v2.ScaleJitter(size, scale), RandomRangeCrop(crop_size, crop_size), PadTo(size)]
    elif resize == "none":
        steps = []
    else:
        raise ValueError(f"resize is {resize!r}; it must be fixed, multiscale, lsj or none")
    return v2.Compose([*steps, v2.RandomHorizontalFlip(hflip), DropEmptyObjects(), *_to_float()])


def segmentation_train_transform(
    crop_size: tuple[int, int] = (512, 512),
    short_side: int | None = 512,
    long_side: int = 2048,
    ratios: tuple[float, float] = (0.5, 2.0),
    largest_share: float = 0.75,
    hflip: float = 0.5,
    photometric: bool = True,
) -> DenseTransform:
    """The published training pipeline of segmenters: resize, crop with a mixture of classes, flip, distort, pad.

    Args:
        crop_size: height and width of what comes out.
        short_side, long_side: the frame that the resized image fits at ratio 1, in pixels; short_side None: not resized.
        ratios: smallest and largest factor of the random resize.
        largest_share: of the labelled pixels of a crop that one class may cover.
        hflip: probability of a horizontal flip.
        photometric: whether colours are distorted.

    Example:
        >>> transform = segmentation_train_transform(crop_size=(32, 48), short_side=32, long_side=64)
        >>> image = tv_tensors.Image(torch.zeros(3, 40, 80, dtype=torch.uint8))
        >>> labels = tv_tensors.Mask(torch.zeros(40, 80, dtype=torch.uint8))
        >>> image, target = transform(image, {"label_map": labels})
        >>> tuple(image.shape), tuple(target["label_map"].shape)
        ((3, 32, 48), (32, 48))
    """
    steps: list[Any] = [] if short_side is None else [RandomResizeInside(short_side, long_side, ratios)]
    steps += [RandomLabelCrop(crop_size, largest_share), v2.RandomHorizontalFlip(hflip), PadTo(crop_size)]
    steps += _to_float()
    return v2.Compose([*steps, *([PhotometricDistortion()] if photometric else [])])


def eval_dense_transform() -> DenseTransform:
    """Nothing but a change of type: models resize what they evaluate, and answer at the image's own size."""
    return v2.Compose(_to_float())


def _to_float() -> list[Any]:
    return [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)]


def _window(sides: Sequence[int], wanted: Sequence[int]) -> dict[str, int]:
    """A window of the size wanted, anywhere inside."""
    (height, width), (rows, columns) = sides, wanted
    top, left = _draw_int(0, height - rows), _draw_int(0, width - columns)
    return {"top": top, "left": left, "height": rows, "width": columns}


def _draw_int(lowest: int, highest: int) -> int:
    return int(torch.randint(lowest, highest + 1, ()))


def _coin() -> bool:
    return bool(torch.rand(()) < 0.5)
