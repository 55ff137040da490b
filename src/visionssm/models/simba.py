"""SiMBA: Simplified Mamba-based Architecture for Vision.

Paper: arXiv 2403.15360. Code: github.com/badripatro/simba, without a licence. No weights were ever released.

A pyramid of four stages. Tokens are mixed by a Mamba block that walks row by row, channels by "EinFFT", products with complex
weights in the frequency domain, or by an MLP with a depthwise convolution. A class token, the mean of the last map, passes one
block of its own. Inside, features are (batch, H, W, C).
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from .._messages import choose
from ..layers.conv_norm import StemConvolutions
from ..layers.patches import conv_downsample
from ..layers.vim_mixer import VimMixer
from ._backbone import HierarchicalBackbone, Stage, drop_path_rates
from ._build import build_model, init_linear_layers
from ._keys import Key, KeyTable
from ._release import Release, digits_release, register_releases

Box = tuple[int, int, int, int]
TRANSFORMS = ("auto", "fft", "real")


class ConvStem(StemConvolutions):
    """Four convolutions, then LayerNorm: (batch, 3, H, W) to (batch, ceil(H / 4), ceil(W / 4), C)."""

    def __init__(self, in_chans: int, hidden: int, width: int) -> None:
        super().__init__(in_chans, hidden, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x).permute(0, 2, 3, 1))


class Downsample(nn.Module):
    """Convolution of stride 2, then LayerNorm: (batch, H, W, C) to (batch, ceil(H / 2), ceil(W / 2), out_width)."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width, out_width, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(out_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(conv_downsample(self.proj, x))


class EinFFT(nn.Module):
    """The paper's channel mixer: a discrete Fourier transform over the tokens in raster order and over four blocks of channels, a
    two-layer perceptron with complex weights at every frequency, a soft threshold, and the inverse transform.

    It is computed in float32 (float64 for float64) whatever the autocast: half precisions have no transform.

    Args:
        width: C, a multiple of 4.
        threshold: of the soft threshold.
        transform: "fft"; "real", products with cosines and sines instead, without complex numbers, for formats that have none;
            or "auto", which is "real" while a model is exported. Both give the same values but for rounding.

    Shapes: (batch, H, W, C) to the same.

    Example:
        >>> EinFFT(16)(torch.randn(2, 5, 7, 16)).shape
        torch.Size([2, 5, 7, 16])
    """

    blocks = 4

    def __init__(self, width: int, threshold: float = 0.01, transform: str = "auto") -> None:
        super().__init__()
        if width % self.blocks:
            raise ValueError(f"EinFFT: got {width} channels, need a multiple of {self.blocks}")
        self.threshold = threshold
        self.transform = choose("transform", transform, TRANSFORMS)
        S = width // self.blocks
        # Entry 0 of the first axis is the real part, entry 1 the imaginary one.
        self.weight1 = nn.Parameter(0.02 * torch.randn(2, self.blocks, S, S))
        self.weight2 = nn.Parameter(0.02 * torch.randn(2, self.blocks, S, S))
        self.bias1 = nn.Parameter(0.02 * torch.randn(2, self.blocks, S))
        self.bias2 = nn.Parameter(0.02 * torch.randn(2, self.blocks, S))

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._mix(x)
        return self._mix(x)

    def _mix(self, x: Tensor) -> Tensor:
        values = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (self.blocks, -1))
        if self.transform == "real" or (self.transform == "auto" and torch.compiler.is_exporting()):
            y = from_frequencies(self._perceptron(to_frequencies(values)))
        else:
            spectrum = torch.fft.fft2(values.flatten(1, 2), dim=(1, 2), norm="ortho")
            mixed = torch.view_as_complex(self._perceptron(torch.view_as_real(spectrum)))
            y = torch.fft.ifft2(mixed, dim=(1, 2), norm="ortho").real
        return y.reshape(x.shape).to(x.dtype)

    def _perceptron(self, spectrum: Tensor) -> Tensor:
        """Both layers at every frequency: (..., blocks, S, 2), real and imaginary parts, to the same shape."""
        leading, (blocks, S, _) = spectrum.shape[:-3], spectrum.shape[-3:]
        x = spectrum.reshape(-1, blocks, 2 * S).transpose(0, 1)
        x = F.relu(_complex_linear(x, self.weight1, self.bias1))
        x = F.softshrink(_complex_linear(x, self.weight2, self.bias2), self.threshold)
        return x.transpose(0, 1).unflatten(-1, (S, 2)).unflatten(0, leading)


def _complex_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A complex product per block as a real one over interleaved parts: (blocks, frequencies, 2 S) to the same shape."""
    real, imaginary = weight.to(x.dtype)
    matrix = torch.stack((torch.stack((real, imaginary), dim=-1), torch.stack((-imaginary, real), dim=-1)), dim=2)
    offset = bias.to(x.dtype).movedim(0, -1).flatten(1)
    return torch.baddbmm(offset.unsqueeze(1), x, matrix.flatten(3, 4).flatten(1, 2))


def to_frequencies(x: Tensor) -> Tensor:
    """The orthonormal transform of (batch, H, W, blocks, S) over H W and over blocks, as (batch, H, W, blocks, S, 2).

    A transform over the raster sequence is one over the columns' rows, a rotation, and one over the rows' columns. Frequency
    k + H l lies at [k, l]: what acts on each frequency alone need not know.
    """
    real = x.movedim(0, -1).contiguous()
    real, imaginary = _transform(real, torch.zeros_like(real), 0, -1)
    real, imaginary = _twiddle(real, imaginary, -1)
    real, imaginary = _transform(*_transform(real, imaginary, 1, -1), 2, -1)
    return torch.stack((real, imaginary), dim=-1).movedim(-2, 0)


def from_frequencies(spectrum: Tensor) -> Tensor:
    """The real part of the inverse of :func:`to_frequencies`: (batch, H, W, blocks, S)."""
    real, imaginary = (part.movedim(0, -1).contiguous() for part in spectrum.unbind(-1))
    real, imaginary = _transform(*_transform(real, imaginary, 2, 1), 1, 1)
    real, imaginary = _twiddle(real, imaginary, 1)
    return _transform(real, imaginary, 0, 1)[0].movedim(-1, 0)


def _transform(real: Tensor, imaginary: Tensor, dim: int, sign: int) -> tuple[Tensor, Tensor]:
    """Multiplies (H, W, blocks, S, batch) by the matrix exp(sign 2 pi i a b / n) / sqrt(n) along H, W or blocks, of size n."""
    if dim == 0:
        # Reordered in memory too: sizes that are not known while exporting can be merged in few ways only.
        swapped = _transform(real.transpose(0, 1).contiguous(), imaginary.transpose(0, 1).contiguous(), 1, sign)
        return swapped[0].transpose(0, 1).contiguous(), swapped[1].transpose(0, 1).contiguous()
    shape, n = real.shape, real.shape[dim]
    steps = torch.arange(n, device=real.device)
    # n as a tensor, because ONNX has no remainder by a size that is open.
    angles = (2 * math.pi / n) * (steps[:, None] * steps % (steps[-1] + 1)).to(real.dtype)
    real, imaginary = (values.flatten(dim + 1).flatten(0, dim - 1) for values in (real, imaginary))
    cos, sin = ((table / n**0.5).expand(real.shape[0], -1, -1) for table in (angles.cos(), sign * angles.sin()))
    real, imaginary = torch.bmm(cos, real) - torch.bmm(sin, imaginary), torch.bmm(sin, real) + torch.bmm(cos, imaginary)
    return real.view(shape), imaginary.view(shape)


def _twiddle(real: Tensor, imaginary: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    """Multiplies [k, w] of (H, W, ...) by exp(sign 2 pi i k w / (H W))."""
    H, W = real.shape[:2]
    rows, columns = (torch.arange(n, device=real.device) for n in (H, W))
    angles = (2 * math.pi / (H * W)) * (rows[:, None] * columns).to(real.dtype)
    cos, sin = (table[..., None, None, None] for table in (angles.cos(), sign * angles.sin()))
    return real * cos - imaginary * sin, real * sin + imaginary * cos


class ConvMlp(nn.Module):
    """Linear, depthwise 3x3 convolution where wanted, exact GELU, linear: (batch, H, W, C) to the same."""

    def __init__(self, width: int, hidden: int, conv: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if conv else nn.Identity()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(x))


class ClassBlock(nn.Module):
    """x + mixer(norm(x)), then x + channel_mixer(norm(x)), over (batch, H, W, C); for the class token H = W = 1.

    Args:
        width: C.
        mixer: over (batch, L, C).
        channel_mixer: over (batch, H, W, C).
    """

    def __init__(self, width: int, mixer: nn.Module, channel_mixer: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.channel_mixer = channel_mixer

    def mix_tokens(self, x: Tensor) -> Tensor:
        return self.mixer(self.norm1(x).flatten(1, 2)).view(x.shape)

    def mix_channels(self, x: Tensor) -> Tensor:
        return self.channel_mixer(self.norm2(x))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix_tokens(x)
        return x + self.mix_channels(x)


class Block(ClassBlock):
    """The block of the stages, with both of its branches subject to drop path."""

    def __init__(self, width: int, mixer: nn.Module, channel_mixer: nn.Module, drop_path: float) -> None:
        super().__init__(width, mixer, channel_mixer)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mix_tokens(x))
        return x + self.drop_path(self.mix_channels(x))


class SimbaStage(Stage):
    """Blocks, the norm of their output, and what leads to the next stage. The last stage's norm is the model's."""

    def __init__(self, blocks: list[nn.Module], norm: nn.Module, downsample: nn.Module) -> None:
        super().__init__(blocks, downsample)
        self.norm = norm


class Simba(HierarchicalBackbone):
    """SiMBA. Any input size works, square or not; every stage rounds sizes up.

    Features of dense prediction are the normalised outputs of the stages. `forward_features` returns tokens
    (batch, 1 + H W, C): the class token, then the last map in raster order, all normalised.

    Args:
        in_chans, num_classes, drop_rate: as in every timm model.
        global_pool: "token", "avg" (the mean over the last map instead of the class token) or "".
        stem_width: hidden channels of the stem.
        widths: channels of the stages.
        depths: blocks per stage.
        channel_mixer: "einfft" or "mlp".
        mlp_ratios: hidden width of the MLP over C, per stage.
        directions: "forward", as in the published code; or "bidirectional", forwards and backwards, as the paper describes it.
        state: N.
        dt_init: "linear", as in the published code, which starts with delta near 0.7; or "mamba", with delta in [0.001, 0.1].
        token_label: a second classifier on every token of the last map; half of its maximum over the tokens is added to the logits.
        transform: see :class:`EinFFT`.
        drop_path_rate: of the last block; grows linearly from 0. Published: 0.1, and 0.3 for the large model.
    """

    pools = ("", "token", "avg")
    features_are_normed = True
    key_table = KeyTable(
        [
            Key("patch_embed1.conv.0.*", "stem.conv1.*"),
            Key("patch_embed1.conv.1.*", "stem.norm1.*"),
            Key("patch_embed1.conv.3.*", "stem.conv2.*"),
            Key("patch_embed1.conv.4.*", "stem.norm2.*"),
            Key("patch_embed1.conv.6.*", "stem.conv3.*"),
            Key("patch_embed1.conv.7.*", "stem.norm3.*"),
            Key("patch_embed1.**", "stem.**"),
            *(Key(f"patch_embed{i + 2}.**", f"stages.{i}.downsample.**") for i in range(3)),
            *(Key(f"norm{i + 1}.*", f"stages.{i}.norm.*") for i in range(3)),
            Key("norm4.*", "norm.*"),
            *(
                Key(published, ours)
                for there, here in [
                    *((f"block{i + 1}.*", f"stages.{i}.blocks.*") for i in range(4)),
                    ("post_network.0", "class_block"),
                ]
                for published, ours in (
                    (f"{there}.attn.norm.*", f"{here}.norm1.*"),
                    ((f"{there}.attn.mamba.conv1d.*",), f"{here}.mixer.conv.*"),
                    ((f"{there}.attn.mamba.x_proj.weight",), f"{here}.mixer.scan.x_proj_weight"),
                    ((f"{there}.attn.mamba.dt_proj.weight",), f"{here}.mixer.scan.dt_weight"),
                    ((f"{there}.attn.mamba.dt_proj.bias",), f"{here}.mixer.scan.dt_bias"),
                    ((f"{there}.attn.mamba.A_log",), f"{here}.mixer.scan.A_log"),
                    ((f"{there}.attn.mamba.D",), f"{here}.mixer.scan.D"),
                    (f"{there}.attn.mamba.**", f"{here}.mixer.**"),
                    (f"{there}.mlp.complex_weight_1", f"{here}.channel_mixer.weight1"),
                    (f"{there}.mlp.complex_weight_2", f"{here}.channel_mixer.weight2"),
                    (f"{there}.mlp.complex_bias_1", f"{here}.channel_mixer.bias1"),
                    (f"{there}.mlp.complex_bias_2", f"{here}.channel_mixer.bias2"),
                    (f"{there}.mlp.dwconv.dwconv.*", f"{here}.channel_mixer.conv.*"),
                    (f"{there}.mlp.**", f"{here}.channel_mixer.**"),
                    (f"{there}.norm2.*", f"{here}.norm2.*"),
                )
            ),
        ]
    )

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        *,
        stem_width: int = 32,
        widths: Sequence[int] = (64, 128, 320, 448),
        depths: Sequence[int] = (3, 4, 6, 3),
        channel_mixer: str = "einfft",
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        directions: str = "forward",
        state: int = 64,
        dt_init: str = "linear",
        token_label: bool = True,
        transform: str = "auto",
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        choose("channel_mixer", channel_mixer, ("einfft", "mlp"))
        choose("directions", directions, ("forward", "bidirectional"))

        def parts(width: int, mlp_ratio: float, conv: bool) -> tuple[nn.Module, nn.Module]:
            mixer = VimMixer(width, state=state, directions=directions, halve=False, dt_init=dt_init)
            if channel_mixer == "einfft":
                return mixer, EinFFT(width, transform=transform)
            return mixer, ConvMlp(width, int(width * mlp_ratio), conv)

        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.stem = ConvStem(in_chans, stem_width, widths[0])
        self.stages = nn.ModuleList()
        for i, (width, depth, ratio) in enumerate(zip(widths, depths, mlp_ratios, strict=True)):
            blocks: list[nn.Module] = [Block(width, *parts(width, ratio, conv=True), next(rates)) for _ in range(depth)]
            last = i == len(depths) - 1
            norm = nn.Identity() if last else nn.LayerNorm(width, eps=1e-6)
            self.stages.append(SimbaStage(blocks, norm, nn.Identity() if last else Downsample(width, widths[i + 1])))
        self.class_block: nn.Module | None = ClassBlock(widths[-1], *parts(widths[-1], mlp_ratios[-1], conv=False))
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, width in enumerate(widths)
        ]
        self.token_label = token_label
        self.init_head(widths[-1], num_classes, global_pool, drop_rate)
        self.aux_head = nn.Linear(widths[-1], num_classes) if token_label and num_classes > 0 else None
        init_linear_layers(self)
        _init_convolutions(self)

    def stage_feature(self, x: Tensor, index: int) -> Tensor:
        return cast(SimbaStage, self.stages[index]).norm(x)

    def finish(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)
        if self.class_block is not None:
            token = self.class_block(tokens.mean(1, keepdim=True).unsqueeze(1))
            tokens = torch.cat((token.squeeze(1), tokens), dim=1)
        return self.norm(tokens)

    def pool(self, x: Tensor) -> Tensor:
        if self.global_pool == "avg":
            return x[:, 1:].mean(1)
        return x[:, 0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        logits = super().forward_head(x, pre_logits)
        if pre_logits or self.aux_head is None or self.global_pool != "token":
            return logits
        return logits + 0.5 * self.aux_head(x[:, 1:]).amax(1)

    def forward_token_labels(self, x: Tensor) -> tuple[Tensor, Tensor, Box]:
        """What training with token labels compares, see :func:`token_label_loss`; MixToken is applied in training mode.

        Args:
            x: (batch, channels, H, W) images, in training with H and W multiples of 32.

        Returns:
            Class logits (batch, classes); token logits (batch, tokens, classes), mixed back; and the box that was exchanged.
        """
        if self.aux_head is None:
            raise ValueError("token labels: the model has no classifier for tokens, build it with token_label=True")
        maps, box = self.run_stem(x), (0, 0, 0, 0)
        grid = (maps.shape[1] // 8, maps.shape[2] // 8)
        if self.training:
            if maps.shape[1] % 8 or maps.shape[2] % 8:
                raise ValueError(f"image: got {x.shape[2]} x {x.shape[3]}, MixToken needs multiples of 32")
            box = random_box(*grid)
            maps = exchange_box(maps, box, scale=8)
        tokens = self.run_stages(maps)
        token_logits = self.aux_head(tokens[:, 1:])
        if self.training:
            token_logits = exchange_box(token_logits.unflatten(1, grid), box).flatten(1, 2)
        return self.head(self.head_drop(tokens[:, 0])), token_logits, box

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Fresh classifiers, that of the tokens included."""
        super().reset_classifier(num_classes, global_pool)
        self.aux_head = None
        if self.token_label and num_classes > 0:
            self.aux_head = nn.Linear(self.num_features, num_classes, device=next(self.parameters()).device)
            init_linear_layers(self.aux_head)

    def prune_intermediate_layers(
        self, indices: int | list[int] | tuple[int, ...] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As everywhere; the class token goes with the head."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.class_block = None
        return taken

    def no_weight_decay(self) -> set[str]:
        """The tensors of the recurrence, and the biases of EinFFT, which are matrices in name only."""
        kept = super().no_weight_decay()
        return kept | {name for name, _ in self.named_parameters() if name.endswith(("mixer.bias1", "mixer.bias2"))}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        groups = super().group_matcher(coarse)
        if not coarse:
            groups["blocks"].append((r"^stages\.(\d+)\.norm", (99999,)))
        return {**groups, "class_block": r"^class_block"}


@torch.no_grad()
def _init_convolutions(model: nn.Module) -> None:
    """Normal weights by the fan-out, zero biases for every two-dimensional convolution."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def random_box(rows: int, columns: int) -> Box:
    """MixToken's box (top, left, bottom, right): a uniform share of a grid around a uniform centre, cut at the edges."""
    share = math.sqrt(1 - float(torch.rand(())))

    def side(size: int) -> tuple[int, int]:
        cut, centre = int(size * share), int(torch.randint(size, ()))
        return min(max(centre - cut // 2, 0), size), min(max(centre + cut // 2, 0), size)

    (top, bottom), (left, right) = side(rows), side(columns)
    return top, left, bottom, right


def exchange_box(maps: Tensor, box: Box, scale: int = 1) -> Tensor:
    """Takes the inside of a box from the batch in reversed order: (batch, H, W, C) to the same shape. It undoes itself.

    Example:
        >>> maps = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 2, 2, 1)
        >>> exchange_box(maps, (0, 0, 1, 2))[0, ..., 0]
        tensor([[1., 1.],
                [0., 0.]])
    """
    top, left, bottom, right = (scale * edge for edge in box)
    rows, columns = (torch.arange(n, device=maps.device) for n in maps.shape[1:3])
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
    return torch.where(inside[..., None], maps.flip(0), maps)


def token_label_loss(
    class_logits: Tensor, token_logits: Tensor, target: Tensor, box: Box = (0, 0, 0, 0), token_weight: float = 0.5
) -> Tensor:
    """Soft cross-entropy of the image's label plus `token_weight` times that of the tokens' labels (arXiv 2104.10858).

    Args:
        class_logits: (batch, classes).
        token_logits: (batch, tokens, classes).
        target: (batch, classes, 2 + tokens): the ground truth, which is not used, the image's soft label, and each token's in
            raster order; or (batch, classes), the same label for the image and all tokens.
        box: MixToken's box (top, left, bottom, right), in tokens.
        token_weight: of the second term.

    Example:
        >>> target = torch.softmax(torch.randn(2, 5, 2 + 4), dim=1)
        >>> token_label_loss(torch.randn(2, 5), torch.randn(2, 4, 5), target).shape
        torch.Size([])
    """
    tokens = token_logits.shape[1]
    if target.dim() == 2:
        target = target.unsqueeze(-1).expand(-1, -1, 2 + tokens)
    if target.shape[2] != 2 + tokens:
        raise ValueError(
            f"target: got shape {tuple(target.shape)}, need (batch, classes, 2 + {tokens}) for {tokens} tokens"
        )
    kept = 1 - (box[2] - box[0]) * (box[3] - box[1]) / tokens
    label = target[:, :, 1]
    label = kept * label + (1 - kept) * label.flip(0)
    by_class = F.cross_entropy(class_logits, label)
    by_token = F.cross_entropy(token_logits.flatten(0, 1), target[:, :, 2:].transpose(1, 2).flatten(0, 1))
    return by_class + token_weight * by_token


def _release(params: int, gflops: float | None = None, top1: float | None = None, **facts: Any) -> Release:
    return Release(
        params=params,
        gflops=gflops,
        top1=top1,
        paper="2403.15360",
        first_conv="stem.conv1",
        classifier=("head", "aux_head"),
        **{"crop_pct": 0.96, "note": "no weights were released", **facts},
    )


default_cfgs = register_releases(
    {
        "simba_small": _release(15_309_104, 2.4, 81.7),
        "simba_base": _release(22_819_984, 4.2, 83.5),
        "simba_large": _release(36_641_264, 7.6, 84.4),
        "simba_small_mlp": _release(26_591_088, 5.0, 84.0),
        "simba_base_mlp": _release(40_209_744, 9.0, 84.7),
        "simba_large_mlp": _release(66_762_512, 16.3, 49.0, note="no weights were released; unstable in training"),
        "simba_nano.digits": digits_release(
            "simba_nano",
            239_276,
            98.89,
            paper="2403.15360",
            pool_size=(1, 1),
            first_conv="stem.conv1",
            classifier=("head", "aux_head"),
        ),
    }
)

_SMALL = {"stem_width": 32, "widths": (64, 128, 320, 448), "depths": (3, 4, 6, 3)}
_BASE = {"stem_width": 64, "widths": (64, 128, 320, 512), "depths": (3, 4, 12, 3)}
_LARGE = {"stem_width": 64, "widths": (96, 192, 384, 512), "depths": (3, 6, 18, 3)}


def _simba(variant: str, pretrained: bool, options: dict[str, Any], **config: Any) -> Simba:
    return cast(Simba, build_model(Simba, variant, pretrained, **{**config, **options}))


@register_model
def simba_small(pretrained: bool = False, **kwargs: Any) -> Simba:
    """SiMBA-S with EinFFT."""
    return _simba("simba_small", pretrained, kwargs, **_SMALL)


@register_model
def simba_base(pretrained: bool = False, **kwargs: Any) -> Simba:
    """SiMBA-B with EinFFT."""
    return _simba("simba_base", pretrained, kwargs, **_BASE)


@register_model
def simba_large(pretrained: bool = False, **kwargs: Any) -> Simba:
    """SiMBA-L with EinFFT."""
    return _simba("simba_large", pretrained, kwargs, **_LARGE)


@register_model
def simba_small_mlp(pretrained: bool = False, **kwargs: Any) -> Simba:
    """SiMBA-S with an MLP, which is what the published constructor of this size builds."""
    return _simba("simba_small_mlp", pretrained, kwargs, channel_mixer="mlp", **_SMALL)


@register_model
def simba_base_mlp(pretrained: bool = False, **kwargs: Any) -> Simba:
    """SiMBA-B with an MLP, which is what the published constructor of this size builds."""
    return _simba("simba_base_mlp", pretrained, kwargs, channel_mixer="mlp", **_BASE)


@register_model
def simba_large_mlp(pretrained: bool = False, **kwargs: Any) -> Simba:
    """SiMBA-L with an MLP, which the paper reports as unstable in training."""
    return _simba("simba_large_mlp", pretrained, kwargs, channel_mixer="mlp", **_LARGE)


@register_model
def simba_nano(pretrained: bool = False, **kwargs: Any) -> Simba:
    """A SiMBA of 4 blocks for 32x32 images: for demonstrations and tests."""
    config = {"stem_width": 16, "widths": (24, 40, 64, 72), "depths": (1, 1, 1, 1), "state": 16}
    return _simba("simba_nano", pretrained, kwargs, **config)
