"""What lies in a box: of feature maps, and of an object's mask."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align


class RoIPool(nn.Module):
    """RoIAlign from the level that suits a box: one of 56 pixels or more from the second level on, doubling from level to level.

    torchvision's own always works without `aligned`, and guesses the strides from the first images.

    Args:
        size: of the result.
        strides: of the levels.
        sampling_ratio: samples per side of a cell, 0 for as many as it has pixels.
        aligned: see :class:`DetectorSettings`.

    Shapes: maps of (batch, C, H, W), boxes (n, 4) per image, to (all n, C, size, size).

    Example:
        >>> pool = RoIPool(7, strides=(4, 8))
        >>> pool([torch.randn(1, 3, 16, 16), torch.randn(1, 3, 8, 8)], [torch.tensor([[0.0, 0, 32, 20]])]).shape
        torch.Size([1, 3, 7, 7])
    """

    def __init__(self, size: int, strides: Sequence[int], sampling_ratio: int = 0, aligned: bool = True) -> None:
        super().__init__()
        self.size, self.strides, self.sampling_ratio, self.aligned = size, tuple(strides), sampling_ratio, aligned

    def levels(self, boxes: Tensor) -> Tensor:
        """Index of the level of each box."""
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1).sqrt()
        level = torch.floor(torch.log2(sides / (14 * self.strides[0]) + 1e-6))
        return level.clamp(0, len(self.strides) - 1).long()

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        rois = _with_image_index(boxes).to(maps[0].device)
        levels = self.levels(rois[:, 1:])
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], self.size, self.size)
        for level, (entry, stride) in enumerate(zip(maps, self.strides, strict=False)):
            mine = torch.where(levels == level)[0]
            found = roi_align(entry, rois[mine], self.size, 1 / stride, self.sampling_ratio, self.aligned)
            pooled = pooled.index_put((mine,), found.to(pooled.dtype))
        return pooled


def _with_image_index(boxes: Sequence[Tensor]) -> Tensor:
    """(all n, 5): index of the image, then the box."""
    return torch.cat([F.pad(b.float(), (1, 0), value=float(i)) for i, b in enumerate(boxes)])


@torch.no_grad()
def mask_targets(masks: Tensor, boxes: Tensor, objects: Tensor, size: int, binary: bool = True) -> Tensor:
    """What lies in each box of the mask of its object, (n, size, size) float32.

    Args:
        masks: (objects, H, W) of the image.
        boxes: (n, 4).
        objects: index of each box's object, (n,).
        size: side of the result.
        binary: cut out exactly, and 1 where half of a cell or more is covered; otherwise grey, as torchvision does it.

    Example:
        >>> masks = torch.ones(1, 8, 8, dtype=torch.uint8)
        >>> mask_targets(masks, torch.tensor([[0.0, 0.0, 8.0, 16.0]]), torch.tensor([0]), 2).tolist()
        [[[1.0, 1.0], [0.0, 0.0]]]
    """
    if not len(boxes):
        return boxes.new_zeros(0, size, size)
    rois = torch.cat([objects[:, None].to(boxes), boxes], dim=1)
    cut = roi_align(masks[:, None].to(boxes), rois, size, aligned=binary)[:, 0]
    return (cut >= 0.5).to(boxes.dtype) if binary else cut
