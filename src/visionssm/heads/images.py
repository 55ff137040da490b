"""From images of any size to a batch, and from a batch's detections back to the images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes


class DetectionImages(GeneralizedRCNNTransform):
    """torchvision's transform with the published sizes: normalises, resizes in evaluation only, fills up with zeros.

    Sizes are rounded where torchvision cuts them, and masks are pasted without moving boxes to whole pixels.

    Args:
        mean, std: of the images in [0, 1].
        min_size, max_size: of the shorter and the longer side in evaluation; `min_size` None for images as they come.
        size_divisible: the sides of the batch are multiples of this.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        min_size: int | None,
        max_size: int,
        size_divisible: int,
    ) -> None:
        super().__init__(min_size or 0, max_size, list(mean), list(std), size_divisible)

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """An image (3, H, W) of the size for evaluation; unchanged in training."""
        if self.training or not self.min_size[0]:
            return image, target
        size = fitted_size(image.shape[1:], self.min_size[0], self.max_size)
        return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0], target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Boxes and masks in the coordinates of the images as they came."""
        if self.training:
            return result
        for detection, shape, original in zip(result, image_shapes, original_image_sizes, strict=True):
            detection["boxes"] = resize_boxes(detection["boxes"], list(shape), list(original))
            if "masks" in detection:
                detection["masks"] = paste_masks(detection["masks"], detection["boxes"], original)
        return result


def fitted_size(size: Sequence[int], short_side: int, long_side: int) -> tuple[int, int]:
    """(H, W) after the largest scaling that keeps the shorter side within the one and the longer within the other.

    Example:
        >>> fitted_size((480, 640), 800, 1333), fitted_size((427, 1000), 800, 1333)
        ((800, 1067), (569, 1333))
    """
    H, W = size
    scale = min(short_side / min(H, W), long_side / max(H, W))
    return max(int(H * scale + 0.5), 1), max(int(W * scale + 0.5), 1)


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks of boxes' content in images: (n, 1, m, m) and (n, 4) to (n, 1, H, W), linear between cells and 0 outside the box.

    Example:
        >>> pasted = paste_masks(torch.ones(1, 1, 28, 28), torch.tensor([[2.0, 1.0, 4.0, 3.0]]), (4, 5))
        >>> pasted[0, 0].round().int().tolist()
        [[0, 0, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]
    """
    columns = _interpolation(boxes[:, 0], boxes[:, 2], masks.shape[3], size[1])
    rows = _interpolation(boxes[:, 1], boxes[:, 3], masks.shape[2], size[0])
    return (rows @ masks[:, 0] @ columns.transpose(1, 2))[:, None]


def _interpolation(start: Tensor, end: Tensor, cells: int, pixels: int) -> Tensor:
    """(n, pixels, cells): how much each cell between start and end gives to each pixel, by the distance of their centres."""
    centres = torch.arange(pixels, dtype=start.dtype, device=start.device) + 0.5
    place = (centres - start[:, None]) / (end - start).clamp(min=1e-6)[:, None] * cells - 0.5
    return (1 - (place[..., None] - torch.arange(cells, device=start.device)).abs()).clamp(min=0)
