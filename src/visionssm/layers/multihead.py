"""The selective part of Mamba-2 models: several channels share one step size and one decay."""

import torch
from torch import Tensor, nn

from ..ops import linear, multihead_scan
from .selective import inverse_softplus_of_log_uniform

DT_INITS = ("mamba", "normal", "uniform")
_ALL = slice(None)


class MultiheadScan(nn.Module):
    """Projects features to dt of each head, B and C, separately for each path, and scans along the paths.

    Mamba-2's state space (arXiv 2405.21060) for K paths at once, as in VMamba's "m2" models: dt has no second projection.

    Args:
        channels: E, a multiple of the heads.
        paths: K.
        state: N, states per channel.
        heads: groups of channels with one dt and one A each.
        dt_init: how dt, A and D start. "mamba": dt bias such that softplus(bias) is log-uniform in [0.001, 0.1], A uniform in
            [-16, -1]. "normal" and "uniform" are VMamba's `ssm_init` "v1" (log -A standard normal, dt bias normal 0.1) and "v2"
            (A = -1, dt bias uniform in [0, 0.1]). D = 1 in all.

    Shapes:
        x: (batch, L, E); path: (K, T) int32. Output: (batch, L, E) summed over the paths, or (batch, L, K, E) with merge=False.
        `which` takes some of the paths' parameters only, for a table of as many rows.

    dtypes: the projection follows autocast; A, D, the dt bias, the state and the sum over paths are float32.

    Example:
        >>> from visionssm.ops import paths
        >>> scan = MultiheadScan(channels=16, paths=4, state=8, heads=2)
        >>> scan(torch.randn(2, 6 * 7, 16), paths.cross(6, 7)).shape
        torch.Size([2, 42, 16])
    """

    def __init__(self, channels: int, paths: int, state: int, heads: int, dt_init: str = "mamba") -> None:
        super().__init__()
        if dt_init not in DT_INITS:
            raise ValueError(f"dt_init: got {dt_init!r}, choose from {', '.join(DT_INITS)}")
        if channels % heads:
            raise ValueError(f"heads: got {heads}, need a divisor of the {channels} channels")
        self.state, self.heads, self.dt_init = state, heads, dt_init
        self.x_proj_weight = nn.Parameter(torch.empty(paths, heads + 2 * state, channels))
        self.dt_bias = nn.Parameter(torch.empty(paths, heads))
        self.A_log = nn.Parameter(torch.empty(paths, heads))
        self.D = nn.Parameter(torch.empty(paths, heads, channels // heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all parameters anew by `dt_init`."""
        bound = self.x_proj_weight.shape[2] ** -0.5
        nn.init.uniform_(self.x_proj_weight, -bound, bound)
        nn.init.ones_(self.D)
        if self.dt_init == "mamba":
            self.A_log.uniform_(1, 16).log_()
            self.dt_bias.copy_(inverse_softplus_of_log_uniform(self.dt_bias.shape))
        elif self.dt_init == "normal":
            nn.init.normal_(self.A_log)
            nn.init.normal_(self.dt_bias, std=0.1)
        else:
            nn.init.zeros_(self.A_log)
            nn.init.uniform_(self.dt_bias, 0, 0.1)

    def forward(self, x: Tensor, path: Tensor, merge: bool = True, which: slice = _ALL) -> Tensor:
        weight, A_log = self.x_proj_weight[which], self.A_log[which]
        projected = linear(x, weight.flatten(0, 1)).unflatten(-1, (weight.shape[0], -1))
        dt, B, C = projected.split((self.heads, self.state, self.state), dim=-1)
        return multihead_scan(
            x.to(dt.dtype),
            dt,
            -torch.exp(A_log if A_log.dtype == torch.float64 else A_log.float()),
            B,
            C,
            self.D[which].flatten(1),
            self.dt_bias[which],
            path,
            merge=merge,
            out_dtype=torch.promote_types(dt.dtype, self.D.dtype),
        )
