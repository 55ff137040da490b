"""Segmenting an image: as a whole or window by window, at one size or several, as it is and mirrored."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .images import fitted_size

Logits = Callable[[Tensor], Tensor]


def slide(model: Logits, images: Tensor, window: int | tuple[int, int], stride: int | tuple[int, int]) -> Tensor:
    """Logits of overlapping windows, averaged where they overlap.

    Windows start every `stride` pixels, and the last ones of a row or column end at the image's edge; a side shorter than the
    window has one window, as long as the side.

    Args:
        model: images (batch, C, H, W) to logits (batch, K, H, W).
        images: (batch, C, H, W).
        window, stride: (rows, columns), or one number for both; `stride` at most `window`.

    Example:
        >>> slide(lambda x: x.mean(1, keepdim=True), torch.ones(1, 3, 5, 9), window=4, stride=3).unique()
        tensor([1.])
    """
    (h, w), (down, right) = _pair(window), _pair(stride)
    if not (0 < down <= h and 0 < right <= w):
        raise ValueError(
            f"stride: got {stride!r}, need 1 to the window's {window!r}, or pixels between windows are missed"
        )
    H, W = images.shape[2:]
    total, times = None, images.new_zeros(1, 1, H, W)
    for top in _starts(H, h, down):
        for left in _starts(W, w, right):
            part = (..., slice(top, top + h), slice(left, left + w))
            logits = model(images[part])
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], H, W)
            total[part] += logits
            times[part] += 1
    assert total is not None
    return total / times


def _starts(side: int, window: int, stride: int) -> list[int]:
    if side <= window:
        return [0]
    return [*range(0, side - window, stride), side - window]


@torch.inference_mode()
def segment(
    model: Logits,
    image: Tensor,
    *,
    short_side: int | None = None,
    long_side: int | None = None,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    ratios: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Class probabilities of one image at its own size, by the published test procedures.

    The image is resized, the model's logits are resized back, and their probabilities averaged over all ratios, each with its
    mirror image if wanted. Published: short_side=512, long_side=2048, and for multi-scale results ratios
    0.5, 0.75, 1, 1.25, 1.5, 1.75 with flip; Vim with window=512, stride=341.

    Args:
        model: images (1, 3, H, W) to logits (1, K, H, W), such as a :class:`visionssm.heads.UperNet` in evaluation mode.
        image: (3, H, W).
        short_side, long_side: sizes before a ratio is applied: the largest that keeps both. None for the image's own size.
        window, stride: segment window by window, see :func:`slide`; the stride is two thirds of the window by default.
        ratios: of the size.
        flip: also segment the mirror images.

    Returns:
        (K, H, W).

    Raises:
        ValueError: only one of short_side and long_side, no ratios, or a stride without a window.

    Example:
        >>> from visionssm.heads import upernet
        >>> segmenter = upernet("vmamba_nano", 5, channels=32).eval()
        >>> segment(segmenter, torch.rand(3, 48, 64), window=32, ratios=(1.0, 1.5), flip=True).shape
        torch.Size([5, 48, 64])
    """
    if (short_side is None) != (long_side is None):
        raise ValueError(f"sizes: got short_side={short_side}, long_side={long_side}, need both or none")
    if not ratios or (stride is not None and window is None):
        raise ValueError(
            f"got ratios={ratios!r}, stride={stride!r}, window={window!r}: need a ratio, and a window for a stride"
        )
    run = model
    if window is not None:
        h, w = _pair(window)
        steps = stride if stride is not None else (-(-2 * h // 3), -(-2 * w // 3))
        run = lambda images: slide(model, images, window, steps)  # noqa: E731
    total = None
    for ratio in ratios:
        for mirrored in (False, True) if flip else (False,):
            probabilities = _probabilities(run, image, _scaled(image, short_side, long_side, ratio), mirrored)
            total = probabilities if total is None else total + probabilities
    assert total is not None
    return total / (len(ratios) * (1 + flip))


def _scaled(image: Tensor, short_side: int | None, long_side: int | None, ratio: float) -> tuple[int, int]:
    if short_side is None or long_side is None:
        return max(int(image.shape[1] * ratio + 0.5), 1), max(int(image.shape[2] * ratio + 0.5), 1)
    return fitted_size(image.shape[1:], int(short_side * ratio), int(long_side * ratio))


def _probabilities(run: Logits, image: Tensor, size: tuple[int, int], mirrored: bool) -> Tensor:
    original = image.shape[1:]
    images = image[None]
    if size != tuple(original):
        images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    logits = run(images.flip(3) if mirrored else images)
    logits = logits.flip(3) if mirrored else logits
    if size != tuple(original):
        logits = F.interpolate(logits, size=original, mode="bilinear", align_corners=False)
    return logits[0].softmax(0)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
