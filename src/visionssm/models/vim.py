"""Vim: Vision Mamba, a plain backbone of bidirectional Mamba blocks.

Paper: arXiv 2401.09417. Code: github.com/hustvl/Vim, Apache 2.0. Weights: ImageNet-1K; their pages say Apache 2.0 in
one place and "non-commercial" in another.

A 16x16 convolution of stride 16 (8 in the "plus" models) makes tokens, a class token goes in the middle of them, and 24
blocks of one width follow. Inside a block tokens are (batch, L, C); the inner width E is 2 C.
"""

from typing import Any, cast

from timm.models import register_model
from torch import nn

from .._messages import choose
from ..layers.vim_mixer import VimMixer
from ._backbone import drop_path_rates
from ._build import build_model
from ._keys import Key, KeyTable
from ._plain import PlainBackbone, TwoStreamBlock, evenly_spaced, init_plain
from ._release import Release, digits_release, register_releases

INITS = ("released", "legacy")


class Vim(PlainBackbone):
    """Vim in all its published forms, and the directions and class tokens that its paper compares.

    Args:
        in_chans, num_classes, global_pool, drop_rate: see :class:`PlainBackbone`.
        width: C.
        depth: number of blocks.
        expansion, state, dt_rank, taps, directions, halve, layer_scale: see :class:`VimMixer`.
        drop_path_rate: of the last block; grows linearly from 0.
        init: "released", or "legacy", how the first published model started: every linear layer truncated normal, dt
            bias 0, class token 0.
        plain: `img_size`, `patch_size`, `stride`, `rotary`, `pos_resize`, `paired_blocks`, `feature` and the other
            options of :class:`PlainBackbone`.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        drop_rate: float = 0.0,
        *,
        width: int = 192,
        depth: int = 24,
        expansion: float = 2.0,
        state: int = 16,
        dt_rank: int | None = None,
        taps: int = 4,
        directions: str = "bidirectional",
        halve: bool = True,
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
        init: str = "released",
        class_token: str = "middle",
        **plain: Any,
    ) -> None:
        legacy = choose("init", init, INITS) == "legacy"
        mixers = [
            VimMixer(
                width,
                expansion=expansion,
                state=state,
                dt_rank=dt_rank,
                taps=taps,
                directions=directions,
                halve=halve,
                layer_scale=layer_scale,
                dt_init="linear" if legacy else "mamba",
            )
            for _ in range(depth)
        ]
        rates = drop_path_rates(drop_path_rate, depth)
        blocks = [TwoStreamBlock(width, mixer, rate) for mixer, rate in zip(mixers, rates, strict=True)]
        super().__init__(
            blocks, in_chans, num_classes, global_pool, drop_rate, width=width, class_token=class_token, **plain
        )
        self.key_table = _key_table(directions)
        init_plain(self, legacy=legacy)
        if legacy:
            for mixer in mixers:
                nn.init.trunc_normal_(mixer.scan.x_proj_weight, std=0.02)


def _key_table(directions: str) -> KeyTable:
    """Published tensors of the two directions are one tensor each of ours; the backward ones are marked with a `b`."""
    separate = directions == "bidirectional"

    def stacked(forward: str, backward: str, ours: str, both: bool = separate) -> Key:
        published = (f"layers.*.mixer.{forward}", f"layers.*.mixer.{backward}")
        return Key(published if both else published[:1], f"blocks.*.mixer.{ours}")

    return KeyTable(
        [
            stacked("conv1d.weight", "conv1d_b.weight", "conv.weight"),
            stacked("conv1d.bias", "conv1d_b.bias", "conv.bias"),
            stacked("x_proj.weight", "x_proj_b.weight", "scan.x_proj_weight"),
            stacked("dt_proj.weight", "dt_proj_b.weight", "scan.dt_weight"),
            stacked("dt_proj.bias", "dt_proj_b.bias", "scan.dt_bias"),
            stacked("A_log", "A_b_log", "scan.A_log", both=directions != "forward"),
            stacked("D", "D_b", "scan.D"),
            Key("layers.*.**", "blocks.*.**"),
            Key("patch_embed.**", "stem.**"),
            Key("norm_f.weight", "norm.weight"),
        ]
    )


def _release(
    params: int, top1: float | None, top5: float | None, repo: str, file: str, grid: int, **facts: Any
) -> Release:
    return Release(
        params=params,
        top1=top1,
        top5=top5,
        hf_hub_id=repo and f"hustvl/{repo}",
        hf_hub_filename=file,
        weights_license="unclear: apache-2.0 in the metadata, non-commercial in the model card",
        paper="2401.09417",
        pool_size=(grid, grid),
        first_conv="stem.proj",
        **facts,
    )


default_cfgs = register_releases(
    {
        "vim_tiny.in1k": _release(7_148_008, 76.1, 93.0, "Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth", 14),
        "vim_tiny_plus.in1k": _release(
            7_250_344, 78.3, 94.2, "Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth", 27
        ),
        "vim_small.in1k": _release(25_796_584, 80.5, 95.1, "Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth", 14),
        "vim_small_plus.in1k": _release(
            26_001_256, 81.6, 95.4, "Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth", 27
        ),
        "vim_base.in1k": _release(97_598_440, 81.9, 95.8, "Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth", 14),
        "vim_base_plus": _release(
            98_007_784, 83.2, None, "", "", 27, note="reported in the paper; no weights were released"
        ),
        "vim_tiny_legacy.in1k": _release(7_148_008, 73.1, 91.1, "Vim-tiny", "vim_tiny_73p1.pth", 14),
        "vim_nano.digits": digits_release("vim_nano", 177_290, 98.05, pool_size=(4, 4), first_conv="stem.proj"),
    }
)


def _vim(variant: str, pretrained: bool, options: dict[str, Any], **config: Any) -> Vim:
    if options.get("class_token") == "none":
        # The published weights have one all the same, and its position embedding has to be found.
        options = {"weights_class_token": config.get("class_token", "middle"), **options}
    config = {**config, **options}
    indices = evenly_spaced(config.get("depth", 24) // (1 + config.get("paired_blocks", False)))
    return cast(Vim, build_model(Vim, variant, pretrained, feature_indices=indices, **config))


@register_model
def vim_tiny(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti: 192 channels."""
    return _vim("vim_tiny", pretrained, kwargs, width=192)


@register_model
def vim_tiny_plus(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti with overlapping patches, fine-tuned from the former."""
    return _vim("vim_tiny_plus", pretrained, kwargs, width=192, stride=8)


@register_model
def vim_small(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S: 384 channels."""
    return _vim("vim_small", pretrained, kwargs, width=384)


@register_model
def vim_small_plus(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S with overlapping patches, fine-tuned from the former."""
    return _vim("vim_small_plus", pretrained, kwargs, width=384, stride=8)


@register_model
def vim_base(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-B: 768 channels."""
    return _vim("vim_base", pretrained, kwargs, width=768)


@register_model
def vim_base_plus(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-B with overlapping patches; its weights were never released."""
    return _vim("vim_base_plus", pretrained, kwargs, width=768, stride=8)


@register_model
def vim_tiny_legacy(pretrained: bool = False, **kwargs: Any) -> Vim:
    """The first published Vim-Ti: class token in front, rotary embedding of both streams, directions summed."""
    return _vim(
        "vim_tiny_legacy",
        pretrained,
        kwargs,
        width=192,
        class_token="first",
        rotary="hidden_and_residual",
        halve=False,
    )


@register_model
def vim_nano(pretrained: bool = False, **kwargs: Any) -> Vim:
    """A Vim of 4 blocks for 32x32 images: for demonstrations and tests."""
    return _vim("vim_nano", pretrained, kwargs, width=64, depth=4, img_size=32, patch_size=8, stride=8)
