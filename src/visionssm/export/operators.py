"""Our operators in terms of torch's own, so that an exported program needs no code of this library.

The recurrence becomes one `scan` node of torch's higher-order operators, which keeps every size dynamic and becomes one
`Scan` node in ONNX, where an unrolled loop would have a node for every step.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.scan import scan
from torch.export import ExportedProgram

from ..ops.discretize import input_coefficient
from ..ops.tensors import ScanTensors
from ..ops.walk import gather_steps, scatter_steps, state_dtype


def decompose(program: ExportedProgram) -> ExportedProgram:
    """The same program without operators of this library.

    Args:
        program: of a model whose parameters need no gradient (a differentiable scan has more outputs than `Scan`).
    """
    return program.run_decompositions(_DECOMPOSITIONS)


def _path_scan(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`visionssm::path_scan` for inference."""
    tensors = ScanTensors(*arguments[: len(ScanTensors._fields)])
    softplus, zoh, merge, _, _, _, out_dtype, _ = arguments[len(ScanTensors._fields) :]
    x, dt, A, B, C, D, dt_bias, dt_weight, path, initial_state = tensors
    dtype = state_dtype(x.dtype)
    A = A.to(dtype)
    steps = gather_steps(x.to(dtype), path)
    delta = gather_steps(dt.to(dtype), path)
    if dt_weight is not None:
        delta = delta @ dt_weight.to(dtype).transpose(1, 2)
    if dt_bias is not None:
        delta = delta + dt_bias.to(dtype).unsqueeze(1)
    if softplus:
        delta = F.softplus(delta)
    B_steps, C_steps = (gather_steps(value.to(dtype), path) for value in (B, C))

    def step(state: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        delta, x, B, C = inputs  # (batch, K, E), and (batch, K, N)
        delta, x = delta.unsqueeze(3), x.unsqueeze(3)
        state = torch.exp(delta * A) * state + input_coefficient(delta, A, zoh) * x * B.unsqueeze(2)
        return state, (state * C.unsqueeze(2)).sum(3)

    K, E, N = A.shape
    start = steps.new_zeros(steps.shape[0], K, E, N) if initial_state is None else initial_state.to(dtype)
    over_time = tuple(value.permute(2, 0, 1, 3) for value in (delta, steps, B_steps, C_steps))
    last, outputs = scan(step, start, over_time, dim=0)
    y = outputs.permute(1, 2, 0, 3)
    if D is not None:
        y = y + D.to(dtype).unsqueeze(1) * steps
    y = scatter_steps(y, path, x.shape[1])
    return (y.sum(2) if merge else y).to(out_dtype), last, x.new_empty(0)


_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {torch.ops.visionssm.path_scan.default: _path_scan}
