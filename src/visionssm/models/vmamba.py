"""VMamba: Visual State Space Model.

Paper: arXiv 2401.10166. Code: github.com/MzeroMiko/VMamba, MIT; no separate statement for the weights (ImageNet-1K).

Two generations share one pyramid. "Vanilla": 4x4 patches, patch merging, gated SS2D with 16 states, no MLP. The later
one, with the tags `sXlY` (SSM ratio X, Y blocks in stage 3): a stem of two convolutions, strided convolutions between
stages, SS2D without gate and with one state, and an MLP. Its "m2" form has Mamba-2's recurrence, with one decay per head.
Inside, features are (batch, H, W, C). What is elementwise sees them as (batch, L, C), because torch.compile takes any tensor of
four dimensions that leads to a convolution for (batch, C, H, W), and would permute it.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from .._messages import choose
from ..layers.mlp import Mlp
from ..layers.norm import norm_gelu, update_norm
from ..layers.patches import PatchMerging, PatchStem, conv_downsample
from ..layers.residual import add_to
from ..layers.ss2d import SS2D, ConvNorm, PathBuilder, SoftmaxNorm
from ..ops import paths
from ._backbone import HierarchicalBackbone, Stage, drop_path_rates
from ._build import build_model, init_linear_layers
from ._keys import Key, KeyTable
from ._release import Release, digits_release, register_releases


class ConvStem(nn.Sequential):
    """Two 3x3 convolutions of stride 2: (batch, 3, H, W) to (batch, ceil(H / 4), ceil(W / 4), C)."""

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width // 2, 3, stride=2, padding=1)
        self.norm1 = nn.LayerNorm(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).permute(0, 2, 3, 1)
        x = norm_gelu(self.norm1, x.flatten(1, 2)).view(x.shape)
        x = self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm2(x.flatten(1, 2)).view(x.shape)


class ConvDownsample(nn.Module):
    """Convolution of stride 2, then LayerNorm: (batch, H, W, C) to (batch, ceil(H / 2), ceil(W / 2), 2 C) for kernel
    3.
    """

    def __init__(self, width: int, out_width: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out_width, kernel, stride=2, padding=(kernel - 1) // 2)
        self.out_norm = nn.LayerNorm(out_width)

    def forward(self, x: Tensor) -> Tensor:
        x = conv_downsample(self.conv, x)
        return self.out_norm(x.flatten(1, 2)).view(x.shape)


class CascadeSS2D(SS2D):
    """VMamba's "cascade" scan mode: every row on its own, in both directions, then every column.

    Each pass starts with a LayerNorm without parameters and sums its two directions. As published, the reversed outputs
    are not turned back before the sum.
    """

    def scan_map(self, x: Tensor) -> Tensor:
        y = self._scan_lines(x, slice(0, 2))
        return self._scan_lines(y.transpose(1, 2), slice(2, 4)).transpose(1, 2)

    def _scan_lines(self, x: Tensor, which: slice) -> Tensor:
        lines = F.layer_norm(x, x.shape[-1:]).flatten(0, 1)
        path = paths.forward_backward(1, lines.shape[1], device=x.device)
        y = self.scan(lines, path, merge=False, which=which)
        return (y[:, :, 0] + y[:, :, 1].flip(1)).view(x.shape)


class Block(nn.Module):
    """x + SS2D(norm(x)), then x + MLP(norm(x)) where there is one."""

    def __init__(self, width: int, mixer: nn.Module, mlp_ratio: float, gated_mlp: bool, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width) if mlp_ratio > 0 else None
        self.mlp = Mlp(width, int(width * mlp_ratio), gated_mlp) if mlp_ratio > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        shape, x = x.shape, x.flatten(1, 2)
        update = self.drop_path(self.mixer(self.norm1(x).view(shape)).flatten(1, 2))
        if self.mlp is None or self.norm2 is None:
            return (x + update).view(shape)
        y, x = update_norm(self.norm2, x, update)
        return add_to(x, self.drop_path(self.mlp(y))).view(shape)


class VMamba(HierarchicalBackbone):
    """VMamba in all its published forms. Any input size from 32x32 on works, square or not.

    The stem and every downsample round sizes up ("patch" stem: down), so an H x W image gives ceil(H / 4) x ceil(W / 4)
    features in the first stage.

    Args:
        in_chans, num_classes, global_pool, drop_rate: as in every timm model.
        width: channels of the first stage; they double from stage to stage.
        depths: blocks per stage.
        expansion: E / C, "SSM ratio".
        state: N.
        mlp_ratio: hidden width of the MLP over C; 0 for none.
        gated_mlp: GELU-gated MLP.
        stem: "conv" or "patch".
        downsample: "conv", "conv2" (kernel 2) or "patch_merging".
        gate: "none", "silu" or "linear".
        conv: the depthwise convolution inside SS2D.
        conv_bias: its bias.
        scan_mode: "cross", or the ablations "unidirectional", "bidirectional", "rotations", "cascade"; or a function
            `(H, W, device=...) -> (4, T) int32` of your own.
        out_norm: "layer_norm", or the ablations "none", "softmax", "sigmoid", "dwconv", "layer_norm_dwconv".
        out_activation: GELU after the output norm.
        activation: after the convolution, "silu" or "gelu".
        multihead: Mamba-2's recurrence, ceil(C / 16) heads that share a decay each.
        dt_init: see :class:`visionssm.layers.SelectiveScan`, or with `multihead` :class:`visionssm.layers.MultiheadScan`.
        pos_embed: a learned position embedding after the stem, for images of `img_size`, resized for others.
        img_size: see pos_embed; without it, nothing depends on it.
        drop_path_rate: of the last block; grows linearly from 0.
        out_norms: a LayerNorm on each stage's feature, as in the published dense-prediction form.
    """

    key_table = KeyTable(
        [
            Key("patch_embed.0.*", "stem.conv1.*"),
            Key("patch_embed.2.*", "stem.norm1.*"),
            Key("patch_embed.5.*", "stem.conv2.*"),
            Key("patch_embed.7.*", "stem.norm2.*"),
            Key("layers.*.blocks.*.norm.*", "stages.*.blocks.*.norm1.*"),
            Key("layers.*.blocks.*.norm2.*", "stages.*.blocks.*.norm2.*"),
            Key("layers.*.blocks.*.mlp.**", "stages.*.blocks.*.mlp.**"),
            Key("layers.*.blocks.*.op.x_proj_weight", "stages.*.blocks.*.mixer.scan.x_proj_weight"),
            Key("layers.*.blocks.*.op.dt_projs_weight", "stages.*.blocks.*.mixer.scan.dt_weight"),
            Key("layers.*.blocks.*.op.dt_projs_bias", "stages.*.blocks.*.mixer.scan.dt_bias"),
            Key("layers.*.blocks.*.op.A_logs", "stages.*.blocks.*.mixer.scan.A_log", flat=2),
            Key("layers.*.blocks.*.op.Ds", "stages.*.blocks.*.mixer.scan.D", flat=2),
            Key("layers.*.blocks.*.op.conv2d.*", "stages.*.blocks.*.mixer.conv.*"),
            Key("layers.*.blocks.*.op.**", "stages.*.blocks.*.mixer.**"),
            Key("layers.*.downsample.1.*", "stages.*.downsample.conv.*"),
            Key("layers.*.downsample.3.*", "stages.*.downsample.out_norm.*"),
            Key("layers.*.downsample.**", "stages.*.downsample.**"),
            Key("classifier.norm.*", "norm.*"),
            Key("classifier.head.*", "head.*"),
            *(Key(f"outnorm{i}.*", f"out_norms.{i}.*") for i in range(4)),
        ],
        aliases=[
            ("patch_embed.proj.*", "patch_embed.0.*"),
            ("patch_embed.norm.*", "patch_embed.2.*"),
            ("layers.*.blocks.*.ln_1.*", "layers.*.blocks.*.norm.*"),
            ("layers.*.blocks.*.self_attention.**", "layers.*.blocks.*.op.**"),
            ("norm.*", "classifier.norm.*"),
            ("head.*", "classifier.head.*"),
            ("layers.*.blocks.*.op.x_proj.weight", "layers.*.blocks.*.op.x_proj_weight"),
            ("layers.*.blocks.*.op.dt_projs.weight", "layers.*.blocks.*.op.dt_projs_weight"),
            ("layers.*.downsample.1.*", "layers.*.downsample.norm.*"),
            ("layers.*.downsample.2.*", "layers.*.downsample.reduction.*"),
        ],
    )

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        *,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 8, 2),
        expansion: float = 1.0,
        state: int = 1,
        mlp_ratio: float = 4.0,
        gated_mlp: bool = False,
        stem: str = "conv",
        downsample: str = "conv",
        gate: str = "none",
        conv: bool = True,
        conv_bias: bool = False,
        scan_mode: str | PathBuilder = "cross",
        out_norm: str = "layer_norm",
        out_activation: bool = False,
        activation: str = "silu",
        multihead: bool = False,
        dt_init: str = "mamba",
        pos_embed: bool = False,
        img_size: int | tuple[int, int] = 224,
        drop_path_rate: float = 0.0,
        out_norms: bool = False,
    ) -> None:
        super().__init__()
        choose("stem", stem, ("conv", "patch"))
        choose("downsample", downsample, ("conv", "conv2", "patch_merging"))
        widths = [width * 2**i for i in range(len(depths))]
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))

        def mixer(width: int) -> SS2D:
            channels = int(expansion * width)
            mixer_class, path_builder = _scan_mode(scan_mode)
            return mixer_class(
                width,
                path_builder,
                expansion=expansion,
                state=state,
                gate=gate != "none",
                gate_activation=choose("gate", gate, {"none": nn.Identity, "silu": nn.SiLU, "linear": nn.Identity}),
                conv=conv,
                conv_bias=conv_bias,
                out_norm=_out_norm(out_norm, channels),
                out_activation=nn.GELU() if out_activation else None,
                activation=choose("activation", activation, {"silu": nn.SiLU, "gelu": nn.GELU}),
                multihead=multihead,
                dt_init=dt_init,
            )

        if multihead:
            self.key_table = _multihead_keys(self.key_table)
        self.stem = ConvStem(in_chans, width) if stem == "conv" else PatchStem(in_chans, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, width, *_stem_grid(img_size))) if pos_embed else None
        self.stages = nn.ModuleList()
        for i, depth in enumerate(depths):
            blocks: list[nn.Module] = [
                Block(widths[i], mixer(widths[i]), mlp_ratio, gated_mlp, next(rates)) for _ in range(depth)
            ]
            last = i == len(depths) - 1
            self.stages.append(Stage(blocks, nn.Identity() if last else _downsample(downsample, widths[i])))
        self.norm = nn.LayerNorm(widths[-1])
        self.out_norms = nn.ModuleList(nn.LayerNorm(w) for w in widths) if out_norms else None
        self.feature_info = [
            {"num_chs": w, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, w in enumerate(widths)
        ]
        self.init_head(widths[-1], num_classes, global_pool, drop_rate)
        init_linear_layers(self)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def run_stem(self, x: Tensor) -> Tensor:
        x = super().run_stem(x)
        if self.pos_embed is None:
            return x
        return x + _resized(self.pos_embed, x.shape[1:3]).permute(0, 2, 3, 1)

    def prepare_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resizes the position embedding of a file, where there is one, to this model's grid."""
        if self.pos_embed is not None and "pos_embed" in state:
            state["pos_embed"] = _resized(state["pos_embed"], self.pos_embed.shape[2:])
        return state


def _multihead_keys(table: KeyTable) -> KeyTable:
    """The published names of "m2" models, which keep the axis of directions and number the convolution."""
    op, mixer = "layers.*.blocks.*.op", "stages.*.blocks.*.mixer"
    renamed = [
        Key(f"{op}.A_logs", f"{mixer}.scan.A_log"),
        Key(f"{op}.Ds", f"{mixer}.scan.D"),
        Key(f"{op}.conv2d.1.*", f"{mixer}.conv.*"),
    ]
    return KeyTable([*renamed, *table.keys], table.aliases)


def _resized(pos_embed: Tensor, grid: Sequence[int]) -> Tensor:
    if pos_embed.shape[2:] == tuple(grid):
        return pos_embed
    return F.interpolate(pos_embed, size=tuple(grid), mode="bicubic", align_corners=False)


def _stem_grid(img_size: int | tuple[int, int]) -> tuple[int, int]:
    H, W = (img_size, img_size) if isinstance(img_size, int) else img_size
    return -(-H // 4), -(-W // 4)


def _scan_mode(mode: str | PathBuilder) -> tuple[type[SS2D], PathBuilder]:
    if callable(mode):
        return SS2D, mode
    return choose(
        "scan_mode",
        mode,
        {
            "cross": (SS2D, paths.cross),
            "unidirectional": (SS2D, paths.unidirectional),
            "bidirectional": (SS2D, paths.bidirectional),
            "rotations": (SS2D, paths.rotations),
            "cascade": (CascadeSS2D, paths.cross),
        },
    )


def _out_norm(kind: str, channels: int) -> nn.Module:
    builders: dict[str, Callable[[], nn.Module]] = {
        "layer_norm": lambda: nn.LayerNorm(channels),
        "none": nn.Identity,
        "softmax": SoftmaxNorm,
        "sigmoid": nn.Sigmoid,
        "dwconv": lambda: ConvNorm(channels, layer_norm=False),
        "layer_norm_dwconv": lambda: ConvNorm(channels, layer_norm=True),
    }
    return choose("out_norm", kind, builders)()


def _downsample(kind: str, width: int) -> nn.Module:
    if kind == "patch_merging":
        return PatchMerging(width, 2 * width)
    return ConvDownsample(width, 2 * width, kernel=3 if kind == "conv" else 2)


def _release(
    params: int, gflops: float | None, top1: float | None, file: str = "", tag: str = "", **facts: Any
) -> Release:
    return Release(
        params=params,
        gflops=gflops,
        top1=top1,
        url=f"https://github.com/MzeroMiko/VMamba/releases/download/{tag}/{file}" if file else "",
        paper="2401.10166",
        first_conv="stem.conv1",
        **facts,
    )


_TINY_S1L8 = _release(30_249_064, 4.9, 82.6, "vssm1_tiny_0230s_ckpt_epoch_264.pth", "%23v2cls")
_SMALL_S2L15 = _release(50_147_752, 8.7, 83.6, "vssm_small_0229_ckpt_epoch_222.pth", "%23v2cls")
_BASE_S2L15 = _release(88_557_800, 15.4, 83.9, "vssm_base_0229_ckpt_epoch_237.pth", "%23v2cls")

default_cfgs = register_releases(
    {
        "vmamba_tiny.in1k": _TINY_S1L8,
        "vmamba_small.in1k": _SMALL_S2L15,
        "vmamba_base.in1k": _BASE_S2L15,
        "vmamba_tiny_s1l8.in1k": _TINY_S1L8,
        "vmamba_tiny_s2l5.in1k": _release(30_705_832, 4.9, 82.5, "vssm_tiny_0230_ckpt_epoch_262.pth", "%23v2cls"),
        "vmamba_small_s2l15.in1k": _SMALL_S2L15,
        "vmamba_small_s1l20.in1k": _release(49_012_840, 8.6, 83.3, "vssm1_small_0229s_ckpt_epoch_240.pth", "%23v2cls"),
        "vmamba_base_s2l15.in1k": _BASE_S2L15,
        "vmamba_base_s1l20.in1k": _release(86_614_504, 15.2, 83.8, "vssm1_base_0229s_ckpt_epoch_225.pth", "%23v2cls"),
        "vmamba_tiny_0220.in1k": _release(32_484_904, 5.0, 82.5, "vssmtiny_dp02_ckpt_epoch_258.pth", "%2320240220"),
        "vanilla_vmamba_tiny.in1k": _release(22_893_448, 5.6, 82.2, "vssmtiny_dp01_ckpt_epoch_292.pth", "%23v0cls"),
        "vanilla_vmamba_small.in1k": _release(44_417_416, 11.2, 83.5, "vssmsmall_dp03_ckpt_epoch_238.pth", "%23v0cls"),
        "vanilla_vmamba_base.in1k": _release(76_254_056, 18.0, 83.7, "vssmbase_dp06_ckpt_epoch_241.pth", "%23v0cls"),
        "vmamba_tiny_m2": _release(25_340_296, None, None, note="no weights were released"),
        "vmamba_small_m2": _release(39_079_816, None, None, note="no weights were released"),
        "vmamba_base_m2": _release(67_527_528, None, None, note="no weights were released"),
        "vmamba_nano.digits": digits_release(
            "vmamba_nano", 250_986, 99.16, paper="2401.10166", pool_size=(1, 1), first_conv="stem.conv1"
        ),
    }
)

_VANILLA = {
    "expansion": 2.0, "state": 16, "mlp_ratio": 0.0, "gate": "silu", "conv_bias": True,
    "stem": "patch", "downsample": "patch_merging",
}  # fmt: skip
_M2 = {"expansion": 1.0, "state": 64, "multihead": True, "activation": "gelu", "dt_init": "uniform"}


def _vmamba(variant: str, pretrained: bool, options: dict[str, Any], **config: Any) -> VMamba:
    return cast(VMamba, build_model(VMamba, variant, pretrained, **{**config, **options}))


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T, SSM ratio 1, 8 blocks in stage 3."""
    return _vmamba("vmamba_tiny_s1l8", pretrained, kwargs, width=96, depths=(2, 2, 8, 2), expansion=1.0)


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T, SSM ratio 2, 5 blocks in stage 3."""
    return _vmamba("vmamba_tiny_s2l5", pretrained, kwargs, width=96, depths=(2, 2, 5, 2), expansion=2.0)


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S, SSM ratio 2, 15 blocks in stage 3."""
    return _vmamba("vmamba_small_s2l15", pretrained, kwargs, width=96, depths=(2, 2, 15, 2), expansion=2.0)


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S, SSM ratio 1, 20 blocks in stage 3."""
    return _vmamba("vmamba_small_s1l20", pretrained, kwargs, width=96, depths=(2, 2, 20, 2), expansion=1.0)


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B, SSM ratio 2, 15 blocks in stage 3."""
    return _vmamba("vmamba_base_s2l15", pretrained, kwargs, width=128, depths=(2, 2, 15, 2), expansion=2.0)


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B, SSM ratio 1, 20 blocks in stage 3."""
    return _vmamba("vmamba_base_s1l20", pretrained, kwargs, width=128, depths=(2, 2, 20, 2), expansion=1.0)


@register_model
def vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T in the release that the authors recommend, s1l8."""
    return _vmamba("vmamba_tiny", pretrained, kwargs, width=96, depths=(2, 2, 8, 2), expansion=1.0)


@register_model
def vmamba_small(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S in the release that the authors recommend, s2l15."""
    return _vmamba("vmamba_small", pretrained, kwargs, width=96, depths=(2, 2, 15, 2), expansion=2.0)


@register_model
def vmamba_base(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B in the release that the authors recommend, s2l15."""
    return _vmamba("vmamba_base", pretrained, kwargs, width=128, depths=(2, 2, 15, 2), expansion=2.0)


@register_model
def vmamba_tiny_0220(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """A VMamba-T of February 2024, SSM ratio 2 with a gate, 4 blocks in stage 3."""
    return _vmamba("vmamba_tiny_0220", pretrained, kwargs, width=96, depths=(2, 2, 4, 2), expansion=2.0, gate="silu")


@register_model
def vmamba_tiny_m2(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T with Mamba-2's recurrence."""
    return _vmamba("vmamba_tiny_m2", pretrained, kwargs, width=96, depths=(2, 2, 4, 2), **_M2)


@register_model
def vmamba_small_m2(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S with Mamba-2's recurrence."""
    return _vmamba("vmamba_small_m2", pretrained, kwargs, width=96, depths=(2, 2, 12, 2), **_M2)


@register_model
def vmamba_base_m2(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B with Mamba-2's recurrence."""
    return _vmamba("vmamba_base_m2", pretrained, kwargs, width=128, depths=(2, 2, 12, 2), **_M2)


@register_model
def vmamba_nano(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """A VMamba of 4 blocks and 250k parameters for 32x32 images: for demonstrations and tests."""
    return _vmamba("vmamba_nano", pretrained, kwargs, width=16, depths=(1, 1, 1, 1), mlp_ratio=2.0)


@register_model
def vanilla_vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla VMamba-T, the first generation."""
    return _vmamba("vanilla_vmamba_tiny", pretrained, kwargs, width=96, depths=(2, 2, 9, 2), **_VANILLA)


@register_model
def vanilla_vmamba_small(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla VMamba-S, the first generation."""
    return _vmamba("vanilla_vmamba_small", pretrained, kwargs, width=96, depths=(2, 2, 27, 2), **_VANILLA)


@register_model
def vanilla_vmamba_base(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla VMamba-B, the first generation."""
    return _vmamba("vanilla_vmamba_base", pretrained, kwargs, width=128, depths=(2, 2, 27, 2), **_VANILLA)
