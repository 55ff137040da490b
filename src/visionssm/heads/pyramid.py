"""Pyramids for plain backbones, whose features all have one resolution where dense heads want several."""

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.norm import LayerNorm2d
from ..models._keys import Key, KeyTable


class PyramidLevel(nn.Module):
    """Change of resolution, 1x1 convolution, LayerNorm, 3x3 convolution, LayerNorm.

    Shapes: (batch, channels before, H, W) to (batch, out_channels, ...); `channels` is what `rescale` makes.
    """

    def __init__(self, rescale: nn.Module, channels: int, out_channels: int) -> None:
        super().__init__()
        self.rescale = rescale
        self.lateral = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.lateral_norm = LayerNorm2d(out_channels, eps=1e-6)
        self.output = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.output_norm = LayerNorm2d(out_channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lateral_norm(self.lateral(self.rescale(x)))
        return self.output_norm(self.output(x))


class SimpleFeaturePyramid(nn.Module):
    """ViTDet's pyramid from the last feature of a plain backbone (arXiv 2203.16527, section 3).

    The map is brought to 4, 2, 1 and 1/2 times its resolution; a fifth level takes every second pixel of the fourth.

    Args:
        in_channels: C of the feature, a multiple of 4.
        out_channels: of every level.

    Shapes: (batch, C, H, W) to a list of five maps (batch, out_channels, ...), the finest first. With features of
    stride 16 their strides are 4, 8, 16, 32 and 64. Halving rounds down, the last step up.

    Example:
        >>> import torch
        >>> [tuple(level.shape[2:]) for level in SimpleFeaturePyramid(16, 8)(torch.randn(1, 16, 15, 20))]
        [(60, 80), (30, 40), (15, 20), (7, 10), (4, 5)]
    """

    key_table = KeyTable(
        [
            Key("simfp_2.0.*", "levels.0.rescale.up1.*"),
            Key("simfp_2.1.*", "levels.0.rescale.norm.*"),
            Key("simfp_2.3.*", "levels.0.rescale.up2.*"),
            Key("simfp_3.0.*", "levels.1.rescale.*"),
            *(
                Key(f"simfp_{level + 2}.{first + i}.{published}", f"levels.{level}.{name}{ours}")
                for level, first in enumerate((4, 1, 0, 1))
                for i, name in enumerate(("lateral", "output"))
                for published, ours in (("norm.*", "_norm.*"), ("weight", ".weight"))
            ),
        ]
    )

    def __init__(self, in_channels: int, out_channels: int = 256) -> None:
        super().__init__()
        half, quarter = in_channels // 2, in_channels // 4
        self.levels = nn.ModuleList(
            [
                PyramidLevel(
                    _upsample4(in_channels, half, quarter, LayerNorm2d(half, eps=1e-6)), quarter, out_channels
                ),
                PyramidLevel(nn.ConvTranspose2d(in_channels, half, 2, stride=2), half, out_channels),
                PyramidLevel(nn.Identity(), in_channels, out_channels),
                PyramidLevel(nn.MaxPool2d(2), in_channels, out_channels),
            ]
        )

    def forward(self, feature: Tensor) -> list[Tensor]:
        maps = [level(feature) for level in self.levels]
        return [*maps, F.max_pool2d(maps[-1], kernel_size=1, stride=2)]


class RescalingPyramid(nn.Module):
    """Four features of one resolution to strides 4, 8, 16 and 32, as Vim's segmentation models do (arXiv 2401.09417).

    Features of stride 16 pass through two transposed convolutions, one, none, and a 2x2 maximum; those of stride 8
    through one, none, a 2x2 and a 4x4 maximum.

    Args:
        channels: C of the features and of the maps.
        stride: of the features, 16 or 8.

    Shapes: a list of four (batch, C, H, W) to a list of four maps, the finest first. Maxima round down.

    Example:
        >>> import torch
        >>> pyramid = RescalingPyramid(8)
        >>> [tuple(level.shape[2:]) for level in pyramid([torch.randn(1, 8, 5, 6)] * 4)]
        [(20, 24), (10, 12), (5, 6), (2, 3)]
    """

    def __init__(self, channels: int, stride: int = 16) -> None:
        super().__init__()
        if stride not in (8, 16):
            raise ValueError(f"stride: got {stride}, need 8 or 16")
        up = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        if stride == 16:
            up4 = _upsample4(channels, channels, channels, nn.BatchNorm2d(channels))
            branches: list[nn.Module] = [up4, up, nn.Identity(), nn.MaxPool2d(2)]
        else:
            branches = [up, nn.Identity(), nn.MaxPool2d(2), nn.MaxPool2d(4)]
        self.branches = nn.ModuleList(branches)
        single = Key(f"fpn{2 if stride == 16 else 1}.0.*", f"branches.{1 if stride == 16 else 0}.*")
        self.key_table = KeyTable(
            [
                Key("fpn1.0.*", "branches.0.up1.*"),
                Key("fpn1.1.*", "branches.0.norm.*"),
                Key("fpn1.3.*", "branches.0.up2.*"),
                single,
            ]
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        if len(features) != len(self.branches):
            raise ValueError(f"features: got {len(features)}, need {len(self.branches)}")
        return [branch(feature) for branch, feature in zip(self.branches, features, strict=True)]


def _upsample4(channels: int, between: int, out_channels: int, norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            up1=nn.ConvTranspose2d(channels, between, 2, stride=2),
            norm=norm,
            activation=nn.GELU(),
            up2=nn.ConvTranspose2d(between, out_channels, 2, stride=2),
        )
    )
