"""The contract of a timm model, once for all families.

A family provides `stem`, `stages` and a final `norm`, and the number of its classes; everything that timm's users call
on a model is here. Features are (batch, C, H, W) maps; inside, a family keeps whatever layout suits it and says so in
`channels_last`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from ._keys import KeyTable


class Backbone(nn.Module):
    """Classifier head and bookkeeping that hierarchical and plain models share."""

    key_table: KeyTable
    num_classes: int
    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]
    grad_checkpointing: bool = False
    pools: tuple[str, ...] = ("", "avg")  # what `global_pool` may be
    stem: nn.Module
    norm: nn.Module
    head: nn.Module

    def init_head(self, num_features: int, num_classes: int, global_pool: str, drop_rate: float = 0.0) -> None:
        """Builds `head_drop` and `head`; called once by a family's constructor."""
        self._check_pool(global_pool)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = num_features
        self.global_pool = global_pool
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(num_features, num_classes) if num_classes > 0 else nn.Identity()

    def _check_pool(self, global_pool: str) -> None:
        if global_pool not in self.pools:
            choices = ", ".join(repr(pool) for pool in self.pools if pool)
            raise ValueError(f"global_pool: got {global_pool!r}, choose from {choices}, or '' for none")

    def forward_features(self, x: Tensor) -> Tensor:
        """The normalised last features, before pooling."""
        raise NotImplementedError

    def pool(self, x: Tensor) -> Tensor:
        """(batch, C) from what forward_features returns; by default the mean over a (batch, C, H, W) map."""
        return x.mean((2, 3))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools and classifies what forward_features returns; with `pre_logits` only pools."""
        if self.global_pool:
            x = self.pool(x)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classification layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classification layer; 0 classes for none, `global_pool=""` for no pooling."""
        if global_pool is not None:
            self._check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        device = next(self.parameters()).device
        self.head = nn.Linear(self.num_features, num_classes, device=device) if num_classes > 0 else nn.Identity()
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in backward instead of keeping what it computed: less memory, about a third more
        time.
        """
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Tensors to keep out of weight decay: those of the recurrence, and position and class tokens.

        The published training scripts decay A and the dt bias by oversight; pass your own list to do the same.
        """
        kept = ("A_log", "D", "dt_bias", "pos_embed", "cls_token", "cls_token_head", "cls_token_tail")
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in kept}

    def _run_blocks(self, blocks: nn.Module, x: Tensor) -> Tensor:
        if not self.grad_checkpointing or torch.jit.is_scripting() or not self.training:
            return blocks(x)
        for block in blocks.children():
            x = checkpoint(block, x)
        return x


class HierarchicalBackbone(Backbone):
    """`stem`, then `stages`, each with `blocks` and a `downsample` that is the identity at the end, then `norm`.

    Stage i's feature is the output of its blocks, before its downsample.
    """

    stages: Any  # nn.ModuleList of modules with `blocks` and `downsample`
    features_are_normed: bool = False  # whether each feature, the last one too, has passed a norm of its stage
    channels_last: bool = True  # the layout between stages: (batch, H, W, C), or (batch, C, H, W)
    out_norms: (
        nn.ModuleList | None
    )  # one more norm per stage, on the features only: what the dense-prediction forms have

    def __init__(self) -> None:
        super().__init__()
        self.out_norms = None

    def run_stem(self, x: Tensor) -> Tensor:
        # Convolutions keep the layout of their input: from here on no copy is needed to have channels last.
        return self.stem(x.contiguous(memory_format=torch.channels_last))

    def run_stage(self, stage: Any, x: Tensor) -> Tensor:
        """Hook for families whose blocks see another layout than what is between stages."""
        return self._run_blocks(stage.blocks, x)

    def stage_feature(self, x: Tensor, index: int) -> Tensor:
        """Hook for families whose stage ends in a norm that the next stage reads too."""
        return x

    def final_norm(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def feature_norm(self, x: Tensor) -> Tensor:
        """What `norm=True` applies to the last feature; a hook for families whose final norm is for pooled features."""
        return self.final_norm(x)

    def _to_map(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2) if self.channels_last else x

    def finish(self, x: Tensor) -> Tensor:
        """What forward_features makes of the last stage's output; a hook for families that add tokens to the map."""
        return self._to_map(self.final_norm(x))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.run_stages(self.run_stem(x))

    def run_stages(self, x: Tensor) -> Tensor:
        """What forward_features does after the stem."""
        for i, stage in enumerate(self.stages):
            x = self.stage_feature(self.run_stage(stage, x), i)
            x = stage.downsample(x)
        return self.finish(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | tuple[int, ...] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The stages' features.

        Args:
            x: (batch, channels, H, W) images.
            indices: which stages; the last n for an int, all for None.
            norm: apply the final norm to the last stage's feature. A model built with `out_norms=True` has a norm of
                its own for each feature instead, and always applies it.
            stop_early: do not run stages after the last asked for.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: return the list alone.

        Returns:
            The list, or (normalised last feature, list).
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt: got {output_fmt!r}, need 'NCHW' or 'NHWC'")
        take, last = feature_take_indices(len(self.stages), _list(indices))
        maps = []
        x = self.run_stem(x)
        final = len(self.stages) - 1
        for i, stage in enumerate(self.stages):
            if stop_early and i > last:
                break
            x = feature = self.stage_feature(self.run_stage(stage, x), i)
            if i in take:
                if self.out_norms is not None:
                    feature = self.out_norms[i](feature)
                elif (norm or self.features_are_normed) and i == final:
                    feature = self.feature_norm(feature)
                feature = self._to_map(feature)
                maps.append(feature if output_fmt == "NCHW" else feature.permute(0, 2, 3, 1))
            if i < final:
                x = stage.downsample(x)
        if intermediates_only:
            return maps
        return self.finish(x) if i == final else self._to_map(x), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] | tuple[int, ...] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages after the last asked for, and the norm and head if wanted; returns the indices kept."""
        take, last = feature_take_indices(len(self.stages), _list(indices))
        self.stages = self.stages[: last + 1]
        self.stages[-1].downsample = nn.Identity()
        if self.out_norms is not None:
            self.out_norms = self.out_norms[: last + 1]
        if last < len(self.feature_info) - 1 or (prune_norm and not self.features_are_normed):
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer decay: the stem, every stage or block, and the head."""
        return {
            "stem": r"^stem",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.downsample", (99999,)),
                (r"^norm", (99999,)),
            ],
        }


class Stage(nn.Module):
    """Blocks, and what leads to the next stage."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample


def _list(indices: int | Sequence[int] | None) -> int | list[int] | None:
    return list(indices) if isinstance(indices, Sequence) else indices


def drop_path_rates(rate: float, blocks: int) -> list[float]:
    """One rate per block, growing linearly from 0 to `rate`.

    Example:
        >>> drop_path_rates(0.2, 3)
        [0.0, 0.1, 0.2]
    """
    return [rate * i / max(blocks - 1, 1) for i in range(blocks)]
