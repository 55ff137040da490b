"""EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba.

Paper: arXiv 2403.09977. Code: github.com/TerryPei/EfficientVMamba; its README says Apache-2.0, for the weights
(ImageNet-1K) too, but no licence file comes with either.

Two stages of state-space blocks, whose four paths share the pixels between them, then two stages of inverted residual
blocks. Inside, features are (batch, H, W, C).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, DropPath, SqueezeExcite
from timm.models import register_model
from torch import Tensor, nn

from .._messages import choose
from .._sizes import known_true
from ..layers.conv_norm import conv_norm_last
from ..layers.linear import has_hooks, is_plain_conv
from ..layers.patches import PatchMerging, PatchStem
from ..layers.residual import add_to
from ..layers.ss2d import SS2D, PathBuilder
from ..ops import linear, paths
from ._backbone import HierarchicalBackbone, Stage, drop_path_rates
from ._build import build_model, init_linear_layers
from ._keys import Key, KeyTable
from ._release import Release, digits_release, register_releases


class ES2D(SS2D):
    """SS2D whose four paths walk one quarter of the pixels each: every second row and column, at four offsets.

    The same as `SS2D(width, paths.atrous)`, but every pixel is projected to dt, B and C for the one path that visits
    it, not for all four: its quarters are laid side by side. Odd sides are padded with zeros at the bottom and the
    right; the state decays over the padding.

    Shapes: (batch, H, W, C) to (batch, H, W, C).

    Example:
        >>> ES2D(16, paths.raster_transposed)(torch.randn(2, 5, 7, 16)).shape
        torch.Size([2, 5, 7, 16])
    """

    def scan_map(self, x: Tensor) -> Tensor:
        batch, H, W, E = x.shape
        h, w = (H + 1) // 2, (W + 1) // 2
        if not (known_true(2 * h == H) and known_true(2 * w == W)):
            x = F.pad(x, (0, 0, 0, 2 * w - W, 0, 2 * h - H))
        quarters = x.view(batch, h, 2, w, 2, E).permute(0, 1, 3, 4, 2, 5)  # path k is 2 * column + row
        y = self.scan(quarters.reshape(batch, h * w, 4, E), self.paths(h, w, device=x.device), merge=False)
        y = y.view(batch, h, w, 2, 2, E).permute(0, 1, 4, 2, 3, 5).reshape(batch, 2 * h, 2 * w, E)
        return y[:, :H, :W]


class ConvBranch(nn.Module):
    """Depthwise 3x3 convolution, BatchNorm, GELU, 1x1 convolution: (batch, H, W, C) to (batch, H, W, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = conv_norm_last(self.conv, self.norm, x, "gelu")
        if y is None:
            y = F.gelu(self.norm(self.conv(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)
        if not is_plain_conv(self.proj):
            return self.proj(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return linear(y, self.proj.weight.flatten(1), self.proj.bias)


class ChannelGate(nn.Module):
    """Scales the channels of a (batch, H, W, C) map by what the mean of its LayerNorm says: squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width // 8)
        self.fc2 = nn.Linear(width // 8, width)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.norm(x).mean((1, 2), keepdim=True)
        return x * torch.sigmoid(self.fc2(F.gelu(self.fc1(mean))))


class Block(nn.Module):
    """EVSS block: x + gate(mixer(norm(x))) + gate(convolutions(norm(x))), one gate for both; without fusion
    x + mixer(norm(x)).
    """

    def __init__(self, width: int, mixer: nn.Module, fusion: bool, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mixer = mixer
        self.conv_branch = ConvBranch(width) if fusion else None
        self.gate = ChannelGate(width) if fusion else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        normalised = self.norm(x)
        update = self.mixer(normalised)
        if self.conv_branch is not None and self.gate is not None:
            update = add_to(self.gate(update), self.gate(self.conv_branch(normalised)))
        return x + self.drop_path(update)


class InvertedResidual(nn.Module):
    """x + 1x1, depthwise 3x3 and 1x1 convolutions over 4 C channels with squeeze and excitation, (batch, H, W, C)."""

    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        hidden = 4 * width
        self.expand = ConvNormAct(width, hidden, 1, act_layer=nn.ReLU)
        self.depthwise = ConvNormAct(hidden, hidden, 3, groups=hidden, act_layer=nn.ReLU)
        self.se = SqueezeExcite(hidden, rd_channels=hidden // 8)
        self.project = ConvNormAct(hidden, width, 1, apply_act=False)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = _apply(self.depthwise, _apply(self.expand, x, "relu"), "relu")
        y = self.se(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path(_apply(self.project, y, "none"))


def _apply(layer: Any, x: Tensor, activation: str) -> Tensor:
    """A convolution with norm and that activation on a (batch, H, W, C) map."""
    y = None if has_hooks(layer) else conv_norm_last(layer.conv, layer.bn, x, activation)
    return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if y is None else y


def _key_table(pattern: str, depths: Sequence[int]) -> KeyTable:
    """A convolutional stage is published as a flat sequence: a change of layout, blocks, another change, downsample."""
    keys = [Key("patch_embed.0.*", "stem.conv1.*"), Key("patch_embed.2.*", "stem.norm1.*")]
    for i, (kind, depth) in enumerate(zip(pattern, depths, strict=True)):
        if kind == "S":
            theirs, ours = f"layers.{i}.blocks.*", f"stages.{i}.blocks.*"
            keys += [
                Key(f"{theirs}.op.x_proj_weight", f"{ours}.mixer.scan.x_proj_weight"),
                Key(f"{theirs}.op.dt_projs_weight", f"{ours}.mixer.scan.dt_weight"),
                Key(f"{theirs}.op.dt_projs_bias", f"{ours}.mixer.scan.dt_bias"),
                Key(f"{theirs}.op.A_logs", f"{ours}.mixer.scan.A_log", flat=2),
                Key(f"{theirs}.op.Ds", f"{ours}.mixer.scan.D", flat=2),
                Key(f"{theirs}.op.conv2d.*", f"{ours}.mixer.conv.*"),
                Key(f"{theirs}.op.**", f"{ours}.mixer.**"),
                Key(f"{theirs}.conv_branch.0.*", f"{ours}.conv_branch.conv.*"),
                Key(f"{theirs}.conv_branch.1.*", f"{ours}.conv_branch.norm.*"),
                Key(f"{theirs}.conv_branch.3.*", f"{ours}.conv_branch.proj.*"),
                Key(f"{theirs}.se.global_reduce.*", f"{ours}.gate.fc1.*"),
                Key(f"{theirs}.se.channel_select.*", f"{ours}.gate.fc2.*"),
                Key(f"{theirs}.se.norm.*", f"{ours}.gate.norm.*"),
                Key(f"{theirs}.norm.*", f"{ours}.norm.*"),
                Key(f"layers.{i}.downsample.**", f"stages.{i}.downsample.**"),
            ]
            continue
        for j in range(depth):
            theirs, ours = f"layers.{i}.{j + 1}", f"stages.{i}.blocks.{j}"
            for conv, name in (("conv_pw", "expand"), ("conv_dw", "depthwise"), ("conv_pw2", "project")):
                keys += [
                    Key(f"{theirs}.{conv}.0.*", f"{ours}.{name}.conv.*"),
                    Key(f"{theirs}.{conv}.1.*", f"{ours}.{name}.bn.*"),
                ]
            keys += [
                Key(f"{theirs}.se.conv_reduce.*", f"{ours}.se.fc1.*"),
                Key(f"{theirs}.se.conv_expand.*", f"{ours}.se.fc2.*"),
            ]
        keys.append(Key(f"layers.{i}.{depth + 2}.**", f"stages.{i}.downsample.**"))
    keys += [Key("classifier.norm.*", "norm.*"), Key("classifier.head.*", "head.*")]
    keys += [Key(f"outnorm{i}.*", f"out_norms.{i}.*") for i in range(len(depths))]
    return KeyTable(
        keys,
        aliases=[
            ("patch_embed.proj.*", "patch_embed.0.*"),
            ("patch_embed.norm.*", "patch_embed.2.*"),
            ("layers.*.blocks.*.ln_1.*", "layers.*.blocks.*.norm.*"),
            ("layers.*.blocks.*.self_attention.**", "layers.*.blocks.*.op.**"),
            ("norm.*", "classifier.norm.*"),
            ("head.*", "classifier.head.*"),
        ],
    )


class EfficientVMamba(HierarchicalBackbone):
    """EfficientVMamba. Any input size from 32x32 on works, square or not.

    The stem rounds sizes down and every patch merging up, so an H x W image gives floor(H / 4) x floor(W / 4) features
    in the first stage, and 236x300 gives 59x75, 30x38, 15x19, 8x10.

    Args:
        in_chans, num_classes, global_pool, drop_rate: as in every timm model.
        width: channels of the first stage; they double from stage to stage.
        depths: blocks per stage.
        pattern: a letter per stage: "S" for state-space blocks, "C" for inverted residual (convolutional) ones.
        expansion: E / C.
        state: N.
        scan_mode: "atrous", or "cross" for VMamba's four paths over all pixels; or a function
            `(H, W, device=...) -> (4, T) int32` of your own, for the whole map.
        fusion: the convolution branch beside the scan, and the gate that both share.
        drop_path_rate: of the last block; grows linearly from 0.
        out_norms: a LayerNorm on each stage's feature, as in the published dense-prediction form.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        *,
        width: int = 48,
        depths: Sequence[int] = (2, 2, 4, 2),
        pattern: str = "SSCC",
        expansion: float = 2.0,
        state: int = 16,
        scan_mode: str | PathBuilder = "atrous",
        fusion: bool = True,
        drop_path_rate: float = 0.0,
        out_norms: bool = False,
    ) -> None:
        super().__init__()
        if len(pattern) != len(depths) or set(pattern) - {"S", "C"}:
            raise ValueError(
                f"pattern: got {pattern!r}, need {len(depths)} letters, S or C, one for each of depths={tuple(depths)}"
            )
        self.key_table = _key_table(pattern, depths)
        widths = [width * 2**i for i in range(len(depths))]
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        mixer_class, path_builder = _scan_mode(scan_mode)

        def block(kind: str, width: int) -> nn.Module:
            if kind == "C":
                return InvertedResidual(width, next(rates))
            return Block(width, mixer_class(width, path_builder, expansion=expansion, state=state), fusion, next(rates))

        self.stem = PatchStem(in_chans, width)
        self.stages = nn.ModuleList(
            Stage(
                [block(kind, widths[i]) for _ in range(depth)],
                PatchMerging(widths[i], widths[i + 1]) if i + 1 < len(depths) else nn.Identity(),
            )
            for i, (kind, depth) in enumerate(zip(pattern, depths, strict=True))
        )
        self.norm = nn.LayerNorm(widths[-1])
        self.out_norms = nn.ModuleList(nn.LayerNorm(w) for w in widths) if out_norms else None
        self.feature_info = [
            {"num_chs": w, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, w in enumerate(widths)
        ]
        self.init_head(widths[-1], num_classes, global_pool, drop_rate)
        init_linear_layers(self)


def _scan_mode(mode: str | PathBuilder) -> tuple[type[SS2D], PathBuilder]:
    if callable(mode):
        return SS2D, mode
    return choose("scan_mode", mode, {"atrous": (ES2D, paths.raster_transposed), "cross": (SS2D, paths.cross)})


def _release(size: str, params: int, gflops: float, top1: float) -> Release:
    return Release(
        params=params,
        gflops=gflops,
        top1=top1,
        hf_hub_id=f"TerryPei/EfficientVMamba-{size}",
        hf_hub_filename=f"efficient_vmamba_{size.lower()}.ckpt",
        prefer=("state_dict",),
        weights_license="apache-2.0",
        commercial=True,
        note="Apache-2.0 by the README; no licence file comes with code or weights.",
        paper="2403.09977",
        first_conv="stem.conv1",
    )


default_cfgs = register_releases(
    {
        "efficient_vmamba_tiny.in1k": _release("Tiny", 6_493_660, 0.8, 76.5),
        "efficient_vmamba_small.in1k": _release("Small", 11_273_688, 1.3, 78.7),
        "efficient_vmamba_base.in1k": _release("Base", 33_717_136, 4.0, 81.8),
        "efficient_vmamba_nano.digits": digits_release(
            "efficient_vmamba_nano", 195_386, 98.33, pool_size=(1, 1), first_conv="stem.conv1"
        ),
    }
)


def _efficient_vmamba(variant: str, pretrained: bool, options: dict[str, Any], **config: Any) -> EfficientVMamba:
    return cast(EfficientVMamba, build_model(EfficientVMamba, variant, pretrained, **{**config, **options}))


@register_model
def efficient_vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-T."""
    return _efficient_vmamba("efficient_vmamba_tiny", pretrained, kwargs, width=48, depths=(2, 2, 4, 2))


@register_model
def efficient_vmamba_small(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-S: of width 64, as the weights are; the paper's table says 96."""
    return _efficient_vmamba("efficient_vmamba_small", pretrained, kwargs, width=64, depths=(2, 2, 4, 2))


@register_model
def efficient_vmamba_base(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-B."""
    return _efficient_vmamba("efficient_vmamba_base", pretrained, kwargs, width=96, depths=(2, 2, 9, 2))


@register_model
def efficient_vmamba_nano(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """An EfficientVMamba of 4 blocks for 32x32 images: for demonstrations and tests."""
    return _efficient_vmamba("efficient_vmamba_nano", pretrained, kwargs, width=12, depths=(1, 1, 1, 1))
