"""LocalMamba: Visual State Space Model with Windowed Selective Scan.

Paper: arXiv 2403.09338. Code: github.com/hunto/LocalMamba, Apache 2.0; no separate statement for the weights (ImageNet-1K).

Each block scans along four of eight directions, picked for that block by a search: rows ("h"), columns ("v"), windows of 2 or 7
("w2", "w7"), and their reversals ("_flip"). Each direction's result is re-weighted by a channel attention; then they are summed.
LocalVMamba is a pyramid of gated SS2D blocks; LocalVim is plain, with Vim's carried residual.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from .._messages import choose
from ..layers.patches import PatchMerging, PatchStem
from ..layers.selective import SelectiveScan
from ..layers.ss2d import SS2D
from ..ops import depthwise_conv, paths
from ..ops.reorder import reorder
from ._backbone import HierarchicalBackbone, Stage, drop_path_rates
from ._build import build_model, init_linear_layers
from ._keys import Key, KeyTable
from ._plain import (
    Grid,
    PlainBackbone,
    TwoStreamBlock,
    class_positions,
    evenly_spaced,
    init_plain,
    insert_rows,
    remove_rows,
)
from ._release import Release, digits_release, register_releases

Directions = Sequence[Sequence[str]]

UNSCANS = ("inverse", "published")
CLASS_TOKENS = ("none", "middle")
SEARCHED = ("h", "h_flip", "v", "v_flip", "w2", "w2_flip", "w7", "w7_flip")
UNSEARCHED = ("h", "h_flip", "w2", "w2_flip")


def _directions(text: str) -> Directions:
    return tuple(tuple(block.split()) for block in text.split("|"))


LOCAL_VMAMBA_TINY = _directions(
    "h h_flip w7 w7_flip | h_flip v_flip w2 w2_flip | h_flip v_flip w2_flip w7 | h_flip v v_flip w2 | h h_flip v_flip w2_flip |"
    "h_flip v_flip w2 w2_flip | h w2_flip w7 w7_flip | h h_flip v v_flip | h v_flip w7 w7_flip | h_flip v w2 w7_flip |"
    "v v_flip w2 w7_flip | h h_flip v_flip w2_flip | v_flip w2_flip w7 w7_flip | h_flip v_flip w2_flip w7_flip |"
    "h_flip v w7 w7_flip"
)
LOCAL_VMAMBA_SMALL = _directions(
    "h v v_flip w7_flip | h h_flip v w7 | h_flip v v_flip w7 | h_flip v w2_flip w7 | h_flip v w2_flip w7 |"
    "h_flip v_flip w2 w7_flip | h_flip v v_flip w7 | h v v_flip w7 | h v v_flip w7 | h v v_flip w7_flip | h h_flip v v_flip |"
    "h v v_flip w2 | v v_flip w2_flip w7 | h h_flip v w2 | h_flip v v_flip w7_flip | h h_flip v v_flip | h v v_flip w7_flip |"
    "h v v_flip w7_flip | h h_flip v_flip w7 | h_flip v_flip w2_flip w7 | h_flip v v_flip w7_flip | v v_flip w7 w7_flip |"
    "h v v_flip w7_flip | h_flip v v_flip w2 | h v v_flip w2_flip | h h_flip v w7 | h h_flip w7 w7_flip | h v_flip w2 w2_flip |"
    "h v_flip w2 w7 | h v v_flip w7_flip | h_flip v w2_flip w7 | h_flip v_flip w7 w7_flip | h v w7 w7_flip"
)
LOCAL_VIM = _directions(
    "h v_flip w7 w7_flip | h_flip w2_flip w7 w7_flip | h h_flip v w7 | h h_flip v v_flip | h h_flip v v_flip |"
    "h h_flip v v_flip | h_flip v v_flip w7 | h_flip v v_flip w2_flip | h h_flip v v_flip | h h_flip v v_flip | h v v_flip w2 |"
    "h v v_flip w2_flip | h h_flip v_flip w7 | h_flip v v_flip w2 | h h_flip v v_flip | h v w2 w2_flip | v v_flip w2 w7 |"
    "h h_flip v w2 | h h_flip w2_flip w7 | v v_flip w2 w2_flip"
)


class ChannelAttention(nn.Module):
    """SCAttn: every path's output times sigmoid gates of its channels, which are read off its mean; then the sum over the paths.

    (batch, L, K, E) to (batch, L, E). One set of weights serves all paths. The spatial gate that the paper also describes is in no
    published code path and in no checkpoint.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.reduce = nn.Linear(channels, channels // 8)
        self.select = nn.Linear(channels // 8, channels)

    def forward(self, y: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or len(y) == 0:
            gate = self._gate(self.norm(y).mean(1, keepdim=True))
            return (y * gate).sum(2)
        # The same without temporaries of y's size, which is the largest tensor of the model.
        gate = self._gate(torch.stack([self.norm(image).mean(0) for image in y])[:, None]).to(y.dtype)
        out = y[:, :, 0] * gate[:, :, 0]
        for k in range(1, y.shape[2]):
            out.addcmul_(y[:, :, k], gate[:, :, k])
        return out

    def _gate(self, context: Tensor) -> Tensor:
        return torch.sigmoid(self.select(F.gelu(self.reduce(context))))


class DirectionSearch(nn.Module):
    """What takes the attention's place while directions are searched: the paths' normalised outputs, weighted by one softmax.

    (batch, L, K, E) to (batch, L, E). After training, the paths with the largest `logits` are kept: :func:`searched_directions`.
    """

    def __init__(self, num_paths: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(1e-3 * torch.randn(num_paths))

    def forward(self, y: Tensor) -> Tensor:
        weights = torch.softmax(self.logits, dim=0)
        return (F.layer_norm(y, y.shape[-1:]) * weights[:, None]).sum(2)


class Sum(nn.Module):
    """(batch, L, K, E) to (batch, L, E): the paths' outputs as they are, the paper's ablation without attention."""

    def forward(self, y: Tensor) -> Tensor:
        return y.sum(2)


def _combine(kind: str, channels: int, num_paths: int) -> nn.Module:
    builders = {
        "attention": partial(ChannelAttention, channels),
        "sum": Sum,
        "search": partial(DirectionSearch, num_paths),
    }
    return choose("combine", kind, builders)()


def searched_directions(model: nn.Module, keep: int = 4) -> Directions:
    """Reads the directions of every block off a model that was trained with `combine="search"`.

    Args:
        model: a LocalVMamba or LocalVim.
        keep: how many per block.

    Returns:
        The `keep` directions with the largest weight of each block, in the order in which the model has them; pass it as
        `directions` to a new model.

    Example:
        >>> import visionssm
        >>> supernet = visionssm.create_model("local_vmamba_nano", directions=[SEARCHED] * 4, combine="search")
        >>> [len(names) for names in searched_directions(supernet)]
        [4, 4, 4, 4]
    """
    found = []
    for mixer in model.modules():
        search = getattr(mixer, "combine", None)
        if isinstance(search, DirectionSearch):
            names = cast(Sequence[str], mixer.directions)
            best = sorted(search.logits.topk(min(keep, len(names))).indices.tolist())
            found.append(tuple(names[k] for k in best))
    if not found:
        raise ValueError('model: got one without searched directions, need one built with combine="search"')
    return tuple(found)


def check_directions(directions: Directions, depth: int) -> Directions:
    """One list of names per block, or a ValueError."""
    if len(directions) != depth:
        raise ValueError(f"directions: got lists for {len(directions)} blocks, need one for each of the {depth}")
    for names in directions:
        if isinstance(names, str) or not names:
            raise ValueError(
                f"directions: got {names!r} for a block, need a list of names such as ('h', 'v', 'w2', 'w7_flip')"
            )
        paths.directions(1, 1, tuple(names))
    return tuple(tuple(names) for names in directions)


def undo_as_published(y: Tensor, directions: Sequence[str], H: int, W: int) -> Tensor:
    """What the published code makes of (batch, L, K, E) outputs: columns are not undone by the inverse of how they were read.

    It reads by transposing the (H, W) grid and undoes by transposing an (H, W) grid again, which is its inverse for H = W only.
    """
    columns = [k for k, name in enumerate(directions) if name.startswith("v")]
    if H == W or not columns:
        return y
    once = paths.transposed(H, W, device=y.device)[0].long()
    return torch.stack([y[:, once[once], k] if k in columns else y[:, :, k] for k in range(y.shape[2])], dim=2)


class LocalSS2D(SS2D):
    """SS2D along named directions, whose outputs are weighted before they are summed."""

    def __init__(self, width: int, directions: Sequence[str], combine: str, unscan: str, **options: Any) -> None:
        builder = partial(paths.directions, names=tuple(directions))
        super().__init__(width, builder, len(directions), **options)
        self.combine = _combine(combine, self.out_proj.in_features, len(directions))
        self.directions = tuple(directions)
        self.unscan = choose("unscan", unscan, UNSCANS)

    def scan_map(self, x: Tensor) -> Tensor:
        H, W = x.shape[1:3]
        y = self.scan(x.flatten(1, 2), self.paths(H, W, device=x.device), merge=False)
        if self.unscan == "published":
            y = undo_as_published(y, self.directions, H, W)
        assert self.combine is not None
        return self.combine(y).unflatten(1, (H, W))


class Block(nn.Module):
    """x + SS2D(norm(x)) over (batch, H, W, C)."""

    def __init__(self, width: int, mixer: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm1(x)))


class LocalVMamba(HierarchicalBackbone):
    """LocalVMamba. Any input size from 4x4 on works, square or not.

    The stem rounds sizes down, patch merging rounds them up.

    Args:
        in_chans, num_classes, global_pool, drop_rate: as in every timm model.
        width: channels of the first stage; they double from stage to stage.
        depths: blocks per stage.
        directions: names of each block's directions, see :func:`visionssm.ops.paths.directions`; any number of them.
        combine: "attention"; "sum", the paper's ablation without it; or "search", which learns one weight per direction.
        unscan: "inverse", or "published": the published code puts what it scanned along columns back in another order unless H = W.
            Published results on square images do not depend on it.
        expansion: E / C.
        state: N.
        dt_init: see :class:`visionssm.layers.SelectiveScan`.
        drop_path_rate: of the last block; grows linearly from 0. Published runs use 0.2.
        out_norms: a LayerNorm on each stage's feature, as in the published dense-prediction form.
    """

    key_table = KeyTable(
        [
            Key("patch_embed.0.*", "stem.conv1.*"),
            Key("patch_embed.2.*", "stem.norm1.*"),
            Key("layers.*.blocks.*.norm.*", "stages.*.blocks.*.norm1.*"),
            Key("layers.*.blocks.*.op.x_proj_weight", "stages.*.blocks.*.mixer.scan.x_proj_weight"),
            Key("layers.*.blocks.*.op.dt_projs_weight", "stages.*.blocks.*.mixer.scan.dt_weight"),
            Key("layers.*.blocks.*.op.dt_projs_bias", "stages.*.blocks.*.mixer.scan.dt_bias"),
            Key("layers.*.blocks.*.op.A_logs", "stages.*.blocks.*.mixer.scan.A_log", flat=2),
            Key("layers.*.blocks.*.op.Ds", "stages.*.blocks.*.mixer.scan.D", flat=2),
            Key("layers.*.blocks.*.op.conv2d.*", "stages.*.blocks.*.mixer.conv.*"),
            Key("layers.*.blocks.*.op.multi_scan.attn.norm.*", "stages.*.blocks.*.mixer.combine.norm.*"),
            Key("layers.*.blocks.*.op.multi_scan.attn.global_reduce.*", "stages.*.blocks.*.mixer.combine.reduce.*"),
            Key("layers.*.blocks.*.op.multi_scan.attn.channel_select.*", "stages.*.blocks.*.mixer.combine.select.*"),
            Key("layers.*.blocks.*.op.**", "stages.*.blocks.*.mixer.**"),
            Key("layers.*.downsample.**", "stages.*.downsample.**"),
            Key("classifier.norm.*", "norm.*"),
            Key("classifier.head.*", "head.*"),
            *(Key(f"outnorm{i}.*", f"out_norms.{i}.*") for i in range(4)),
        ]
    )

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        *,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 9, 2),
        directions: Directions = LOCAL_VMAMBA_TINY,
        combine: str = "attention",
        unscan: str = "inverse",
        expansion: float = 2.0,
        state: int = 16,
        dt_init: str = "mamba",
        drop_path_rate: float = 0.0,
        out_norms: bool = False,
    ) -> None:
        super().__init__()
        names = iter(check_directions(directions, sum(depths)))
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        widths = [width * 2**i for i in range(len(depths))]

        def block(width: int) -> Block:
            mixer = LocalSS2D(width, next(names), combine, unscan, expansion=expansion, state=state, dt_init=dt_init)
            return Block(width, mixer, next(rates))

        self.stem = PatchStem(in_chans, width)
        self.stages = nn.ModuleList()
        for i, depth in enumerate(depths):
            last = i == len(depths) - 1
            downsample = nn.Identity() if last else PatchMerging(widths[i], 2 * widths[i])
            self.stages.append(Stage([block(widths[i]) for _ in range(depth)], downsample))
        self.norm = nn.LayerNorm(widths[-1])
        self.out_norms = nn.ModuleList(nn.LayerNorm(w) for w in widths) if out_norms else None
        self.feature_info = [
            {"num_chs": w, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, w in enumerate(widths)
        ]
        self.init_head(widths[-1], num_classes, global_pool, drop_rate)
        init_linear_layers(self)


@paths.cached
def walk_table(H: int, W: int, names: Sequence[str], class_token: str, *, device: torch.device | None = None) -> Tensor:
    """The token that each walk reads at each step: (K, T), -1 over padding.

    A class token is read at the same step of every walk as that at which it lies in the sequence.
    """
    walk = paths.directions(H, W, names, device=device)
    for place in class_positions(class_token, H * W):
        walk = walk + (walk >= place)
        walk = torch.cat((walk[:, :place], walk.new_full((walk.shape[0], 1), place), walk[:, place:]), dim=1)
    return walk


@paths.cached
def step_table(H: int, W: int, names: Sequence[str], class_token: str, *, device: torch.device | None = None) -> Tensor:
    """The step at which each walk reads each token: (K, L)."""
    walk = walk_table(H, W, names, class_token, device=device)
    return paths.inverse(walk, H * W + len(class_positions(class_token, H * W)))


class WalkConv(nn.Module):
    """Depthwise causal convolution along each of K walks, with its own taps, then SiLU: (batch, T, K, E) to the same shape."""

    def __init__(self, channels: int, num_paths: int, taps: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_paths, channels, 1, taps).uniform_(-(taps**-0.5), taps**-0.5))
        self.bias = nn.Parameter(torch.empty(num_paths, channels).uniform_(-(taps**-0.5), taps**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        # All walks' channels side by side are the channels of a map of one row.
        y = depthwise_conv(
            x.flatten(2).unsqueeze(1),
            self.weight.flatten(0, 1).transpose(0, 1).unsqueeze(2),
            self.bias.flatten()[None],
            left=(self.weight.shape[-1] - 1,),
            activation="silu",
        )
        return y.view(x.shape)


class LocalVimMixer(nn.Module):
    """in_proj to (x, z); along each direction convolution, SiLU and selective scan of x; gate by SiLU(z); attention; sum; out_proj.

    Windows are padded before the convolution, which leaves its bias and its neighbours' values there, and the scan walks over
    them. So tokens are put in walking order first.

    Args:
        width: C.
        directions: names, see :func:`visionssm.ops.paths.directions`.
        combine, unscan: see :class:`LocalVMamba`.
        class_token: "none" or "middle".
        expansion: E / C.
        state: N.
        dt_init: see :class:`visionssm.layers.SelectiveScan`.

    Shapes: (batch, L, C) to (batch, L, C).

    Example:
        >>> LocalVimMixer(16, ("h", "v_flip", "w2"))(torch.randn(2, 15, 16), (3, 5)).shape
        torch.Size([2, 15, 16])
    """

    def __init__(
        self,
        width: int,
        directions: Sequence[str],
        combine: str = "attention",
        unscan: str = "inverse",
        class_token: str = "none",
        *,
        expansion: float = 2.0,
        state: int = 16,
        dt_init: str = "linear",
    ) -> None:
        super().__init__()
        channels = int(expansion * width)
        self.directions = tuple(directions)
        self.unscan = choose("unscan", unscan, UNSCANS)
        self.class_token = class_token
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.conv = WalkConv(channels, len(directions))
        self.scan = SelectiveScan(channels, len(directions), state, -(-width // 16), dt_init)
        self.combine = _combine(combine, channels, len(directions))
        self.out_proj = nn.Linear(channels, width, bias=False)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        y = self._scan(x, grid) * F.silu(z).unsqueeze(2)
        if self.unscan == "published":
            places = class_positions(self.class_token, grid[0] * grid[1])
            patches = undo_as_published(remove_rows(y, places), self.directions, *grid)
            y = insert_rows(patches, y[:, list(places)], places)
        return self.out_proj(self.combine(y).to(x.dtype))

    def _scan(self, x: Tensor, grid: Grid) -> Tensor:
        """Convolution and scan along every direction: (batch, L, E) to (batch, L, K, E), float32 or wider."""
        walk = walk_table(*grid, self.directions, self.class_token, device=x.device)
        steps = step_table(*grid, self.directions, self.class_token, device=x.device)
        x = self.conv(reorder(x, walk, steps, complete=True))
        straight = paths.directions(1, walk.shape[1], ("h",) * walk.shape[0], device=x.device)
        return reorder(self.scan(x, straight, merge=False), steps, walk, complete=True)


class LocalVim(PlainBackbone):
    """LocalVim. Any image of at least one patch works; it is filled up with zeros to a multiple of the patch size.

    Args:
        in_chans, num_classes, global_pool, drop_rate: see :class:`PlainBackbone`.
        width: C.
        directions: names of each block's directions; there are as many blocks.
        class_token: "none" or "middle". The published resizing of position embeddings fails with a class token, so other sizes
            than the model's own are no published behaviour then.
        rotary: see :class:`PlainBackbone`; the default is "hidden_and_residual" without a class token, and "none" with one.
        rotary_resize: "tables", as published: other sizes than the model's own resize cosines and sines; or "positions".
        combine, unscan, expansion, state, dt_init: see :class:`LocalVimMixer`.
        drop_path_rate: of the last block; grows linearly from 0. Published runs use 0.1.
        feature: "mixer", what the last mixer of each feature gave, without the stream that it is added to, which is what the
            published dense-prediction form takes; or "stream".
        plain: `img_size`, `patch_size`, `stride`, `pos_resize`, see :class:`PlainBackbone`.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        drop_rate: float = 0.0,
        *,
        width: int = 192,
        directions: Directions = LOCAL_VIM,
        class_token: str = "none",
        rotary: str | None = None,
        rotary_resize: str = "tables",
        combine: str = "attention",
        unscan: str = "inverse",
        expansion: float = 2.0,
        state: int = 16,
        dt_init: str = "linear",
        drop_path_rate: float = 0.0,
        feature: str = "mixer",
        **plain: Any,
    ) -> None:
        choose("class_token", class_token, CLASS_TOKENS)
        directions = check_directions(directions, len(directions))

        def block(names: Sequence[str], rate: float) -> TwoStreamBlock:
            options: dict[str, Any] = {"expansion": expansion, "state": state, "dt_init": dt_init}
            return TwoStreamBlock(width, LocalVimMixer(width, names, combine, unscan, class_token, **options), rate)

        super().__init__(
            [block(*pair) for pair in zip(directions, drop_path_rates(drop_path_rate, len(directions)), strict=True)],
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            width=width,
            pad_images=True,
            class_token=class_token,
            rotary=rotary or ("hidden_and_residual" if class_token == "none" else "none"),
            rotary_resize=rotary_resize,
            feature=feature,
            **plain,
        )
        self.key_table = _vim_key_table(len(directions[0]))
        init_plain(self, legacy=True)
        self.stem.proj.reset_parameters()
        if class_token != "none":
            nn.init.trunc_normal_(self.get_parameter("cls_token"), std=0.02)


def _vim_key_table(num_paths: int) -> KeyTable:
    """Published tensors of a block's directions are one tensor of ours."""
    stacked = {
        "conv1d_#.weight": "conv.weight",
        "conv1d_#.bias": "conv.bias",
        "x_proj_#.weight": "scan.x_proj_weight",
        "dt_proj_#.weight": "scan.dt_weight",
        "dt_proj_#.bias": "scan.dt_bias",
        "A_log_#": "scan.A_log",
        "D_#": "scan.D",
    }
    return KeyTable(
        [
            *(
                Key(
                    tuple(f"layers.*.mixer.{published.replace('#', str(k))}" for k in range(num_paths)),
                    f"blocks.*.mixer.{ours}",
                )
                for published, ours in stacked.items()
            ),
            Key("layers.*.mixer.attn.norm.*", "blocks.*.mixer.combine.norm.*"),
            Key("layers.*.mixer.attn.global_reduce.*", "blocks.*.mixer.combine.reduce.*"),
            Key("layers.*.mixer.attn.channel_select.*", "blocks.*.mixer.combine.select.*"),
            Key("layers.*.**", "blocks.*.**"),
            Key("patch_embed.**", "stem.**"),
            Key("norm_f.weight", "norm.weight"),
        ]
    )


def _release(params: int, gflops: float | None, top1: float | None, file: str = "", **facts: Any) -> Release:
    return Release(
        params=params,
        gflops=gflops,
        top1=top1,
        url=f"https://github.com/hunto/LocalMamba/releases/download/v1.0.0/{file}" if file else "",
        prefer=("state_dict",),
        paper="2403.09338",
        **facts,
    )


default_cfgs = register_releases(
    {
        "local_vmamba_tiny": _release(
            25_527_160, 5.7, 82.7, first_conv="stem.conv1", note="announced; no weights were released"
        ),
        "local_vmamba_small.in1k": _release(49_748_536, 11.4, 83.7, "local_vssm_small.ckpt", first_conv="stem.conv1"),
        "local_vim_tiny.in1k": _release(7_994_152, 1.5, 76.2, "local_vim_tiny.ckpt", first_conv="stem.proj"),
        "local_vim_tiny_middle_cls_token.in1k": _release(
            7_994_536, None, 77.8, "local_vim_tiny_middle_cls_token.ckpt", first_conv="stem.proj"
        ),
        "local_vim_tiny_wo_search": _release(
            7_994_152, 1.5, 75.8, first_conv="stem.proj", note="reported in the paper; no weights were released"
        ),
        "local_vim_small": _release(
            27_783_784, 4.8, 81.2, first_conv="stem.proj", note="its published link leads to LocalVMamba-S by mistake"
        ),
        "local_vim_small_wo_search": _release(
            27_783_784, 4.8, 81.0, first_conv="stem.proj", note="reported in the paper; no weights were released"
        ),
        "local_vim_nano.digits": digits_release(
            "local_vim_nano", 110_266, 98.61, paper="2403.09338", pool_size=(8, 8), first_conv="stem.proj"
        ),
        "local_vmamba_nano.digits": digits_release(
            "local_vmamba_nano", 254_966, 98.61, paper="2403.09338", pool_size=(1, 1), first_conv="stem.conv1"
        ),
    }
)


def _local_vmamba(variant: str, pretrained: bool, options: dict[str, Any], **config: Any) -> LocalVMamba:
    return cast(LocalVMamba, build_model(LocalVMamba, variant, pretrained, **{**config, **options}))


@register_model
def local_vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """LocalVMamba-T, with the directions that its search found."""
    return _local_vmamba("local_vmamba_tiny", pretrained, kwargs, depths=(2, 2, 9, 2), directions=LOCAL_VMAMBA_TINY)


@register_model
def local_vmamba_small(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """LocalVMamba-S, with the directions that its search found."""
    return _local_vmamba("local_vmamba_small", pretrained, kwargs, depths=(2, 2, 27, 2), directions=LOCAL_VMAMBA_SMALL)


@register_model
def local_vmamba_nano(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """A LocalVMamba of 4 blocks for 32x32 images: for demonstrations and tests."""
    directions = _directions("h v_flip w2 w2_flip | h_flip v w2 w2_flip | h h_flip v w2 | h h_flip v v_flip")
    return _local_vmamba(
        "local_vmamba_nano", pretrained, kwargs, width=16, depths=(1, 1, 1, 1), state=4, directions=directions
    )


def _local_vim(variant: str, pretrained: bool, options: dict[str, Any], **config: Any) -> LocalVim:
    config = {"directions": LOCAL_VIM, **config, **options}
    indices = evenly_spaced(len(config["directions"]))
    return cast(LocalVim, build_model(LocalVim, variant, pretrained, feature_indices=indices, **config))


@register_model
def local_vim_tiny(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T, with the directions that its search found."""
    return _local_vim("local_vim_tiny", pretrained, kwargs, width=192)


@register_model
def local_vim_tiny_middle_cls_token(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T with a class token in the middle, and no rotary embedding."""
    return _local_vim("local_vim_tiny_middle_cls_token", pretrained, kwargs, width=192, class_token="middle")


@register_model
def local_vim_tiny_wo_search(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T with the same four directions in every block."""
    return _local_vim("local_vim_tiny_wo_search", pretrained, kwargs, width=192, directions=(UNSEARCHED,) * 20)


@register_model
def local_vim_small(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-S, with the directions that the search found for LocalVim-T."""
    return _local_vim("local_vim_small", pretrained, kwargs, width=384)


@register_model
def local_vim_small_wo_search(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-S with the same four directions in every block, which is what the published code builds under its name."""
    return _local_vim("local_vim_small_wo_search", pretrained, kwargs, width=384, directions=(UNSEARCHED,) * 20)


@register_model
def local_vim_nano(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """A LocalVim of 4 blocks for 32x32 images: for demonstrations and tests."""
    directions = _directions("h v_flip w2 w2_flip | h_flip v w2 w2_flip | h h_flip v w2 | h h_flip v v_flip")
    options = {"img_size": 32, "patch_size": 4, "stride": 4, "state": 4, **kwargs}
    return _local_vim("local_vim_nano", pretrained, options, width=48, directions=directions)
