"""The base of plain models, Vim and LocalVim: patches become tokens, all blocks work at one resolution.

Tokens are (batch, L, C): M = H * W patches in raster order, and possibly class tokens at fixed places among them.
Blocks carry two streams: `hidden`, what the last mixer gave, and `residual`, the sum of all before it. Both together
are the stream of an ordinary residual network, whose addition is only postponed to the next block.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, lecun_normal_
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from .._messages import choose
from ..layers.norm import RMSNorm, add_norm
from ..layers.rotary import Rotary2d, rotate_pairs
from ..layers.tokens import (
    CLASS_TOKENS,
    POS_RESIZES,
    Grid,
    class_positions,
    insert_rows,
    remove_rows,
    resize_pos_embed,
    same_grid,
    take_rows,
)
from ..ops.scratch import reused_memory
from ._backbone import Backbone
from ._build import init_linear_layers

_log = logging.getLogger(__name__)

Rotation = tuple[Tensor, Tensor]
ROTARY = ("none", "hidden", "hidden_and_residual")
FEATURES = ("stream", "mixer", "rotated_stream")


class PatchEmbed(nn.Module):
    """One convolution: (batch, in_chans, H, W) to (batch, width, rows, columns).

    rows = (H - patch_size) // stride + 1: what is left at the bottom and the right is ignored. With `pad` the image is
    first filled up with zeros there to a multiple of the stride.
    """

    def __init__(self, in_chans: int, width: int, patch_size: int, stride: int, pad: bool = False) -> None:
        super().__init__()
        self.patch_size, self.stride, self.pad = patch_size, stride, pad
        self.proj = nn.Conv2d(in_chans, width, patch_size, stride=stride)

    def grid(self, H: int, W: int) -> Grid:
        """Rows and columns of patches of an H x W image."""
        if self.pad:
            H, W = H + -H % self.stride, W + -W % self.stride
        return (H - self.patch_size) // self.stride + 1, (W - self.patch_size) // self.stride + 1

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[2:]
        if self.pad:
            x = F.pad(x, (0, -W % self.stride, 0, -H % self.stride))
        elif min(H, W) < self.patch_size:
            raise ValueError(f"image: got {H} x {W}, need at least {self.patch_size} x {self.patch_size}, one patch")
        return self.proj(x)


class TwoStreamBlock(nn.Module):
    """residual + hidden, RMSNorm, mixer: the mixer's output is the new hidden stream, the sum the new residual one.

    Args:
        width: C.
        mixer: module called as `mixer(tokens, grid)`; one that works on plain sequences ignores the grid.
        drop_path: probability of dropping this block's output, per image.
    """

    def __init__(self, width: int, mixer: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = RMSNorm(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, hidden: Tensor, residual: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor]:
        """Both streams (batch, L, C); the residual is None before the first block, and float32 or wider after it."""
        tokens, residual = add_norm(self.norm, hidden, residual)
        return self.drop_path(self.mixer(tokens, grid)), residual


class PlainBackbone(Backbone):
    """Patches, class tokens, position embedding, blocks, norm. Any image of at least one patch works.

    The position embedding belongs to the grid of `img_size` and is resized on the fly for images of other sizes.

    Args:
        blocks: :class:`TwoStreamBlock`, or modules called alike, of the same `width`.
        in_chans, num_classes, drop_rate: as in every timm model.
        global_pool: "token", "avg" or "max" of the patches, "last", or ""; by default "token" where there is one, else
            "avg".
        width: C.
        img_size: (H, W), or the side of a square, that the position embedding is made for.
        patch_size, stride: of the patch embedding.
        pad_images: fill images up to a multiple of the stride instead of ignoring what is left over.
        class_token: "none", "first", "middle" (before patch M // 2), "last", or "double": first and last, whose outputs
            are averaged.
        weights_class_token: where the weights that will be loaded have theirs, if not in the same place.
        pos_embed: learned position embedding, added to all tokens.
        pos_resize: "aligned" resizes the patches' embedding and leaves the class tokens' alone. "published" is what the
            authors' code does, for reproducing their fine-tuning: it takes the first row for the class token's wherever
            that is, so with a token in the middle half of the map is off by one patch.
        pos_drop_rate: dropout after the position embedding.
        rotary: "none", "hidden" or "hidden_and_residual": the streams that are rotated before every block, so that
            rotations add up. Class tokens are not rotated.
        rotary_resize: see :class:`visionssm.layers.rotary.Rotary2d`.
        paired_blocks: blocks 2 i and 2 i + 1 read the same streams, the second one backwards, and both are summed.
        feature: what `forward_intermediates` gives. "stream": hidden + residual after a block. "mixer": hidden alone.
            "rotated_stream": the stream as the next block reads it, that is after its rotation.
    """

    pools = ("", "token", "avg", "max", "last")
    blocks: nn.ModuleList
    stem: PatchEmbed

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        drop_rate: float = 0.0,
        *,
        width: int,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int = 16,
        pad_images: bool = False,
        class_token: str = "none",
        weights_class_token: str | None = None,
        pos_embed: bool = True,
        pos_resize: str = "aligned",
        pos_drop_rate: float = 0.0,
        rotary: str = "none",
        rotary_resize: str = "positions",
        paired_blocks: bool = False,
        feature: str = "stream",
    ) -> None:
        super().__init__()
        if paired_blocks and len(blocks) % 2:
            raise ValueError(f"paired_blocks: got {len(blocks)} blocks, need an even number")
        self.class_token = _named("class_token", class_token, CLASS_TOKENS)
        self.weights_class_token = _named("weights_class_token", weights_class_token or class_token, CLASS_TOKENS)
        self.pos_resize = choose("pos_resize", pos_resize, POS_RESIZES)
        self.feature = choose("feature", feature, FEATURES)
        self.paired_blocks = paired_blocks
        self.stem = PatchEmbed(in_chans, width, patch_size, stride, pad_images)
        self.grid = self.stem.grid(*_pair(img_size))
        for name in _class_token_names(class_token):
            self.register_parameter(name, nn.Parameter(torch.zeros(1, 1, width)))
        tokens = math.prod(self.grid) + CLASS_TOKENS[class_token]
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width)) if pos_embed else None
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.rotary = Rotary2d(width, resize=rotary_resize) if choose("rotary", rotary, ROTARY) != "none" else None
        self.rotate_residual = rotary == "hidden_and_residual"
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(width)
        self.feature_info = [
            {"num_chs": width, "reduction": stride, "module": f"blocks.{i}"}
            for i in range(paired_blocks, len(blocks), 1 + paired_blocks)
        ]
        self.init_head(width, num_classes, self._pool_name(global_pool), drop_rate)

    def _pool_name(self, global_pool: str | None) -> str:
        if global_pool is None:
            return "avg" if self.class_token == "none" else "token"
        if global_pool == "token" and self.class_token == "none":
            raise ValueError(
                "global_pool: got 'token', but the model has no class token; choose 'avg', 'max' or 'last'"
            )
        return global_pool

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, None if global_pool is None else self._pool_name(global_pool))

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Makes the model's own the grid of another image size: resizes the position embedding once and for all."""
        grid = self.stem.grid(*_pair(img_size))
        if self.pos_embed is not None:
            self.pos_embed = nn.Parameter(self._resized_pos_embed(self.pos_embed.detach(), grid))
        self.grid = grid

    def _class_positions(self, tokens: int) -> tuple[int, ...]:
        """Indices of the class tokens among all tokens."""
        return class_positions(self.class_token, tokens - CLASS_TOKENS[self.class_token])

    def _resized_pos_embed(self, pos_embed: Tensor, grid: Grid) -> Tensor:
        return resize_pos_embed(pos_embed, self.grid, grid, self.class_token, self.pos_resize)

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Tokens (batch, L, C) with class tokens and position embedding, and the grid of patches."""
        maps = self.stem(x.contiguous(memory_format=torch.channels_last))
        grid = (maps.shape[2], maps.shape[3])
        tokens = maps.flatten(2).transpose(1, 2)
        if self.class_token != "none":
            rows = torch.cat([getattr(self, name) for name in _class_token_names(self.class_token)], dim=1)
            rows = rows.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
            tokens = insert_rows(tokens, rows, class_positions(self.class_token, tokens.shape[1]))
        if self.pos_embed is not None:
            same = same_grid(grid, self.grid)
            tokens = tokens + (self.pos_embed if same else self._resized_pos_embed(self.pos_embed, grid))
        return self.pos_drop(tokens).contiguous(), grid

    def _rotation(self, tokens: Tensor, grid: Grid) -> Rotation | None:
        """Cosines and sines (L, C), identity on class tokens."""
        if self.rotary is None:
            return None
        positions = class_positions(self.class_token, grid[0] * grid[1])
        cos, sin = self.rotary.tables(grid, self.grid, _exact(tokens), tokens.device)
        still = cos.new_ones(1, len(positions), cos.shape[1])
        return insert_rows(cos[None], still, positions)[0], insert_rows(sin[None], 0 * still, positions)[0]

    def _rotated(
        self, hidden: Tensor, residual: Tensor | None, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor | None]:
        if rotation is None:
            return hidden, residual
        if residual is not None and self.rotate_residual:
            residual = rotate_pairs(residual, *rotation)
        return rotate_pairs(hidden, *rotation), residual

    def _run_block(self, index: int, hidden: Tensor, residual: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor]:
        block = self.blocks[index]
        if self.grad_checkpointing and self.training and not torch.jit.is_scripting():
            return checkpoint(block, hidden, residual, grid)
        return block(hidden, residual, grid)

    def _run_step(self, index: int, hidden: Tensor, residual: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor]:
        """Block `index`, or pair of blocks `index`."""
        if not self.paired_blocks:
            return self._run_block(index, hidden, residual, grid)
        there = self._run_block(2 * index, hidden, residual, grid)
        reversed_residual = None if residual is None else residual.flip(1)
        back = self._run_block(2 * index + 1, hidden.flip(1), reversed_residual, grid)
        return there[0] + back[0].flip(1), there[1] + back[1].flip(1)

    def _steps(self) -> int:
        return len(self.blocks) // (1 + self.paired_blocks)

    def run_blocks(
        self, tokens: Tensor, grid: Grid, take: Sequence[int] = (), steps: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The stream after the last block, not normalised, and the features of the blocks in `take`: (batch, L, C)."""
        hidden, residual = tokens, None
        rotation = self._rotation(tokens, grid)
        features = []
        with reused_memory():
            for index in range(self._steps() if steps is None else steps):
                hidden, residual = self._rotated(hidden, residual, rotation)
                hidden, residual = self._run_step(index, hidden, residual, grid)
                if index in take:
                    features.append(self._feature(index, hidden, residual, rotation))
        return hidden if residual is None else residual + hidden, features

    def _feature(self, index: int, hidden: Tensor, residual: Tensor, rotation: Rotation | None) -> Tensor:
        if self.feature == "mixer":
            return hidden
        if self.feature == "rotated_stream" and rotation is not None and index < len(self.feature_info) - 1:
            hidden = rotate_pairs(hidden, *rotation)
            residual = rotate_pairs(residual, *rotation) if self.rotate_residual else residual
        return residual + hidden

    def forward_features(self, x: Tensor) -> Tensor:
        """All tokens, class tokens included, after the final norm: (batch, L, C)."""
        tokens, grid = self.embed(x)
        stream, _ = self.run_blocks(tokens, grid)
        return self.norm(stream).to(tokens.dtype)

    def pool(self, x: Tensor) -> Tensor:
        """(batch, C) from all tokens."""
        positions = self._class_positions(x.shape[1])
        if self.global_pool == "token":
            return take_rows(x, positions).mean(1)
        if self.global_pool == "last":
            return x[:, -1]
        patches = remove_rows(x, positions)
        return patches.amax(1) if self.global_pool == "max" else patches.mean(1)

    def _arrange(self, tokens: Tensor, grid: Grid, output_fmt: str) -> Tensor:
        """The patches among all tokens in the format asked for."""
        patches = remove_rows(tokens, self._class_positions(tokens.shape[1]))
        if output_fmt == "NLC":
            return patches
        maps = patches.unflatten(1, grid)
        return maps if output_fmt == "NHWC" else maps.permute(0, 3, 1, 2)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Features after blocks; which ones they are follows from the model's `feature`.

        Args:
            x: (batch, channels, H, W) images.
            indices: which blocks (pairs of them in a model with `paired_blocks`); the last n for an int, all for None.
            return_prefix_tokens: return pairs of (patches, class tokens), the class tokens as (batch, number, C).
            norm: apply the final norm to every feature.
            stop_early: do not run blocks after the last asked for.
            output_fmt: "NCHW", "NHWC", or "NLC" for patches as (batch, M, C).
            intermediates_only: return the list alone.

        Returns:
            The list, or (all tokens after the last block that ran and the norm, list).
        """
        if output_fmt not in ("NCHW", "NHWC", "NLC"):
            raise ValueError(f"output_fmt: got {output_fmt!r}, need 'NCHW', 'NHWC' or 'NLC'")
        take, last = feature_take_indices(self._steps(), indices)
        tokens, grid = self.embed(x)
        stream, features = self.run_blocks(tokens, grid, take, last + 1 if stop_early else None)
        if norm:
            features = [self.norm(feature) for feature in features]
        positions = self._class_positions(tokens.shape[1])
        outputs: list[Any] = []
        for feature in features:
            feature = feature.to(tokens.dtype)
            patches = self._arrange(feature, grid, output_fmt)
            outputs.append((patches, take_rows(feature, positions)) if return_prefix_tokens else patches)
        if intermediates_only:
            return outputs
        return self.norm(stream).to(tokens.dtype), outputs

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the blocks after the last asked for, and the norm and head if wanted; returns the indices kept."""
        take, last = feature_take_indices(self._steps(), indices)
        self.blocks = self.blocks[: (last + 1) * (1 + self.paired_blocks)]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer decay: patch, class and position embeddings, every block, and the head."""
        return {
            "stem": r"^stem|^pos_embed|^cls_token",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def prepare_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fits a file's position embedding to this model's grid and class token, and leaves derived rotary tables out."""
        if self.rotary is not None:
            state = {name: value for name, value in state.items() if name not in ("rope.freqs_cos", "rope.freqs_sin")}
        held = [name for name in ("cls_token", "cls_token_head", "cls_token_tail") if name in state]
        place = self.weights_class_token if held else "none"
        if held and self.class_token == "none":
            _log.warning(f"the class token of the weights ({', '.join(held)}) is left out: the model has none")
            state = {name: value for name, value in state.items() if name not in held}
        rows = state.get("pos_embed")
        if rows is None or self.pos_embed is None or len(held) != CLASS_TOKENS[place]:
            return state
        patches = rows.shape[1] - len(held)
        if place != self.class_token or patches != math.prod(self.grid):
            grid = self.grid if patches == math.prod(self.grid) else _square(patches)
            state["pos_embed"] = resize_pos_embed(rows, grid, self.grid, place, self.pos_resize, self.class_token)
        return state


@torch.no_grad()
def init_plain(model: PlainBackbone, *, legacy: bool = False) -> None:
    """Starting values that Vim and LocalVim share.

    `out_proj` starts smaller the deeper the model is, so that the sum of all blocks does not grow.

    Args:
        model: with mixers that have drawn their own values already.
        legacy: draw every linear layer anew, truncated normal with zero bias, and leave class tokens at zero, as the
            first published code did.
    """
    if legacy:
        init_linear_layers(model)
    for name, module in model.named_modules():
        if name.endswith("mixer.out_proj"):
            assert isinstance(module, nn.Linear)
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            module.weight /= math.sqrt(len(model.blocks))
    lecun_normal_(model.stem.proj.weight)
    assert model.stem.proj.bias is not None
    nn.init.zeros_(model.stem.proj.bias)
    if isinstance(model.head, nn.Linear):
        nn.init.trunc_normal_(model.head.weight, std=0.02)
        nn.init.zeros_(model.head.bias)
    for name, parameter in model.named_parameters():
        if name == "pos_embed" or (name.startswith("cls_token") and not legacy):
            nn.init.trunc_normal_(parameter, std=0.02)


def evenly_spaced(depth: int) -> tuple[int, ...]:
    """The four blocks whose features dense heads take by default: after each quarter of the depth.

    Example:
        >>> evenly_spaced(24)
        (5, 11, 17, 23)
    """
    return tuple(depth * quarter // 4 - 1 for quarter in range(1, 5))


def _class_token_names(class_token: str) -> tuple[str, ...]:
    return (("cls_token_head", "cls_token_tail") if class_token == "double" else ("cls_token",))[
        : CLASS_TOKENS[class_token]
    ]


def _named(option: str, given: str, choices: Any) -> str:
    choose(option, given, choices)
    return given


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _exact(x: Tensor) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def _square(patches: int) -> Grid:
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(
            f"pos_embed: the weights have {patches} patches, which is neither this model's grid nor a square one; build "
            "the model with the img_size of the weights, load them, and call set_input_size"
        )
    return side, side
