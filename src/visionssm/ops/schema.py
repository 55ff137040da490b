"""The registered operator: schema, shapes, autograd and FLOP count of `visionssm::path_scan`.

The kernels of the `torch`, `native` and `triton` back-ends sit behind one operator, so that torch.compile, torch.export
and the FLOP counter see a single node whatever runs it. A back-end is a module with

    checkpoint_steps(N)                   steps between two states that forward keeps for backward; 0: it keeps none
    forward(..., complete, save)          y, last_state, checkpoints
    backward(grad_y, grad_last, ..., checkpoints, complete)
                                          gradients, None where the input is None

`complete` says that every path visits every position, so that each output is written by the first path and need not be
zeroed. `mirrored` says that path k + K / 2 is path k from its end; only the `triton` back-end can use that, in forward.
`log_A` says that A is given as log(-A); only the `native` back-end takes it, in forward without gradients.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .backends import kernels
from .tensors import ScanTensors, without_autocast
from .walk import state_dtype

_library = torch.library.Library("visionssm", "DEF")
_INPUTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, Tensor? dt_weight, Tensor path, "
    "Tensor? initial_state"
)
_OPTIONS = "bool softplus, bool zoh, bool merge, bool complete, bool mirrored, str backend"
_library.define(
    f"path_scan({_INPUTS}, {_OPTIONS}, ScalarType out_dtype, bool save, bool log_A=False) "
    "-> (Tensor y, Tensor last_state, Tensor checkpoints)"
)
_library.define(
    f"path_scan_backward(Tensor grad_y, Tensor grad_last, {_INPUTS}, Tensor checkpoints, {_OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
N_INPUTS = len(ScanTensors._fields)
N_OPTIONS = 6


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    tensors = ScanTensors(*arguments[:N_INPUTS])
    softplus, zoh, merge, complete, mirrored, backend, out_dtype, save, *log_A = arguments[N_INPUTS:]
    more = {"mirrored": mirrored} if backend == "triton" else {"log_A": True} if any(log_A) else {}
    with without_autocast(tensors.x.device):
        return kernels(backend).forward(
            tensors, softplus=softplus, zoh=zoh, merge=merge, complete=complete, out_dtype=out_dtype, save=save, **more
        )


def _backward(grad_y: Tensor, grad_last: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    tensors = ScanTensors(*arguments[:N_INPUTS])
    checkpoints, softplus, zoh, merge, complete, _, backend = arguments[N_INPUTS:]
    with without_autocast(tensors.x.device):
        gradients = kernels(backend).backward(
            grad_y, grad_last, tensors, checkpoints, softplus=softplus, zoh=zoh, merge=merge, complete=complete
        )
    shapes = _gradient_shapes(tensors)
    return tuple(
        tensors.x.new_empty(0) if shape is None else gradient.to(dtype)
        for gradient, (shape, dtype) in zip(gradients, shapes, strict=True)
    )


def _gradient_shapes(tensors: ScanTensors) -> list[tuple[Any, torch.dtype]]:
    """Shape and dtype of the gradient by each tensor but the path; None for the shape where there is no tensor."""
    values = (value for name, value in tensors._asdict().items() if name != "path")
    return [(None, tensors.x.dtype) if value is None else (value.shape, value.dtype) for value in values]


def checkpoint_shape(tensors: ScanTensors, backend: str, save: bool) -> tuple[Any, ...]:
    """(batch, K, ceil(T / checkpoint_steps(N)), N, E), or (0,) where nothing is kept."""
    K, E, N = tensors.A.shape
    steps = kernels(backend).checkpoint_steps(N)
    if not save or steps == 0:
        return (0,)
    return (tensors.x.shape[0], K, (tensors.path.shape[1] + steps - 1) // steps, N, E)


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    tensors = ScanTensors(*arguments[:N_INPUTS])
    _, _, merge, _, _, backend, out_dtype, save = arguments[N_INPUTS : N_INPUTS + N_OPTIONS + 2]
    x, (K, E, N) = tensors.x, tensors.A.shape
    exact = state_dtype(x.dtype)
    return (
        x.new_empty((*x.shape[:2], E) if merge else (*x.shape[:2], K, E), dtype=out_dtype),
        x.new_empty((x.shape[0], K, E, N), dtype=exact),
        x.new_empty(checkpoint_shape(tensors, backend, save), dtype=exact),
    )


def _fake_backward(grad_y: Tensor, grad_last: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    shapes = _gradient_shapes(ScanTensors(*arguments[:N_INPUTS]))
    return tuple(grad_y.new_empty(0 if shape is None else shape, dtype=dtype) for shape, dtype in shapes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:N_INPUTS], output[2])
    ctx.options = inputs[N_INPUTS : N_INPUTS + N_OPTIONS]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    *inputs, checkpoints = ctx.saved_tensors
    tensors = ScanTensors(*inputs)
    x, (K, E, N), merge = tensors.x, tensors.A.shape, ctx.options[2]
    if grad_y is None:
        grad_y = x.new_zeros((*x.shape[:2], E) if merge else (*x.shape[:2], K, E))
    if grad_last is None:
        grad_last = x.new_zeros((x.shape[0], K, E, N), dtype=state_dtype(x.dtype))
    gradients = iter(torch.ops.visionssm.path_scan_backward(grad_y, grad_last, *tensors, checkpoints, *ctx.options))
    by_input = {name: None if name == "path" else next(gradients) for name in tensors._fields}
    by_tensor = [None if value is None else by_input[name] for name, value in tensors._asdict().items()]
    return (*by_tensor, *(None,) * (N_OPTIONS + 3))


_library.impl("path_scan", _forward, "CompositeExplicitAutograd")
_library.impl("path_scan_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("visionssm::path_scan", _fake_forward, lib=_library)
torch.library.register_fake("visionssm::path_scan_backward", _fake_backward, lib=_library)
torch.library.register_autograd("visionssm::path_scan", _differentiate, setup_context=_setup_context, lib=_library)


def scan_flops(batch: int, length: int, K: int, E: int, N: int, R: int = 0) -> int:
    """FLOPs of one call: two for each multiply-add that the field counts, 9 L K E N + L K E (+ L K E R for a low-rank
    dt).

    The nine per state are VMamba's rule (arXiv 2401.10166): half of what this returns, plus half of what torch counts
    for matrix products and convolutions, is the published GFLOPs of these models.

    Example:
        >>> scan_flops(batch=1, length=196, K=4, E=384, N=1, R=24)
        20471808
    """
    return 2 * batch * length * K * E * (9 * N + 1 + R)


def _count(x_shape: Any, dt_shape: Any, A_shape: Any, dt_weight_shape: Any, path_shape: Any) -> int:
    K, E, N = A_shape
    return scan_flops(x_shape[0], path_shape[1], K, E, N, 0 if dt_weight_shape is None else dt_weight_shape[2])


@register_flop_formula(torch.ops.visionssm.path_scan)
def _forward_flops(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, bias: Any, weight: Any, path: Any, *_: Any, **__: Any
) -> int:
    return _count(x, dt, A, weight, path)


@register_flop_formula(torch.ops.visionssm.path_scan_backward)
def _backward_flops(
    gy: Any, gl: Any, x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, bias: Any, weight: Any, path: Any, *_: Any, **__: Any
) -> int:  # fmt: skip
    return 2 * _count(x, dt, A, weight, path)
