"""From a decoded image to a model's input, and random changes for training; the transforms are timm's."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

Transform = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input. It travels in checkpoints, as a plain dictionary."""

    input_size: tuple[int, int, int]  # channels, height, width
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str

    @classmethod
    def of_model(cls, model: nn.Module, **overrides: Any) -> "Preprocessing":
        """What a timm model's configuration asks for, with the overrides that aren't None in its place.

        Mean and deviation are averaged over the colours for a model with one input channel, and repeated for one with
        more channels than the configuration knows.
        """
        from timm.data import resolve_model_data_config

        config: dict[str, Any] = resolve_model_data_config(model)
        config |= {key: value for key, value in overrides.items() if value is not None}
        channels = config["input_size"][0]
        for statistic in ("mean", "std"):
            if len(config[statistic]) != channels:
                config[statistic] = (sum(config[statistic]) / len(config[statistic]),) * channels
        return cls.from_dict(config)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "Preprocessing":
        """The reverse of `to_dict`."""
        channels, height, width = config["input_size"]
        return cls(
            input_size=(channels, height, width),
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """Resize, crop at the centre and normalise: the same for every call. Returns (channels, height, width), float32."""
    from timm.data import create_transform

    transform = create_transform(**asdict(preprocessing))
    return _with_channels(transform, preprocessing.input_size[0])


def input_and_photo(preprocessing: Preprocessing, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    """A model's input (1, channels, height, width), and the same pixels before normalisation, 0 .. 1, to be drawn."""
    x = eval_transform(preprocessing)(image)
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return x[None], (x * std + mean).clamp(0, 1)


def train_transform(
    preprocessing: Preprocessing,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    hflip: float,
    color_jitter: float,
    auto_augment: str | None,
    random_erasing: float,
    interpolation: str | None = None,
) -> Transform:
    """A random crop, flip and colour change, then normalise.

    Args:
        preprocessing: the model's input.
        scale: smallest and largest share of the image's area that a crop covers.
        ratio: narrowest and widest crop, width over height.
        hflip: probability of a horizontal flip.
        color_jitter: strength of changes of brightness, contrast and saturation; off under `auto_augment`.
        auto_augment: a policy of timm, such as "rand-m9-mstd0.5-inc1", or None.
        random_erasing: probability that a rectangle is overwritten with noise.
        interpolation: of the crops, if not the one of `preprocessing`: "bicubic", "bilinear", or "random" for either.

    Returns:
        A function from an image to (channels, height, width), float32.
    """
    from timm.data import create_transform

    channels = preprocessing.input_size[0]
    if auto_augment and channels != 3:
        raise ValueError(f"auto_augment={auto_augment} needs colour images, but the model takes {channels} channel(s)")
    transform = create_transform(
        preprocessing.input_size,
        is_training=True,
        scale=scale,
        ratio=ratio,
        hflip=hflip,
        color_jitter=color_jitter if channels == 3 else 0.0,
        auto_augment=auto_augment,
        interpolation=interpolation or preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        re_prob=random_erasing,
        re_mode="pixel",
    )
    return _with_channels(transform, channels)


def _with_channels(transform: Transform, channels: int) -> Transform:
    """Grey images are repeated to three channels for a colour model, colour images made grey for a model of one."""
    modes = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise ValueError(f"image files have 1 or 3 channels; the model takes {channels} (in_chans)")
    return lambda image: transform(_eight_bits(image).convert(modes[channels]))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 bits brought to 8; Pillow's own conversion would take everything above 255 for white."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
