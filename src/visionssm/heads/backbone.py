"""Backbones in the form that dense tasks take: which features, with which norms, through which pyramid."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from .._create import create_model
from ..layers.norm import LayerNorm2d
from .pyramid import RescalingPyramid, SimpleFeaturePyramid

TASKS = ("detection", "segmentation")


def dense_options(name: str, task: str) -> dict[str, Any]:
    """What a model of this name is built with for a dense task, as its published dense form is.

    Args:
        name: of a model; other libraries' models need nothing.
        task: "detection" or "segmentation".

    Example:
        >>> dense_options("mambavision_small", "segmentation")
        {'out_norms': True, 'window_size': (160, 56)}
    """
    if name.startswith(("vmamba_", "vanilla_vmamba_", "local_vmamba_", "efficient_vmamba_")):
        return {"out_norms": True}
    if name.startswith("mambavision_"):
        return {"out_norms": True, "window_size": _mambavision_windows(name, task)}
    if name.startswith("groupmamba_"):
        return {"last_norm": "final"}
    if name.startswith(("vim_", "local_vim_")):
        return {"class_token": "none"} | _plain_features(name, task)
    return {}


def _mambavision_windows(name: str, task: str) -> tuple[int, int] | str:
    if "nano" in name:
        return "map"
    if task == "detection":
        return (112, 56)
    return (160, 56) if name.startswith("mambavision_small") else (64, 32)


def _plain_features(name: str, task: str) -> dict[str, Any]:
    if name.startswith("local_vim_"):
        return {"feature": "mixer"}
    if task == "detection":
        return {"feature": "stream"}
    return {"feature": "rotated_stream" if name.startswith(("vim_small", "vim_base")) else "mixer"}


class DenseBackbone(nn.Module):
    """A model's feature maps for a dense task, from any H x W image, finest first.

    Hierarchical models give the features of their four stages. Plain models give the last feature for detection, four features
    for segmentation; LocalVim's pass a LayerNorm each.

    Args:
        name: of a model of this library, or of timm's; `name.tag` chooses among several weights.
        task: "detection" or "segmentation": the published forms differ, see :func:`dense_options`.
        options: of the model, and `out_indices`; they go before the published ones.

    Attributes:
        channels, strides: of each map.
        plain: all maps have one stride.
        neck: what the maps go through next; the identity until one is put there.

    Shapes: (batch, in_chans, H, W) to a list of (batch, channels, H / stride, W / stride).

    Example:
        >>> backbone = DenseBackbone("vmamba_nano", "segmentation")
        >>> [tuple(entry.shape[1:]) for entry in backbone(torch.randn(1, 3, 64, 96))]
        [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]
    """

    def __init__(self, name: str, task: str, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.name = name
        self.options = {"feature_cls": "getter", **dense_options(name, task), **(options or {})}
        self.body = cast(Any, create_model(name, features_only=True, **self.options))
        strides = self.body.feature_info.reduction()
        self.plain = len(strides) > 1 and len(set(strides)) == 1
        if self.plain and task == "detection":
            self.options["out_indices"] = (self.body.out_indices[-1],)
            self.body = cast(Any, create_model(name, features_only=True, **self.options))
        self.channels: list[int] = self.body.feature_info.channels()
        self.strides: list[int] = self.body.feature_info.reduction()
        self.out_norms = nn.ModuleList(LayerNorm2d(c) for c in self.channels) if name.startswith("local_vim_") else None
        self.neck: nn.Module = nn.Identity()

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the images that the weights were trained on."""
        cfg = self.body.pretrained_cfg
        return list(cfg["mean"]), list(cfg["std"])

    def load(self, pretrained: bool = False, checkpoint: str | Path | None = None) -> None:
        """The published classifier's weights, or a file's; norms that a classifier lacks keep their values.

        Raises:
            ValueError, FileNotFoundError: as :func:`visionssm.create_model`.
        """
        loaded = create_model(
            self.name, features_only=True, pretrained=pretrained, checkpoint=checkpoint, **self.options
        )
        state = loaded.state_dict()
        self.body.load_state_dict({name: state[name] for name in self.body.state_dict()})

    def drop_features(self, first: int) -> None:
        """Leaves the first maps out, with their norms, which would never be trained."""
        self.channels, self.strides = self.channels[first:], self.strides[first:]
        self.body.out_indices = list(self.body.out_indices)[first:]
        norms = getattr(self.body.model, "out_norms", None)
        if norms is not None:
            for i in range(first):
                norms[i] = nn.Identity()

    def features(self, x: Tensor) -> list[Tensor]:
        """The maps before the neck."""
        maps = self.body(x)
        if self.out_norms is not None:
            maps = [norm(entry) for norm, entry in zip(self.out_norms, maps, strict=True)]
        return list(maps)

    def forward(self, x: Tensor) -> Any:
        return self.neck(self.features(x))


class LastLevelConvs(ExtraFPNBlock):
    """RetinaNet's two coarsest levels: strided 3x3 convolutions of the last feature, one after the other, no ReLU between."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        p6 = self.p6(x[-1])
        return [*results, p6, self.p7(p6)], [*names, "p6", "p7"]


class FeaturePyramid(nn.Module):
    """torchvision's feature pyramid network on a list of maps; returns a dictionary, as its detectors expect."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, extra: ExtraFPNBlock) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(in_channels), out_channels, extra)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(i), entry) for i, entry in enumerate(maps)))


class PlainPyramid(nn.Module):
    """ViTDet's pyramid on the last map; returns a dictionary. With `first` = 1 a coarser level takes the finest one's place."""

    def __init__(self, in_channels: int, out_channels: int, first: int = 0) -> None:
        super().__init__()
        self.first = first
        self.pyramid = SimpleFeaturePyramid(in_channels, out_channels)
        self.pyramid.levels = self.pyramid.levels[first:]

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        levels = self.pyramid(maps[-1])
        for _ in range(self.first):
            levels = [*levels, nn.functional.max_pool2d(levels[-1], 1, stride=2)]
        return OrderedDict((str(i), level) for i, level in enumerate(levels))


def detection_backbone(
    name: str, options: dict[str, Any], out_channels: int = 256, first: int = 0, init: str = "mmdetection"
) -> DenseBackbone:
    """A backbone with five levels of `out_channels` for detectors: a feature pyramid, for plain models ViTDet's.

    Args:
        name, options: see :class:`DenseBackbone`.
        out_channels: of every level.
        first: 0: from a quarter of the resolution, the coarsest level subsampled, as two-stage detectors; 1: from an eighth,
            the two coarsest levels by convolutions, as RetinaNet.
        init: "mmdetection" draws the pyramid's convolutions from Xavier's uniform distribution, "torchvision" from Kaiming's.
    """
    backbone = DenseBackbone(name, "detection", options)
    channels = backbone.channels
    if len(channels) == 1:
        backbone.neck = PlainPyramid(channels[-1], out_channels, first)
        finest = backbone.strides[0] / 4 * 2**first
        backbone.strides = [int(finest * 2**i) for i in range(5)]
    else:
        backbone.drop_features(first)
        extra = LastLevelConvs(channels[-1], out_channels) if first else LastLevelMaxPool()
        backbone.neck = FeaturePyramid(backbone.channels, out_channels, extra)
        strides = backbone.strides
        while len(strides) < 5:
            strides = [*strides, 2 * strides[-1]]
        backbone.strides = strides
        if init == "mmdetection":
            init_convolutions(backbone.neck, nn.init.xavier_uniform_)
    if min(backbone.strides) < 1:
        raise ValueError(f"backbone: {name} has features of stride {backbone.strides[0]}, too fine for a pyramid")
    backbone.channels = [out_channels] * len(backbone.strides)
    backbone.out_channels = out_channels  # type: ignore[assignment]
    return backbone


def segmentation_backbone(name: str, options: dict[str, Any]) -> DenseBackbone:
    """A backbone with four maps for segmenters; Vim's pass four branches of other resolutions, LocalVim's keep theirs."""
    backbone = DenseBackbone(name, "segmentation", options)
    if backbone.plain and backbone.out_norms is None:
        stride = backbone.strides[0]
        backbone.neck = RescalingPyramid(backbone.channels[0], stride if stride in (8, 16) else 16)
        finest = 4 if stride in (8, 16) else max(stride // 4, 1)
        backbone.strides = [finest * 2**i for i in range(4)]
    return backbone


@torch.no_grad()
def init_convolutions(module: nn.Module, draw: Callable[[Tensor], Any]) -> None:
    """New weights for every convolution, and zero biases."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            draw(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class DenseModel(nn.Module):
    """What optimizers and users call on a detector or segmenter, passed on to its `backbone`."""

    backbone: Any

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer decay: those of the backbone; everything around it is in the last group."""
        body = self.backbone.body.model
        return {name: _below(rules, "backbone.body.model.") for name, rules in body.group_matcher(coarse).items()}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Tensors of the backbone to keep out of weight decay."""
        body = self.backbone.body.model
        return {f"backbone.body.model.{name}" for name in getattr(body, "no_weight_decay", set)()}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in backward instead of keeping what they computed."""
        self.backbone.body.model.set_grad_checkpointing(enable)

    def load_backbone(self, pretrained: bool = False, checkpoint: str | Path | None = None) -> None:
        """The backbone's published classifier weights, or a file's; see :func:`visionssm.create_model`."""
        if pretrained or checkpoint is not None:
            self.backbone.load(pretrained, checkpoint)


def _below(rules: Any, prefix: str) -> Any:
    """Patterns of parameter names, for the same names below a prefix."""
    if isinstance(rules, str):
        return rules.replace("^", "^" + prefix.replace(".", r"\."))
    if isinstance(rules, (list, tuple)):
        return [(_below(pattern, prefix), suffix) for pattern, suffix in rules]
    return rules
