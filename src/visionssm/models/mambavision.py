"""MambaVision: a hybrid Mamba-Transformer vision backbone.

Paper: arXiv 2407.08083. Code: github.com/NVlabs/MambaVision, NVIDIA Source Code License-NC; nothing here is derived
from it. Weights (ImageNet-1K, some from ImageNet-21K): CC-BY-NC-SA-4.0 by the repository, NVIDIA's nvclv1 by the hub's
pages; not for commercial use.

Two levels of convolutions, then two levels of windows of tokens, where the first half of the blocks mixes tokens by a
selective scan and the second half by attention. Between levels, features are (batch, C, H, W) maps; inside the last
two, (windows, L, C) tokens.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from .._messages import choose
from ..layers.mlp import Mlp
from ..layers.norm import LayerNorm2d, update_norm
from ..layers.residual import add_to
from ..layers.selective import SelectiveScan
from ..ops import depthwise_conv, paths
from ._backbone import HierarchicalBackbone, Stage, drop_path_rates
from ._build import build_model, init_linear_layers
from ._keys import Key, KeyTable
from ._release import Release, digits_release, register_releases

Size = int | tuple[int, int]


class ConvStem(nn.Module):
    """Two 3x3 convolutions of stride 2: (batch, 3, H, W) to (batch, C, ceil(H / 4), ceil(W / 4))."""

    def __init__(self, in_chans: int, hidden: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, hidden, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden, eps=1e-4)
        self.conv2 = nn.Conv2d(hidden, width, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


class ConvBlock(nn.Module):
    """x + conv(gelu(conv(x))), each convolution with BatchNorm, on (batch, C, H, W) maps; the GELU is the tanh approximation."""

    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.norm1(self.conv1(x)), approximate="tanh")
        return x + self.drop_path(self.norm2(self.conv2(y)))


class MambaVisionMixer(nn.Module):
    """The paper's mixer: half of the channels go through a convolution and a selective scan, half through a convolution.

    One scan runs along the sequence. As published, the dt bias is added twice: in the projection and in the scan.

    Args:
        width: C.
        state: N.
        causal: convolutions look at the token and the two before it; otherwise at the token and its two neighbours.
        side_branch: "conv"; "plain", the activation without a convolution; or "none": all channels go through the scan.
        merge: "concat" branches before the output projection, or "gate": multiply them, so that the projection is half as large.
        dt_init: see :class:`visionssm.layers.SelectiveScan`; its bias is what is drawn, before it is added twice.

    Shapes: (batch, L, C) to (batch, L, C).

    Example:
        >>> MambaVisionMixer(32)(torch.randn(2, 49, 32)).shape
        torch.Size([2, 49, 32])
    """

    def __init__(
        self,
        width: int,
        state: int = 8,
        *,
        causal: bool = False,
        side_branch: str = "conv",
        merge: str = "concat",
        dt_init: str = "linear",
    ) -> None:
        super().__init__()
        self.causal = causal
        self.side_branch = choose("side_branch", side_branch, ("conv", "plain", "none"))
        self.merge = choose("merge", merge, ("concat", "gate"))
        channels = width if side_branch == "none" else width // 2
        merged = 2 * channels if side_branch != "none" and merge == "concat" else channels
        self.in_proj = nn.Linear(width, width, bias=False)
        self.conv = nn.Conv1d(channels, channels, 3, groups=channels, bias=False)
        self.side_conv = (
            nn.Conv1d(channels, channels, 3, groups=channels, bias=False) if side_branch == "conv" else None
        )
        self.scan = SelectiveScan(channels, 1, state, -(-width // 16), dt_init, dt_bias_scale=2.0)
        self.out_proj = nn.Linear(merged, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_proj(x)
        if self.side_conv is not None:
            weight = torch.cat((self.conv.weight, self.side_conv.weight))
            x, z = self._convolve(x, weight).chunk(2, dim=-1)
        elif self.side_branch == "plain":
            x, z = x.chunk(2, dim=-1)
            x, z = self._convolve(x, self.conv.weight), F.silu(z)
        else:
            x, z = self._convolve(x, self.conv.weight), None
        y = self.scan(x, paths.raster(1, x.shape[1], device=x.device)).to(x.dtype)
        if z is not None:
            y = torch.cat((y, z), dim=-1) if self.merge == "concat" else y * z
        return self.out_proj(y)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Depthwise over L, kernel 3, zero padding, then SiLU: (batch, L, C) to the same shape."""
        # As a map of one row; conv1d would transpose the tokens twice.
        weight = weight.unsqueeze(2).transpose(0, 1)
        return depthwise_conv(x.unsqueeze(1), weight, left=(2 if self.causal else 1,), activation="silu")[:, 0, :, 0]


class Attention(nn.Module):
    """Multi-head self-attention over all tokens of a window: (batch, L, C) to (batch, L, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: got {heads}, need a divisor of the level's {width} channels")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + mixer(norm(x)), then x + MLP(norm(x)), on tokens; drop path drops windows, as published."""

    def __init__(
        self, width: int, mixer: nn.Module, mlp_ratio: float, layer_scale: float | None, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.scale1 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        self.scale2 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        update = self.drop_path(_scaled(self.mixer(self.norm1(x)), self.scale1))
        y, x = update_norm(self.norm2, x, update)
        return add_to(x, self.drop_path(_scaled(self.mlp(y), self.scale2)))


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale


class WindowStage(Stage):
    """A level of token blocks; `window` is (h, w), or None for the whole map."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module, window: tuple[int, int] | None) -> None:
        super().__init__(blocks, downsample)
        self.window = window


def to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Cuts (batch, C, H, W) maps into windows of tokens, (batch * windows, h * w, C), with zeros beyond the bottom and right edges.

    Windows come image by image, in raster order, and so do the tokens in each. Where one window is the whole map and the map is in
    torch's channels_last memory format, nothing is copied.

    Example:
        >>> to_windows(torch.zeros(2, 8, 5, 7), (3, 3)).shape
        torch.Size([12, 9, 8])
    """
    h, w = window
    if x.shape[2] % h or x.shape[3] % w or torch.compiler.is_exporting():  # there, sizes are open: by zero if need be
        rows, columns = (x.shape[2] + h - 1) // h, (x.shape[3] + w - 1) // w
        x = F.pad(x, (0, columns * w - x.shape[3], 0, rows * h - x.shape[2]))
    x = x.permute(0, 2, 3, 1).unflatten(2, (-1, w)).unflatten(1, (-1, h))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2).contiguous()


def from_windows(tokens: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The inverse of :func:`to_windows`: the (batch, C, H, W) maps of that size, without the padding.

    Example:
        >>> x = torch.randn(2, 8, 5, 7)
        >>> torch.equal(from_windows(to_windows(x, (3, 3)), (3, 3), (5, 7)), x)
        True
    """
    (h, w), (H, W) = window, size
    rows, columns = (H + h - 1) // h, (W + w - 1) // w
    x = tokens.unflatten(1, (h, w)).unflatten(0, (-1, rows, columns))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, :H, :W].permute(0, 3, 1, 2)


class MambaVision(HierarchicalBackbone):
    """MambaVision in all its published forms. Any input size works, square or not; every stage rounds sizes up.

    Levels 2 and 3 work in windows that do not see each other, at a sixteenth and a thirty-second of the image size. As
    published, a map that is no multiple of the window is padded with zeros, and the padding takes part like any other
    token, so other windows give other outputs from the same weights. `window_size="map"` is the cheap form for dense
    prediction and other sizes: one window, as large as the map. It equals the published form only where that has one
    window without padding; detectors and segmenters trained with large padded windows want those.

    Args:
        in_chans, num_classes, global_pool, drop_rate: as in every timm model.
        width: channels of the first level; they double from level to level.
        stem_width: channels between the stem's convolutions.
        depths: blocks per level.
        heads: attention heads in levels 2 and 3.
        patterns: for levels 2 and 3 the kind of each block, "M" for a selective scan and "S" for self-attention, such as
            ("MMMMSSSS", "MMSS"). By default the last half is attention; of an odd number the scan has one more.
        img_size: levels 2 and 3 each have one window for an image of this size, as the released models have for theirs.
        window_size: windows of levels 2 and 3 themselves, such as (14, 7), instead of img_size; a side or (h, w) each; or "map".
            The published dense-prediction models have (112, 56) for COCO; (64, 32), and small (160, 56), for ADE20K.
        mask_padding: windows end where the map ends, so that padding has no effect, instead of the published behaviour.
        state: N.
        causal_conv, side_branch, merge: see :class:`MambaVisionMixer`.
        dt_init: "linear", what the released models started from: truncated normal 0.02, bias 0; or "mamba", which the published
            code computes too but overwrites; or others of :class:`visionssm.layers.SelectiveScan`.
        mlp_ratio: hidden width of the MLP over C.
        layer_scale: initial value of a learned factor per channel on each branch of levels 2 and 3; None for none.
        drop_path_rate: of the last block; grows linearly from 0.
        out_norms: a LayerNorm on each level's feature, as in the published dense-prediction form.
    """

    channels_last = False
    key_table = KeyTable(
        [
            Key("patch_embed.conv_down.0.*", "stem.conv1.*"),
            Key("patch_embed.conv_down.1.*", "stem.norm1.*"),
            Key("patch_embed.conv_down.3.*", "stem.conv2.*"),
            Key("patch_embed.conv_down.4.*", "stem.norm2.*"),
            Key("levels.*.blocks.*.mixer.x_proj.weight", "stages.*.blocks.*.mixer.scan.x_proj_weight", squeeze=True),
            Key("levels.*.blocks.*.mixer.dt_proj.weight", "stages.*.blocks.*.mixer.scan.dt_weight", squeeze=True),
            Key("levels.*.blocks.*.mixer.dt_proj.bias", "stages.*.blocks.*.mixer.scan.dt_bias", squeeze=True),
            Key("levels.*.blocks.*.mixer.*", "stages.*.blocks.*.mixer.scan.*", squeeze=True),
            Key("levels.*.blocks.*.mixer.conv1d_x.*", "stages.*.blocks.*.mixer.conv.*"),
            Key("levels.*.blocks.*.mixer.conv1d_z.*", "stages.*.blocks.*.mixer.side_conv.*"),
            Key("levels.*.blocks.*.gamma_1", "stages.*.blocks.*.scale1"),
            Key("levels.*.blocks.*.gamma_2", "stages.*.blocks.*.scale2"),
            Key("levels.*.blocks.**", "stages.*.blocks.**"),
            Key("levels.*.downsample.reduction.0.*", "stages.*.downsample.*"),
            *(Key(f"outnorm{i}.*", f"out_norms.{i}.*") for i in range(4)),
        ],
        # Older versions of transformers wrote "weight" for "gamma".
        aliases=[(f"levels.*.blocks.*.weight_{i}", f"levels.*.blocks.*.gamma_{i}") for i in (1, 2)],
    )

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        *,
        width: int = 80,
        stem_width: int = 32,
        depths: Sequence[int] = (1, 3, 8, 4),
        heads: Sequence[int] = (8, 16),
        patterns: Sequence[str] | None = None,
        img_size: Size = 224,
        window_size: Sequence[Size] | str | None = None,
        mask_padding: bool = False,
        state: int = 8,
        causal_conv: bool = False,
        side_branch: str = "conv",
        merge: str = "concat",
        dt_init: str = "linear",
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
        out_norms: bool = False,
    ) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(4)]
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.mask_padding = mask_padding

        def token_block(kind: str, width: int, heads: int) -> Block:
            mixer: nn.Module = Attention(width, heads)
            if kind == "M":
                mixer = MambaVisionMixer(
                    width, state, causal=causal_conv, side_branch=side_branch, merge=merge, dt_init=dt_init
                )
            return Block(width, mixer, mlp_ratio, layer_scale, next(rates))

        def downsample(level: int) -> nn.Module:
            if level == 3:
                return nn.Identity()
            return nn.Conv2d(widths[level], 2 * widths[level], 3, stride=2, padding=1, bias=False)

        self.stem = ConvStem(in_chans, stem_width, width)
        self.stages = nn.ModuleList()
        for i in (0, 1):
            self.stages.append(Stage([ConvBlock(widths[i], next(rates)) for _ in range(depths[i])], downsample(i)))
        windows = _windows(img_size, window_size)
        for i, pattern in zip((2, 3), _patterns(depths[2:], patterns), strict=True):
            blocks: list[nn.Module] = [token_block(kind, widths[i], heads[i - 2]) for kind in pattern]
            self.stages.append(WindowStage(blocks, downsample(i), windows[i - 2]))
        self.norm = nn.BatchNorm2d(widths[3])
        self.out_norms = nn.ModuleList(LayerNorm2d(w) for w in widths) if out_norms else None
        self.feature_info = [
            {"num_chs": w, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, w in enumerate(widths)
        ]
        self.init_head(widths[3], num_classes, global_pool, drop_rate)
        init_linear_layers(self)
        for module in self.modules():
            if isinstance(module, MambaVisionMixer):
                nn.init.trunc_normal_(module.scan.x_proj_weight, std=0.02)

    def set_input_size(self, img_size: Size | None = None, window_size: Sequence[Size] | str | None = None) -> None:
        """Other windows for the same weights: those of the constructor's `img_size` or `window_size`.

        Any image runs through any windows; this chooses which tokens see each other.
        """
        if img_size is None and window_size is None:
            raise ValueError("set_input_size: need img_size or window_size")
        windows = _windows(img_size or 224, window_size)
        for stage, window in zip((s for s in self.stages if isinstance(s, WindowStage)), windows, strict=False):
            stage.window = window

    def run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        if not isinstance(stage, WindowStage):
            return super().run_stage(stage, x)
        H, W = x.shape[2:]
        h, w = window = stage.window or (H, W)
        if not self.mask_padding:
            return self._run_windows(stage, x, window)
        # Whole windows, and those that the edges cut: each kind has a size of its own.
        bands = [
            torch.cat(
                [
                    self._run_windows(stage, part, (min(h, part.shape[2]), min(w, part.shape[3])))
                    for part in band.split(_whole_and_rest(W, w), dim=3)
                ],
                dim=3,
            )
            for band in x.split(_whole_and_rest(H, h), dim=2)
        ]
        return torch.cat(bands, dim=2)

    def _run_windows(self, stage: Stage, x: Tensor, window: tuple[int, int]) -> Tensor:
        tokens = self._run_blocks(stage.blocks, to_windows(x, window))
        return from_windows(tokens, window, (x.shape[2], x.shape[3]))


def _whole_and_rest(size: int, side: int) -> list[int]:
    """What whole windows cover of a map's side, and what they leave."""
    return [part for part in (size - size % side, size % side) if part]


def _windows(img_size: Size, window_size: Sequence[Size] | str | None) -> list[tuple[int, int] | None]:
    """(h, w) for levels 2 and 3; None for the whole map."""
    if isinstance(window_size, str):
        choose("window_size", window_size, ("map",))
        return [None, None]
    if window_size is None:
        H, W = _pair("img_size", img_size)
        return [(-(-H // stride), -(-W // stride)) for stride in (16, 32)]
    if len(window_size) != 2:
        raise ValueError(f"window_size: got {window_size!r}, need a window for each of levels 2 and 3, or 'map'")
    return [_pair("window_size", size) for size in window_size]


def _pair(option: str, size: Size) -> tuple[int, int]:
    H, W = (size, size) if isinstance(size, int) else size
    if min(H, W) < 1:
        raise ValueError(f"{option}: got {size!r}, need sides of at least 1")
    return H, W


def _patterns(depths: Sequence[int], patterns: Sequence[str] | None) -> Sequence[str]:
    """The kinds of the blocks of levels 2 and 3."""
    if patterns is None:
        return ["M" * (depth - depth // 2) + "S" * (depth // 2) for depth in depths]
    lengths = [len(pattern) for pattern in patterns]
    if isinstance(patterns, str) or lengths != list(depths) or set("".join(patterns)) - set("MS"):
        raise ValueError(
            f"patterns: got {patterns!r}, need a string of M and S for each of levels 2 and 3, {tuple(depths)} long"
        )
    return patterns


def _release(name: str, params: int, gflops: float, top1: float, top5: float, size: int = 224, **facts: Any) -> Release:
    return Release(
        params=params,
        gflops=gflops,
        top1=top1,
        top5=top5,
        hf_hub_id=f"nvidia/MambaVision-{name}",
        hf_hub_filename="model.safetensors",
        prefer=("state_dict",),
        weights_license="CC-BY-NC-SA-4.0 by the repository, NVIDIA's nvclv1 by the hub's page",
        commercial=False,
        paper="2407.08083",
        input_size=(3, size, size),
        pool_size=(size // 32, size // 32),
        first_conv="stem.conv1",
        **{"crop_pct": 1.0, **facts},
    )


default_cfgs = register_releases(
    {
        "mambavision_tiny.in1k": _release("T-1K", 31_794_248, 4.4, 82.3, 96.2),
        "mambavision_tiny2.in1k": _release("T2-1K", 35_104_008, 5.1, 82.7, 96.3, crop_pct=0.98),
        "mambavision_small.in1k": _release("S-1K", 50_140_584, 7.5, 83.3, 96.5, crop_pct=0.93),
        "mambavision_base.in1k": _release("B-1K", 97_685_288, 15.0, 84.2, 96.9),
        "mambavision_base.in21k_ft_in1k": _release("B-21K", 97_685_288, 15.0, 84.9, 97.5),
        "mambavision_large.in1k": _release("L-1K", 227_961_048, 34.9, 85.0, 97.1),
        "mambavision_large.in21k_ft_in1k": _release("L-21K", 227_961_048, 34.9, 86.1, 97.9),
        "mambavision_large2.in1k": _release("L2-1K", 241_554_824, 37.5, 85.3, 97.2),
        "mambavision_large2_512.in21k_ft_in1k": _release(
            "L2-512-21K", 241_554_824, 196.3, 87.3, 98.4, 512, crop_pct=0.93, crop_mode="squash"
        ),
        "mambavision_large3_256.in21k_ft_in1k": _release("L3-256-21K", 739_570_472, 122.3, 87.3, 98.3, 256),
        "mambavision_large3_512.in21k_ft_in1k": _release(
            "L3-512-21K", 739_570_472, 489.1, 88.1, 98.6, 512, crop_pct=0.93, crop_mode="squash"
        ),
        "mambavision_nano.digits": digits_release(
            "mambavision_nano", 231_954, 97.49, pool_size=(1, 1), first_conv="stem.conv1"
        ),
    }
)

_LARGE = {"width": 196, "stem_width": 64, "heads": (16, 32), "layer_scale": 1e-5}
_LARGE3 = {**_LARGE, "width": 256, "depths": (3, 3, 20, 10)}


def _mambavision(variant: str, pretrained: bool, options: dict[str, Any], **config: Any) -> MambaVision:
    return cast(MambaVision, build_model(MambaVision, variant, pretrained, **{**config, **options}))


@register_model
def mambavision_tiny(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-T."""
    return _mambavision("mambavision_tiny", pretrained, kwargs, width=80, stem_width=32, depths=(1, 3, 8, 4))


@register_model
def mambavision_tiny2(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-T2: T with three more blocks in level 2."""
    return _mambavision("mambavision_tiny2", pretrained, kwargs, width=80, stem_width=32, depths=(1, 3, 11, 4))


@register_model
def mambavision_small(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-S."""
    return _mambavision("mambavision_small", pretrained, kwargs, width=96, stem_width=64, depths=(3, 3, 7, 5))


@register_model
def mambavision_base(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-B; the tag `in21k_ft_in1k` has weights from ImageNet-21K."""
    config = {"width": 128, "stem_width": 64, "depths": (3, 3, 10, 5), "layer_scale": 1e-5}
    return _mambavision("mambavision_base", pretrained, kwargs, **config)


@register_model
def mambavision_large(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L; the tag `in21k_ft_in1k` has weights from ImageNet-21K."""
    return _mambavision("mambavision_large", pretrained, kwargs, depths=(3, 3, 10, 5), **_LARGE)


@register_model
def mambavision_large2(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L2: L with two more blocks in level 2."""
    return _mambavision("mambavision_large2", pretrained, kwargs, depths=(3, 3, 12, 5), **_LARGE)


@register_model
def mambavision_large2_512(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L2 for 512x512 images, from ImageNet-21K."""
    return _mambavision("mambavision_large2_512", pretrained, kwargs, img_size=512, depths=(3, 3, 12, 5), **_LARGE)


@register_model
def mambavision_large3_256(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L3 for 256x256 images, from ImageNet-21K."""
    return _mambavision("mambavision_large3_256", pretrained, kwargs, img_size=256, **_LARGE3)


@register_model
def mambavision_large3_512(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L3 for 512x512 images, from ImageNet-21K."""
    return _mambavision("mambavision_large3_512", pretrained, kwargs, img_size=512, **_LARGE3)


@register_model
def mambavision_nano(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """A MambaVision of 7 blocks for 32x32 images: for demonstrations and tests."""
    config = {"width": 12, "stem_width": 16, "depths": (2, 2, 2, 1), "heads": (2, 4), "img_size": 32}
    return _mambavision("mambavision_nano", pretrained, kwargs, **config)
