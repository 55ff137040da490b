"""The effective receptive field: which input pixels the centre of the last map depends on.

The procedure of RepLKNet (arXiv 2203.06717) as the VMamba paper (arXiv 2401.10166) uses it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ReceptiveField:
    """Contribution of every input pixel, (H, W), averaged over images, and how many images gave it."""

    contribution: Tensor
    images: int
    skipped: int  # images whose gradient was not finite

    def displayed(self, power: float = 0.2) -> Tensor:
        """contribution ** power, scaled to the maximum 1: what the papers draw."""
        powered = self.contribution**power
        return powered / powered.max().clamp(min=torch.finfo(powered.dtype).tiny)


def effective_receptive_field(model: nn.Module, images: Iterable[Tensor]) -> ReceptiveField:
    """Average over images of the gradient of the central feature by the input.

    The channels of the last stage's feature (before the final norm) at (h // 2, w // 2) are rectified and summed; the
    gradient by the image is rectified and summed over colours.

    Args:
        model: in eval mode; ours, or any timm model with `forward_intermediates`.
        images: (1, channels, H, W) or (channels, H, W) each, preprocessed, all of one size, square or not.

    Raises:
        ValueError: no images, images of different sizes, or none with a finite gradient.

    Example:
        >>> import visionssm
        >>> model = visionssm.create_model("vmamba_nano").eval()
        >>> field = effective_receptive_field(model, [torch.randn(3, 64, 48)])
        >>> field.contribution.shape, float(field.displayed().max())
        (torch.Size([64, 48]), 1.0)
    """
    total: Tensor | None = None
    used = skipped = 0
    for image in images:
        contribution = _contribution(model, image if image.dim() == 4 else image[None])
        if total is not None and contribution.shape != total.shape:
            raise ValueError(f"images: got sizes {tuple(total.shape)} and {tuple(contribution.shape)}, need one size")
        if not contribution.isfinite().all():
            skipped += 1
            continue
        total = contribution if total is None else total + contribution
        used += 1
    if total is None:
        raise ValueError(f"images: none with a finite gradient ({skipped} were skipped)")
    return ReceptiveField(total / used, used, skipped)


def _contribution(model: Any, image: Tensor) -> Tensor:
    image = image.detach().clone().requires_grad_()
    with torch.enable_grad():
        feature = model.forward_intermediates(image, indices=1, norm=False, intermediates_only=True)[-1]
        score = feature[:, :, feature.shape[2] // 2, feature.shape[3] // 2].relu().sum()
        (gradient,) = torch.autograd.grad(score, image)
    return gradient.relu().sum((0, 1)).cpu()


def area_ratio(displayed: Tensor, share: float) -> tuple[int, float] | None:
    """The smallest centred square that holds more than a share of the total: its side, and its share of the area.

    Args:
        displayed: (H, W), such as :meth:`ReceptiveField.displayed` (published numbers: power 0.25).
        share: of the sum over the map, such as 0.2, 0.3, 0.5 or 0.99.

    Returns:
        (side in pixels, share of the map's area), or None if no square inside the map holds so much.

    Example:
        >>> area_ratio(torch.ones(10, 10), 0.2)
        (5, 0.25)
    """
    if not 0 < share < 1:
        raise ValueError(f"share: got {share}, need a number between 0 and 1")
    H, W = displayed.shape
    total = float(displayed.double().sum())
    for half in range(1, min(H, W) // 2):
        square = displayed[H // 2 - half : H // 2 + half + 1, W // 2 - half : W // 2 + half + 1]
        if float(square.double().sum()) > share * total:
            side = 2 * half + 1
            return side, side * side / (H * W)
    return None
