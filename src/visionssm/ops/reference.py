"""The definition of the operator: plain torch, one step after the other, differentiable, any float dtype.

Every other back-end is tested against this file. For every image, path k and channel e, over the steps t with p =
path[k, t]:

    delta = softplus(dt[p, k, e] + dt_bias[k, e])
    h[n]  = exp(delta * A[k, e, n]) * h[n] + coefficient * B[p, k, n] * x[p, e]
    y[p, e] += sum_n C[p, k, n] * h[n] + D[k, e] * x[p, e]

with coefficient = delta ("euler", which all published weights use) or (exp(delta A) - 1) / A ("zoh", which the papers
print). On a step over padding x = dt = B = C = 0: the state decays by exp(softplus(dt_bias) * A) and nothing is
written.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .discretize import input_coefficient
from .tensors import ScanTensors
from .walk import gather_steps, scatter_steps, state_dtype


def scan(
    tensors: ScanTensors,
    *,
    softplus: bool,
    zoh: bool,
    merge: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Returns y, (batch, L, E) merged or (batch, L, K, E), and the last state (batch, K, E, N)."""
    x, dt, A, B, C, D, dt_bias, dt_weight, path, initial_state = tensors
    dtype = state_dtype(x.dtype)
    A = A.to(dtype)
    x_steps = gather_steps(x.to(dtype), path)
    delta = gather_steps(dt.to(dtype), path)
    if dt_weight is not None:
        delta = torch.einsum("bktr,ker->bkte", delta, dt_weight.to(dtype))
    if dt_bias is not None:
        delta = delta + dt_bias.to(dtype)[None, :, None]
    if softplus:
        delta = F.softplus(delta)
    B_steps, C_steps = gather_steps(B.to(dtype), path), gather_steps(C.to(dtype), path)

    batch, K, T, E = x_steps.shape
    state = x_steps.new_zeros(batch, K, E, A.shape[2]) if initial_state is None else initial_state.to(dtype)
    outputs = []
    for t in range(T):
        step = delta[:, :, t, :, None]
        drive = input_coefficient(step, A, zoh) * B_steps[:, :, t, None, :] * x_steps[:, :, t, :, None]
        state = torch.exp(step * A) * state + drive
        outputs.append((state * C_steps[:, :, t, None, :]).sum(-1))
    y = torch.stack(outputs, dim=2)
    if D is not None:
        y = y + D.to(dtype)[None, :, None] * x_steps
    y = scatter_steps(y, path, x.shape[1])
    return (y.sum(2) if merge else y).to(out_dtype), state
