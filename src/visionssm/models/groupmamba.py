"""GroupMamba: Efficient Group-Based Visual State Space Model.

Paper: arXiv 2407.13772. Code: github.com/Amshaker/GroupMamba, MIT; no statement for the weights (ImageNet-1K).

Four groups of channels walk the map in four directions, one each. The released code differs from the paper in the stem,
the layer and the order of the directions; the weights need the code's, which is the default. Inside, features are
(batch, H, W, C).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from .._messages import choose
from ..layers.conv_norm import StemConvolutions
from ..layers.depthwise import apply_depthwise, conv_silu
from ..layers.linear import has_hooks, is_plain_conv, is_plain_linear
from ..layers.mlp import Mlp
from ..layers.norm import update_norm
from ..layers.residual import add_to, scale_by
from ..layers.selective import SelectiveScan
from ..layers.ss2d import PathBuilder
from ..ops import conv_mlp, gate_silu, grouped_linear, layer_norm, paths
from ._backbone import HierarchicalBackbone, Stage, drop_path_rates
from ._build import build_model, init_linear_layers
from ._keys import Key, KeyTable
from ._release import Release, digits_release, register_releases
from .vmamba import ConvDownsample

LAYERS = ("released", "paper")
LAST_NORMS = ("none", "final", "fresh")


class GroupedLinear(nn.Module):
    """One linear layer per group: (..., groups, in_channels) to (..., groups, out_channels)."""

    def __init__(self, groups: int, in_channels: int, out_channels: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, out_channels, in_channels))
        self.bias = nn.Parameter(torch.zeros(groups * out_channels)) if bias else None
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = grouped_linear(x, self.weight)
        return x if self.bias is None else x + self.bias.view(x.shape[-2:])


class GroupedLayerNorm(nn.Module):
    """One LayerNorm per group over the last axis of (..., groups, channels)."""

    def __init__(self, groups: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(groups * channels))
        self.bias = nn.Parameter(torch.zeros(groups * channels))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight.view(x.shape[-2:]), self.bias.view(x.shape[-2:]), self.eps)


class GroupedScan(nn.Module):
    """The paper's VSSS block for all groups at once: in_proj, depthwise 3x3 convolution, SiLU, scan, norm, gate,
    out_proj.

    Each group has its own parameters and walks its own direction, or `directions` of them, whose outputs are summed.

    Args:
        width: C, divisible by the number of groups.
        groups: each has d = C / groups channels.
        state: N.
        directions: paths per group.
        path_builder: `(H, W, device=...) -> (groups * directions, T)`, the paths of one group after those of the other.

    Shapes: (batch, H, W, C) to (batch, H, W, C).

    Example:
        >>> GroupedScan(32)(torch.randn(2, 5, 7, 32)).shape
        torch.Size([2, 5, 7, 32])
    """

    def __init__(
        self,
        width: int,
        groups: int = 4,
        state: int = 1,
        directions: int = 1,
        path_builder: PathBuilder | None = None,
    ) -> None:
        super().__init__()
        if width % groups:
            raise ValueError(f"groups: got {groups}, need a divisor of every stage's channels, among them {width}")
        d = width // groups
        self.groups, self.directions = groups, directions
        self.paths = path_builder or partial(paths.cross_cycle, count=groups * directions)
        self.in_proj = GroupedLinear(groups, d, 2 * d)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.scan = SelectiveScan(d, groups * directions, state, dt_rank=-(-d // 16))
        self.out_norm = GroupedLayerNorm(groups, d)
        self.out_proj = GroupedLinear(groups, d, d)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x, z = self._in_halves(self._split(x))
        x = conv_silu(self.conv, x.reshape(shape))
        x = self._split(x).repeat_interleave(self.directions, dim=2) if self.directions > 1 else self._split(x)
        y = self.scan(x, self.paths(*shape[1:3], device=x.device), merge=False)
        if self.directions > 1:
            y = y.unflatten(2, (self.groups, -1)).sum(3)
        gate = z()
        return self.out_proj(gate_silu(self.out_norm(y).to(gate.dtype), gate)).reshape(shape)

    def _in_halves(self, x: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        """The halves of in_proj(x), as `layers.linear.in_halves` gives those of a linear layer."""
        if type(self.in_proj) is not GroupedLinear or has_hooks(self.in_proj):
            first, second = self.in_proj(x).chunk(2, dim=-1)
            return first, second.clone
        # Apart, so that each lies in memory as it is needed.
        weight, gate_weight = self.in_proj.weight.chunk(2, dim=1)
        return grouped_linear(x, weight), lambda: grouped_linear(x, gate_weight)

    def _split(self, x: Tensor) -> Tensor:
        """(batch, H, W, C) to (batch, L, groups, d)."""
        return x.flatten(1, 2).unflatten(2, (self.groups, -1))


class ChannelAffinity(nn.Module):
    """A weight between 0 and 1 for every channel of a (batch, H, W, C) map, from its mean: (batch, 1, 1, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width // 16)
        self.fc2 = nn.Linear(width // 16, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((1, 2), keepdim=True)))))


class ModulatedGroupMamba(nn.Module):
    """The released layer: norm, scan of the groups, times the normalised input and the channel affinity, the same norm
    again, linear.

    Shapes: (batch, H, W, C) to (batch, H, W, C).
    """

    def __init__(self, width: int, modulation: bool, **scan_options: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.groups = GroupedScan(width, **scan_options)
        self.affinity = ChannelAffinity(width) if modulation else None
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        scale = self.skip_scale if self.affinity is None else self.skip_scale * self.affinity(x)
        return self.proj(self.norm(scale_by(scale_by(self.groups(x), x), scale)))


class ConvMlp(nn.Module):
    """Linear, depthwise 3x3 convolution, exact GELU, linear over a (batch, H, W, C) map."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        fc1, conv, fc2 = self.fc1, self.conv, self.fc2
        if is_plain_linear(fc1) and is_plain_linear(fc2) and is_plain_conv(conv):
            return conv_mlp(x, fc1.weight, fc1.bias, conv.weight, conv.bias, fc2.weight, fc2.bias)
        return fc2(apply_depthwise(conv, fc1(x), "gelu"))


class Block(nn.Module):
    """x + mixer(x), which normalises its own input, then x + MLP(norm(x))."""

    def __init__(self, width: int, mlp_ratio: float, drop_path: float, **layer_options: Any) -> None:
        super().__init__()
        self.mixer = ModulatedGroupMamba(width, **layer_options)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = ConvMlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y, x = update_norm(self.norm2, x, self.drop_path(self.mixer(x)))
        return add_to(x, self.drop_path(self.mlp(y)))


class PaperBlock(nn.Module):
    """The layer as the paper prints it: scan and MLP with residuals in every group, channel affinity, an MLP over all.

    Z' = Z + scan(norm(Z)) and Z'' = Z' + MLP(norm(Z')) for the groups Z of x; then
    x + MLP(norm(concat(Z'') * affinity(x))).
    """

    def __init__(
        self, width: int, mlp_ratio: float, drop_path: float, modulation: bool, groups: int, **scan_options: Any
    ) -> None:
        super().__init__()
        d, hidden = width // groups, int(width // groups * mlp_ratio)
        self.groups = groups
        self.norm1 = GroupedLayerNorm(groups, d)
        self.mixer = GroupedScan(width, groups, **scan_options)
        self.norm2 = GroupedLayerNorm(groups, d)
        self.fc1 = GroupedLinear(groups, d, hidden, bias=True)
        self.fc2 = GroupedLinear(groups, hidden, d, bias=True)
        self.affinity = ChannelAffinity(width) if modulation else None
        self.norm3 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        z = x.unflatten(3, (self.groups, -1))
        z = z + self.mixer(self.norm1(z).flatten(3)).view(z.shape)
        z = z + self.fc2(F.gelu(self.fc1(self.norm2(z))))
        z = z.reshape(x.shape) if self.affinity is None else z.reshape(x.shape) * self.affinity(x)
        return x + self.drop_path(self.mlp(self.norm3(z)))


class PooledBlock(nn.Module):
    """What the classifier does to the mean token: g + norm(mixer(g)), then g + MLP(norm(g)).

    Shapes: a map of one pixel, (batch, 1, 1, C), to the same.
    """

    def __init__(self, width: int, mlp_ratio: float, **layer_options: Any) -> None:
        super().__init__()
        self.mixer = ModulatedGroupMamba(width, **layer_options)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.mixer(x))
        return x + self.mlp(self.norm2(x))


class ConvStem(StemConvolutions):
    """Four convolutions, then LayerNorm: (batch, 3, H, W) to (batch, ceil(H / 4), ceil(W / 4), C)."""

    def __init__(self, in_chans: int, hidden: int, width: int) -> None:
        super().__init__(in_chans, hidden, width)
        self.out_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_norm(super().forward(x).permute(0, 2, 3, 1))


class GroupStage(Stage):
    """A stage whose last norm is read both as its feature and by the next stage."""

    def __init__(self, blocks: list[nn.Module], norm: nn.Module, downsample: nn.Module) -> None:
        super().__init__(blocks, downsample)
        self.norm = norm


def _key_table() -> KeyTable:
    """Four published modules, one per group, are one of ours."""
    keys = [Key(f"patch_embed1.conv.{3 * i}.*", f"stem.conv{i + 1}.*") for i in range(3)]
    keys += [Key(f"patch_embed1.conv.{3 * i + 1}.*", f"stem.norm{i + 1}.*") for i in range(3)]
    keys += [Key("patch_embed1.proj.*", "stem.proj.*"), Key("patch_embed1.norm.*", "stem.out_norm.*")]
    keys += [Key(f"norm{i + 1}.*", f"stages.{i}.norm.*") for i in range(3)]
    keys += [Key("norm4.*", "norm.*")]
    for i in range(3):
        keys += [
            Key(f"patch_embed{i + 2}.proj.*", f"stages.{i}.downsample.conv.*"),
            Key(f"patch_embed{i + 2}.norm.*", f"stages.{i}.downsample.out_norm.*"),
        ]
    blocks = [(f"block{i + 1}.*", f"stages.{i}.blocks.*") for i in range(4)]
    for theirs, ours in [*blocks, ("post_network.0", "pooled_block")]:

        def groups(name: str, theirs: str = theirs) -> tuple[str, ...]:
            return tuple(f"{theirs}.attn.mamba_g{k}.{name}" for k in range(1, 5))

        keys += [
            Key(groups("in_proj.weight"), f"{ours}.mixer.groups.in_proj.weight"),
            Key(groups("conv2d.weight"), f"{ours}.mixer.groups.conv.weight", joined=True),
            Key(groups("conv2d.bias"), f"{ours}.mixer.groups.conv.bias", joined=True),
            Key(groups("x_proj_weight"), f"{ours}.mixer.groups.scan.x_proj_weight", joined=True),
            Key(groups("dt_projs_weight"), f"{ours}.mixer.groups.scan.dt_weight", joined=True),
            Key(groups("dt_projs_bias"), f"{ours}.mixer.groups.scan.dt_bias", joined=True),
            Key(groups("A_logs"), f"{ours}.mixer.groups.scan.A_log"),
            Key(groups("Ds"), f"{ours}.mixer.groups.scan.D"),
            Key(groups("out_norm.weight"), f"{ours}.mixer.groups.out_norm.weight", joined=True),
            Key(groups("out_norm.bias"), f"{ours}.mixer.groups.out_norm.bias", joined=True),
            Key(groups("out_proj.weight"), f"{ours}.mixer.groups.out_proj.weight"),
            Key(f"{theirs}.attn.fc1.*", f"{ours}.mixer.affinity.fc1.*"),
            Key(f"{theirs}.attn.fc2.*", f"{ours}.mixer.affinity.fc2.*"),
            Key(f"{theirs}.attn.**", f"{ours}.mixer.**"),
            Key(f"{theirs}.mlp.dwconv.dwconv.*", f"{ours}.mlp.conv.*"),
            Key(f"{theirs}.**", f"{ours}.**"),
        ]
    return KeyTable(keys)


class GroupMamba(HierarchicalBackbone):
    """GroupMamba. Any input size from 32x32 on works, square or not: every convolution of stride 2 rounds sizes up.

    Two classifiers read the same feature: `head` learns the labels, `dist_head` a teacher's predictions. In training
    the model returns both logits, (head, dist_head), in evaluation their mean. `set_distilled_training(False)`, or
    `distillation=False` to build the model without the second classifier, gives one output always.

    The feature of stage 4 is not normalised: the last norm was trained on the pooled token, which goes through a block
    of its own first. See `last_norm` for dense prediction.

    Args:
        in_chans, num_classes, global_pool, drop_rate: as in every timm model.
        stem_width: channels inside the stem.
        widths: channels of the stages, divisible by `groups`.
        depths: blocks per stage.
        mlp_ratios: hidden width of the MLP over C, per stage.
        groups: of channels; group k walks direction k modulo 4 of :func:`visionssm.ops.paths.cross`.
        directions: paths per group, whose outputs are summed; 4 is the paper's baseline, "every channel in all
            directions".
        path_builder: a function `(H, W, device=...) -> (groups * directions, T) int32` in place of these directions.
        state: N.
        modulation: the channel affinity ("CAM").
        layer: "released", or the layer as the "paper" prints it.
        distillation: the second classifier.
        last_norm: what `features_only=True` and `forward_intermediates` do to the feature of stage 4: "none"; "final",
            the classifier's last norm on every pixel; or "fresh", a LayerNorm of its own.
        drop_path_rate: of the last block; grows linearly from 0.
    """

    key_table = _key_table()
    pooled_block: nn.Module

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        *,
        stem_width: int = 32,
        widths: Sequence[int] = (64, 128, 348, 448),
        depths: Sequence[int] = (3, 4, 9, 3),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        groups: int = 4,
        directions: int = 1,
        path_builder: PathBuilder | None = None,
        state: int = 1,
        modulation: bool = True,
        layer: str = "released",
        distillation: bool = True,
        last_norm: str = "none",
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        choose("layer", layer, LAYERS)
        self.last_norm = choose("last_norm", last_norm, LAST_NORMS)
        if (groups, directions, layer) != (4, 1, "released"):
            self.key_table = KeyTable([])  # no weights were published, so there are no other names than ours
        options: dict[str, Any] = {
            "modulation": modulation,
            "groups": groups,
            "state": state,
            "directions": directions,
            "path_builder": path_builder,
        }
        block_class = Block if layer == "released" else PaperBlock
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.stem = ConvStem(in_chans, stem_width, widths[0])
        self.stages = nn.ModuleList()
        for i, (width, depth, ratio) in enumerate(zip(widths, depths, mlp_ratios, strict=True)):
            blocks: list[nn.Module] = [block_class(width, ratio, next(rates), **options) for _ in range(depth)]
            if i + 1 < len(depths):
                self.stages.append(
                    GroupStage(blocks, nn.LayerNorm(width, eps=1e-6), ConvDownsample(width, widths[i + 1]))
                )
            else:
                self.stages.append(GroupStage(blocks, nn.Identity(), nn.Identity()))
        self.pooled_block = PooledBlock(widths[-1], mlp_ratios[-1], **options)
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        if last_norm == "fresh":
            fresh = nn.LayerNorm(widths[-1], eps=1e-6)
            self.out_norms = nn.ModuleList([*(nn.Identity() for _ in widths[:-1]), fresh])
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, width in enumerate(widths)
        ]
        self.init_head(widths[-1], num_classes, global_pool, drop_rate)
        self.dist_head = _classifier(widths[-1], num_classes) if distillation else None
        self.distilled_training = distillation
        init_linear_layers(self)
        _init_convolutions(self)

    def stage_feature(self, x: Tensor, index: int) -> Tensor:
        return cast(GroupStage, self.stages[index]).norm(x)

    def final_norm(self, x: Tensor) -> Tensor:
        return x

    def feature_norm(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def forward_intermediates(
        self, x: Tensor, indices: Any = None, norm: bool = False, *args: Any, **kwargs: Any
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """As in every hierarchical backbone; `norm` is also set by `last_norm="final"`."""
        return super().forward_intermediates(x, indices, norm or self.last_norm == "final", *args, **kwargs)

    def pool(self, x: Tensor) -> Tensor:
        return self.norm(self.pooled_block(x.mean((2, 3))[:, None, None]))[:, 0, 0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """Pools and classifies what forward_features returns; with `pre_logits` only pools.

        Returns:
            (batch, classes): the mean of both classifiers; or both, while `distilled_training` is on and the model
            trains.
        """
        x = super().forward_head(x, pre_logits=True)
        if pre_logits or self.num_classes == 0:
            return x
        if self.dist_head is None:
            return self.head(x)
        logits, distilled = self.head(x), self.dist_head(x)
        return (logits, distilled) if self.training and self.distilled_training else (logits + distilled) / 2

    @torch.jit.ignore
    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether training returns the logits of both classifiers, for distillation, or their mean."""
        if enable and self.dist_head is None:
            raise ValueError(
                "set_distilled_training: the model was built with distillation=False, it has one classifier"
            )
        self.distilled_training = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The classification layer, or both."""
        return self.head if self.dist_head is None else (self.head, self.dist_head)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Fresh classification layers; 0 classes for none, `global_pool=""` for no pooling."""
        super().reset_classifier(num_classes, global_pool)
        if self.dist_head is not None:
            self.dist_head = _classifier(self.num_features, num_classes).to(next(self.parameters()).device)
            init_linear_layers(self.dist_head)

    def prune_intermediate_layers(
        self, indices: int | list[int] | tuple[int, ...] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages after the last asked for, and norm, heads and pooled block if wanted; returns the indices
        kept.
        """
        take = super().prune_intermediate_layers(indices, prune_norm and self.last_norm != "final", prune_head)
        if prune_head:
            self.pooled_block = nn.Identity()
        return take

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer decay: the stem, every stage or block, and the head."""
        matcher = super().group_matcher(coarse)
        if not coarse:
            matcher["blocks"] += [(r"^stages\.(\d+)\.norm", (99999,)), (r"^pooled_block", (99999,))]
        return matcher


def _classifier(width: int, num_classes: int) -> nn.Module:
    return nn.Linear(width, num_classes) if num_classes > 0 else nn.Identity()


@torch.no_grad()
def _init_convolutions(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _release(size: str, params: int, gflops: float, top1: float, drive_id: str) -> Release:
    return Release(
        params=params,
        gflops=gflops,
        top1=top1,
        url=f"https://drive.usercontent.google.com/download?id={drive_id}&export=download&confirm=t",
        file_name=f"groupmamba_{size}.pth",
        prefer=("model_ema",),
        paper="2407.13772",
        first_conv="stem.conv1",
        classifier=("head", "dist_head"),
        note="The averaged (EMA) weights.",
    )


default_cfgs = register_releases(
    {
        "groupmamba_tiny.in1k": _release("tiny", 23_361_917, 4.5, 83.3, "1TrYYs0uGZbja_2ONQLyfiNdp8C5ZYP1o"),
        "groupmamba_small.in1k": _release("small", 34_781_555, 7.0, 83.9, "1vTN9ynDcsDuOVrcT9GcQ5nBSk-hXySlh"),
        "groupmamba_base.in1k": _release("base", 57_150_838, 14.0, 84.5, "1A_srBeDYpsinU5W3PAEADu1saoz413EU"),
        "groupmamba_nano.digits": digits_release(
            "groupmamba_nano", 238_873, 99.16, pool_size=(1, 1), first_conv="stem.conv1"
        ),
    }
)


def _groupmamba(variant: str, pretrained: bool, options: dict[str, Any], **config: Any) -> GroupMamba:
    return cast(GroupMamba, build_model(GroupMamba, variant, pretrained, **{**config, **options}))


@register_model
def groupmamba_tiny(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """GroupMamba-T."""
    return _groupmamba("groupmamba_tiny", pretrained, kwargs)


@register_model
def groupmamba_small(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """GroupMamba-S."""
    config = {"stem_width": 64, "widths": (64, 128, 348, 512), "depths": (3, 4, 16, 3)}
    return _groupmamba("groupmamba_small", pretrained, kwargs, **config)


@register_model
def groupmamba_base(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """GroupMamba-B."""
    config = {"stem_width": 64, "widths": (96, 192, 424, 512), "depths": (3, 6, 21, 3)}
    return _groupmamba("groupmamba_base", pretrained, kwargs, **config)


@register_model
def groupmamba_nano(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """A GroupMamba of 4 blocks and one classifier for 32x32 images: for demonstrations and tests."""
    config = {"stem_width": 16, "widths": (24, 48, 64, 80), "depths": (1, 1, 1, 1), "mlp_ratios": (4, 4, 2, 2)}
    return _groupmamba("groupmamba_nano", pretrained, kwargs, distillation=False, **config)
