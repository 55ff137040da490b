"""SS2D: the two-dimensional selective scan block of VMamba (arXiv 2401.10166), which other families vary."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..ops import gate_silu
from ..ops.mixers import ss2d
from .depthwise import conv_silu
from .linear import has_hooks, in_halves, is_plain_conv
from .multihead import MultiheadScan
from .norm import LayerNorm
from .residual import scale_by
from .selective import SelectiveScan, plain_weights

PathBuilder = Callable[..., Tensor]


class SS2D(nn.Module):
    """in_proj, depthwise 3x3 convolution, activation, scan along the paths, norm, gate, out_proj.

    Args:
        width: C of the block.
        paths: builds the (K, T) table of a grid: `paths(H, W, device=...)`, one of `visionssm.ops.paths`, or your own.
        num_paths: K.
        expansion: E = int(expansion * width).
        state: N.
        gate: in_proj makes E more channels, z, and the normalised scan is multiplied by `gate_activation(z)`.
        conv_bias: bias of the depthwise convolution.
        conv: False leaves the convolution out; the activation stays.
        dt_rank: R; ceil(width / 16) by default.
        activation, gate_activation: module classes without arguments.
        out_norm: module applied to the merged (batch, H, W, E) map, LayerNorm by default.
        out_activation: module applied after it, before the gate.
        combine: module that merges (batch, L, K, E) into (batch, L, E); None sums inside the scan.
        dt_init: see :class:`SelectiveScan`, or with `multihead` :class:`MultiheadScan`.
        multihead: Mamba-2's recurrence, with R heads of E / R channels that each share one dt and one A.

    Shapes: (batch, H, W, C) to (batch, H, W, C).

    Example:
        >>> from visionssm.ops import paths
        >>> SS2D(16, paths.cross)(torch.randn(2, 5, 7, 16)).shape
        torch.Size([2, 5, 7, 16])
    """

    def __init__(
        self,
        width: int,
        paths: PathBuilder,
        num_paths: int = 4,
        *,
        expansion: float = 2.0,
        state: int = 16,
        gate: bool = True,
        conv: bool = True,
        conv_bias: bool = True,
        dt_rank: int | None = None,
        activation: type[nn.Module] = nn.SiLU,
        gate_activation: type[nn.Module] = nn.SiLU,
        out_norm: nn.Module | None = None,
        out_activation: nn.Module | None = None,
        combine: nn.Module | None = None,
        dt_init: str = "mamba",
        multihead: bool = False,
    ) -> None:
        super().__init__()
        channels = int(expansion * width)
        self.paths = paths
        self.in_proj = nn.Linear(width, 2 * channels if gate else channels, bias=False)
        self.gate = gate_activation() if gate else None
        self.conv = (
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=conv_bias) if conv else nn.Identity()
        )
        self.activation = activation()
        scan_class = MultiheadScan if multihead else SelectiveScan
        self.scan = scan_class(channels, num_paths, state, dt_rank or -(-width // 16), dt_init)
        self.combine = combine
        self.out_norm = nn.LayerNorm(channels) if out_norm is None else out_norm
        self.out_activation = out_activation
        self.out_proj = nn.Linear(channels, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self._in_one_call(x)
        return self._step_by_step(x) if y is None else y

    def _in_one_call(self, x: Tensor) -> Tensor | None:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        conv, norm = self.conv, self.out_norm
        if (
            type(self) is not SS2D
            or self.gate is not None
            or self.out_activation is not None
            or self.combine is not None
        ):
            return None
        if (
            type(self.activation) is not nn.SiLU
            or type(norm) is not LayerNorm
            or has_hooks(norm)
            or not is_plain_conv(conv)
        ):
            return None
        bias = None if conv.bias is None else conv.bias[None]
        weights = plain_weights(self.in_proj, conv.weight.transpose(0, 1), bias, self.scan, self.out_proj)
        if weights is None:
            return None
        path = self.paths(*x.shape[1:3], device=x.device)
        return ss2d(x, weights, norm.weight, norm.bias, path, self.scan.constant_A is None, norm.eps)

    def _step_by_step(self, x: Tensor) -> Tensor:
        z = None
        if self.gate is None:
            x = self.in_proj(x)
        else:
            x, z = in_halves(self.in_proj, x)
        if type(self.activation) is nn.SiLU:
            x = conv_silu(self.conv, x)
        else:
            x = self.activation(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        dtype = x.dtype
        y = self.out_norm(self.scan_map(x))
        del x  # before z is made
        if self.out_activation is not None:
            y = self.out_activation(y)
        if z is not None and self.gate is not None:
            y = self._gated(y, z())
        return self.out_proj(y.to(dtype))

    def _gated(self, y: Tensor, z: Tensor) -> Tensor:
        """y * gate(z); in the place of y where the gate is a plain SiLU and nobody but this block has seen y."""
        assert self.gate is not None
        if (
            type(self.gate) is nn.SiLU
            and not has_hooks(self.gate)
            and not has_hooks(self.out_norm)
            and self.out_activation is None
        ):
            return gate_silu(y, z)
        return scale_by(self.gate(z), y)

    def scan_map(self, x: Tensor) -> Tensor:
        """The merged scan of a (batch, H, W, E) map, same shape, float32 or wider."""
        H, W = x.shape[1:3]
        y = self.scan(x.flatten(1, 2), self.paths(H, W, device=x.device), merge=self.combine is None)
        if self.combine is not None:
            y = self.combine(y)
        return y.unflatten(1, (H, W))


class SoftmaxNorm(nn.Module):
    """Output norm "softmax" of VMamba's ablation: softmax over the positions of a (batch, H, W, E) map."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x.flatten(1, 2), dim=1).view_as(x)


class ConvNorm(nn.Module):
    """Output norms "dwconv" and "layer_norm_dwconv" of VMamba's ablation: a depthwise 3x3 convolution without bias,
    after an optional LayerNorm.
    """

    def __init__(self, channels: int, layer_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels) if layer_norm else nn.Identity()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
