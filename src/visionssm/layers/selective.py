"""The selective part of every model here: from features to (dt, B, C), and the scan."""

import math

import torch
from torch import Tensor, nn

from ..ops import grouped_linear, linear, path_scan
from ..ops.mixers import MixerWeights
from .linear import has_hooks, is_plain_linear

_ALL = slice(None)
DT_INITS = ("mamba", "normal", "uniform", "linear")


class SelectiveScan(nn.Module):
    """Projects features to dt, B and C, separately for each path, and scans along the paths.

    Mamba's selective state space (arXiv 2312.00752) for K paths at once. Each path has its own parameters.

    Args:
        channels: E.
        paths: K.
        state: N, states per channel.
        dt_rank: R, rank of the step-size projection.
        dt_init: how dt, A and D start. "mamba": dt weight uniform in +-R^-0.5, dt bias such that softplus(bias) is
            log-uniform in [0.001, 0.1], A = -(1..N), D = 1. "normal" and "uniform" are VMamba's `ssm_init` "v1" and
            "v2"; "linear" is what training starts from where a model-wide pass treats both projections as any linear
            layer: truncated normal 0.02, bias 0.
        dt_bias_scale: what the dt bias is multiplied by before the scan; 2 where published weights expect it twice.

    Shapes:
        x: (batch, L, E), or (batch, L, K, E) when every path has its own input; path: (K, T) int32.
        Output: (batch, L, E) summed over the paths, or (batch, L, K, E) with merge=False. `which` takes some of the
            paths' parameters
        only, for a table of as many rows.

    dtypes: the projections follow autocast; A, D, the dt bias, the state and the sum over paths are float32.

    Example:
        >>> from visionssm.ops import paths
        >>> scan = SelectiveScan(channels=16, paths=4, state=1, dt_rank=2)
        >>> scan(torch.randn(2, 6 * 7, 16), paths.cross(6, 7)).shape
        torch.Size([2, 42, 16])
    """

    constant_A: Tensor | None

    def __init__(
        self,
        channels: int,
        paths: int,
        state: int,
        dt_rank: int,
        dt_init: str = "mamba",
        dt_bias_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if dt_init not in DT_INITS:
            raise ValueError(f"dt_init: got {dt_init!r}, choose from {', '.join(DT_INITS)}")
        self.state, self.dt_rank, self.dt_init, self.dt_bias_scale = state, dt_rank, dt_init, dt_bias_scale
        self.x_proj_weight = nn.Parameter(torch.empty(paths, dt_rank + 2 * state, channels))
        self.dt_weight = nn.Parameter(torch.empty(paths, channels, dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(paths, channels))
        self.A_log = nn.Parameter(torch.empty(paths, channels, state))
        self.D = nn.Parameter(torch.empty(paths, channels))
        # Set by `visionssm.export.fuse`, for inference: A itself.
        self.register_buffer("constant_A", None, persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all parameters anew by `dt_init`."""
        bound = self.x_proj_weight.shape[2] ** -0.5
        nn.init.uniform_(self.x_proj_weight, -bound, bound)
        nn.init.ones_(self.D)
        self.A_log.copy_(torch.log(torch.arange(1.0, self.state + 1)).expand_as(self.A_log))
        if self.dt_init == "mamba":
            nn.init.uniform_(self.dt_weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
            self.dt_bias.copy_(inverse_softplus_of_log_uniform(self.dt_bias.shape))
        elif self.dt_init == "normal":
            nn.init.normal_(self.A_log)
            nn.init.normal_(self.dt_weight, std=0.1)
            nn.init.normal_(self.dt_bias, std=0.1)
        elif self.dt_init == "uniform":
            nn.init.zeros_(self.A_log)
            nn.init.uniform_(self.dt_weight, 0, 0.1)
            nn.init.uniform_(self.dt_bias, 0, 0.1)
        else:
            nn.init.trunc_normal_(self.x_proj_weight, std=0.02)
            nn.init.trunc_normal_(self.dt_weight, std=0.02)
            nn.init.zeros_(self.dt_bias)

    def project(self, x: Tensor, which: slice = _ALL) -> tuple[Tensor, Tensor, Tensor]:
        """dt (batch, L, K, R), B and C (batch, L, K, N) of every path, in image order."""
        weight = self.x_proj_weight[which]
        if x.dim() == 3:
            projected = linear(x, weight.flatten(0, 1)).unflatten(-1, (weight.shape[0], -1))
        else:
            projected = grouped_linear(x, weight)
        dt, B, C = projected.split((self.dt_rank, self.state, self.state), dim=-1)
        return dt, B, C

    def A(self) -> Tensor:
        """A = -exp(A_log), (K, E, N), float32 or wider."""
        if self.constant_A is not None:
            return self.constant_A
        return -torch.exp(self.A_log if self.A_log.dtype == torch.float64 else self.A_log.float())

    def forward(self, x: Tensor, path: Tensor, merge: bool = True, which: slice = _ALL) -> Tensor:
        dt, B, C = self.project(x, which)
        A_or_log = self.A_log if self.constant_A is None else self.constant_A
        A, D, dt_bias, dt_weight = (
            value if which is _ALL else value[which] for value in (A_or_log, self.D, self.dt_bias, self.dt_weight)
        )
        y = path_scan(
            x.to(dt.dtype),
            dt,
            A,
            B,
            C,
            D,
            dt_bias if self.dt_bias_scale == 1 else dt_bias * self.dt_bias_scale,
            path,
            dt_weight=dt_weight,
            log_A=self.constant_A is None,
            merge=merge,
            # Under autocast the merged sum stays in the parameters' float32; a model cast to half precision stays in its own.
            out_dtype=torch.promote_types(dt.dtype, D.dtype),
        )
        assert isinstance(y, Tensor)
        return y


def plain_weights(
    in_proj: nn.Module, taps: Tensor, taps_bias: Tensor | None, scan: nn.Module, out_proj: nn.Module
) -> MixerWeights | None:
    """The parameters of a mixer whose projections and scan are nothing more; None where a hook, an adapter or a variant is."""
    if type(scan) is not SelectiveScan or has_hooks(scan) or scan.dt_bias_scale != 1:
        return None
    if not (is_plain_linear(in_proj) and is_plain_linear(out_proj)) or not in_proj.bias is out_proj.bias is None:
        return None
    A = scan.A_log if scan.constant_A is None else scan.constant_A
    projections = scan.x_proj_weight, scan.dt_weight, scan.dt_bias
    return MixerWeights(in_proj.weight, taps, taps_bias, *projections, A, scan.D, out_proj.weight)


def inverse_softplus_of_log_uniform(shape: torch.Size, low: float = 1e-3, high: float = 1e-1) -> Tensor:
    """The dt bias with which softplus(bias) is log-uniform in [low, high]."""
    dt = torch.exp(torch.rand(shape) * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=1e-4)
    return dt + torch.log(-torch.expm1(-dt))
