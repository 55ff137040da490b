"""The mixer of Vim: a causal convolution and a scan in each direction of a sequence, gated (arXiv 2401.09417)."""

import math

import torch
from torch import Tensor, nn

from .._messages import choose
from ..ops import depthwise_conv, gate_silu, path_scan, paths
from ..ops.mixers import vim_mixer
from .linear import has_hooks, in_halves
from .selective import SelectiveScan, plain_weights
from .tokens import Grid

DIRECTIONS = ("bidirectional", "bidirectional_shared", "forward")


class CausalConv(nn.Module):
    """Depthwise convolution over the steps up to the present one, then SiLU, for each direction of a sequence with its own taps.

    Direction 0 walks forwards and sees the steps l - taps + 1 .. l, direction 1 walks backwards and sees
    l .. l + taps - 1. The weights are in the order of the walk: the last tap belongs to the present step.

    Shapes: x (batch, L, E) to (batch, L, directions, E).

    Example:
        >>> CausalConv(8, directions=2)(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 2, 8])
    """

    def __init__(self, channels: int, directions: int, taps: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(directions, channels, 1, taps))
        self.bias = nn.Parameter(torch.empty(directions, channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As torch starts any convolution of this shape."""
        bound = self.weight.shape[-1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        directions, taps = self.weight.shape[0], self.weight.shape[-1]
        left = (taps - 1, 0)[:directions]
        out = depthwise_conv(
            x.unsqueeze(1),
            self.weight,
            self.bias,
            left=left,
            flip=(False, True)[:directions],
            activation="silu",
            transient=not has_hooks(self),
        )
        return out.squeeze(1)


class SharedScan(SelectiveScan):
    """Both directions with the same parameters but for A: Vim's ablation "bidirectional SSM"."""

    def __init__(self, channels: int, state: int, dt_rank: int, dt_init: str) -> None:
        super().__init__(channels, 1, state, dt_rank, dt_init)
        self.A_log = nn.Parameter(self.A_log.detach().repeat(2, 1, 1))

    def forward(self, x: Tensor, path: Tensor) -> Tensor:  # type: ignore[override]
        dt, B, C = (value.expand(-1, -1, 2, -1) for value in self.project(x))
        y = path_scan(
            x.to(dt.dtype),
            dt,
            self.A(),
            B,
            C,
            self.D.expand(2, -1),
            self.dt_bias.expand(2, -1),
            path,
            dt_weight=self.dt_weight.expand(2, -1, -1),
            out_dtype=torch.promote_types(dt.dtype, torch.float32),
        )
        assert isinstance(y, Tensor)
        return y


class VimMixer(nn.Module):
    """in_proj to x and z; convolution, SiLU and scan of x in each direction; their sum times SiLU(z); out_proj.

    Args:
        width: C.
        expansion: E / C.
        state: N.
        dt_rank: R; ceil(C / 16) by default.
        taps: of the causal convolution.
        directions: "bidirectional", each direction with its own convolution and scan parameters; "forward"; or
            "bidirectional_shared", where the directions differ in A only.
        halve: the mean of the two directions of "bidirectional" instead of their sum.
        layer_scale: start of a learned factor for each output channel; None for none.
        dt_init: see :class:`visionssm.layers.SelectiveScan`.

    Shapes: (batch, L, C) to (batch, L, C). The grid is not used: a sequence is all that this mixer sees.
    """

    def __init__(
        self,
        width: int,
        *,
        expansion: float = 2.0,
        state: int = 16,
        dt_rank: int | None = None,
        taps: int = 4,
        directions: str = "bidirectional",
        halve: bool = True,
        layer_scale: float | None = None,
        dt_init: str = "mamba",
    ) -> None:
        super().__init__()
        E = int(expansion * width)
        dt_rank = dt_rank or math.ceil(width / 16)
        self.bidirectional = choose("directions", directions, DIRECTIONS) != "forward"
        separate = 2 if directions == "bidirectional" else 1
        self.scale = 0.5 if halve and separate == 2 else 1.0
        self.in_proj = nn.Linear(width, 2 * E, bias=False)
        self.conv = CausalConv(E, separate, taps)
        shared = directions == "bidirectional_shared"
        self.scan = (
            SharedScan(E, state, dt_rank, dt_init) if shared else SelectiveScan(E, separate, state, dt_rank, dt_init)
        )
        self.out_proj = nn.Linear(E, width, bias=False)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        out = self._in_one_call(tokens)
        if out is None:
            out = self._step_by_step(tokens)
        return out if self.gamma is None else out * self.gamma

    def _in_one_call(self, tokens: Tensor) -> Tensor | None:
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or type(self) is not VimMixer
            or has_hooks(self.conv)
        ):
            return None
        weights = plain_weights(self.in_proj, self.conv.weight, self.conv.bias, self.scan, self.out_proj)
        if weights is None:
            return None
        return vim_mixer(tokens, weights, self.path(tokens), self.scan.constant_A is None, self.scale)

    def _step_by_step(self, tokens: Tensor) -> Tensor:
        x, z = in_halves(self.in_proj, tokens)
        dtype = x.dtype
        x = self.conv(x)  # what it was made from is not needed any more, nor is this after the scan
        y = self.walk(x)
        del x
        return self.out_proj(gate_silu(y, z(), self.scale).to(dtype))

    def walk(self, x: Tensor) -> Tensor:
        """The summed scans, without the halving: (batch, L, directions, E), convolved, to (batch, L, E)."""
        return self.scan(x.squeeze(2) if x.shape[2] == 1 else x, self.path(x))

    def path(self, x: Tensor) -> Tensor:
        """The (directions, L) walks over a sequence (batch, L, ...)."""
        return (paths.forward_backward if self.bidirectional else paths.raster)(1, x.shape[1], device=x.device)
