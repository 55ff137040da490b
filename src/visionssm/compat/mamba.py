"""mamba_ssm's `Mamba` module, with its parameter names, on our operator."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .mamba_inner import mamba_inner_fn


class Mamba(nn.Module):
    """A Mamba mixer (arXiv 2312.00752) over sequences: (batch, L, d_model) to the same.

    State dicts are those of mamba_ssm: `in_proj`, `conv1d`, `x_proj`, `dt_proj`, `A_log`, `D`, `out_proj`. Token-by-token
    generation (`step`, `allocate_inference_cache`) is not here: images and features come whole.

    Args:
        d_model: width of input and output.
        d_state: N.
        d_conv: width of the convolution.
        expand: E / d_model.
        dt_rank: R; "auto" is ceil(d_model / 16).
        dt_min, dt_max, dt_init_floor: softplus of the step bias starts log-uniform between the first two, and at least at
            the third.
        dt_init: "random", uniform in +- dt_scale R^-0.5, or "constant", dt_scale R^-0.5.
        dt_scale: see dt_init.
        conv_bias, bias: of the convolution; of the input and output projections.
        use_fast_path, layer_idx: taken because callers pass them, and of no effect on a forward pass.
        device, dtype: of the parameters; A_log and D are float32 whatever dtype says.

    Example:
        >>> Mamba(d_model=16, d_state=8)(torch.randn(2, 10, 16)).shape
        torch.Size([2, 10, 16])
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int | float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dt_init not in ("random", "constant"):
            raise ValueError(f"dt_init: got {dt_init!r}, choose from random, constant")
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        E = int(expand * d_model)
        R = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner, self.dt_rank, self.layer_idx = E, R, layer_idx
        self.in_proj = nn.Linear(d_model, 2 * E, bias=bias, **where)
        self.conv1d = nn.Conv1d(E, E, d_conv, groups=E, padding=d_conv - 1, bias=conv_bias, **where)
        self.x_proj = nn.Linear(E, R + 2 * d_state, bias=False, **where)
        self.dt_proj = nn.Linear(R, E, bias=True, **where)
        states = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
        self.A_log = nn.Parameter(states.log().repeat(E, 1))
        self.D = nn.Parameter(torch.ones(E, device=device))
        self.out_proj = nn.Linear(E, d_model, bias=bias, **where)
        self._init_step_size(dt_init, dt_scale * R**-0.5, dt_min, dt_max, dt_init_floor)
        # Training code for mamba_ssm looks for these marks.
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def _init_step_size(self, kind: str, scale: float, low: float, high: float, floor: float) -> None:
        if kind == "constant":
            nn.init.constant_(self.dt_proj.weight, scale)
        else:
            nn.init.uniform_(self.dt_proj.weight, -scale, scale)
        uniform = torch.rand(self.d_inner, device=self.dt_proj.bias.device)
        dt = torch.exp(uniform * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=floor)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, hidden_states: Tensor, inference_params: object = None) -> Tensor:
        if inference_params is not None:
            raise ValueError("inference_params: token-by-token generation is not supported, only whole sequences")
        return mamba_inner_fn(
            self.in_proj(hidden_states).transpose(1, 2),
            self.conv1d.weight,
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.out_proj.weight,
            self.out_proj.bias,
            -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32))),
            D=self.D,
            delta_bias=self.dt_proj.bias,
        )
