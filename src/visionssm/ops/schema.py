"""The registered operator: schema, shapes, autograd and FLOP count of `visionssm::path_scan`.

The kernels of the `torch`, `native` and `triton` back-ends sit behind one operator, so that torch.compile, torch.export
and the FLOP counter see a single node whatever runs it. A back-end is a module with

    checkpoint_steps(N)                   steps between two states that forward keeps for backward; 0: it keeps none
    forward(..., complete, save)          y, last_state, checkpoints
    backward(grad_y, grad_last, ..., checkpoints, complete)
                                          gradients, None where the input is None

`complete` says that every path visits every position, so that each output is written by the first path and need not be
zeroed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .backends import kernels
from .walk import state_dtype

_library = torch.library.Library("visionssm", "DEF")
_INPUTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, Tensor? dt_weight, Tensor path, "
    "Tensor? initial_state"
)
_OPTIONS = "bool softplus, bool zoh, bool merge, bool complete, str backend"
_library.define(
    f"path_scan({_INPUTS}, {_OPTIONS}, ScalarType out_dtype, bool save) "
    "-> (Tensor y, Tensor last_state, Tensor checkpoints)"
)
_library.define(
    f"path_scan_backward(Tensor grad_y, Tensor grad_last, {_INPUTS}, Tensor checkpoints, {_OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
N_INPUTS = 10


def _forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    D, dt_bias, dt_weight, path, initial_state, softplus, zoh, merge, complete, backend, out_dtype, save = rest
    return kernels(backend).forward(
        x, dt, A, B, C, D, dt_bias, dt_weight, path, initial_state,
        softplus=softplus, zoh=zoh, merge=merge, complete=complete, out_dtype=out_dtype, save=save,
    )  # fmt: skip


def _backward(grad_y: Tensor, grad_last: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *inputs, checkpoints, softplus, zoh, merge, complete, backend = rest
    gradients = kernels(backend).backward(
        grad_y, grad_last, x, *inputs, checkpoints, softplus=softplus, zoh=zoh, merge=merge, complete=complete
    )
    shapes = _gradient_shapes(x, *inputs)
    return tuple(
        x.new_empty(0) if shape is None else gradient.to(dtype)
        for gradient, (shape, dtype) in zip(gradients, shapes, strict=True)
    )


def _gradient_shapes(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Any,
    dt_bias: Any,
    dt_weight: Any,
    path: Tensor,
    state: Any,
) -> list[tuple[Any, torch.dtype]]:
    return [
        (None, x.dtype) if value is None else (value.shape, value.dtype)
        for value in (x, dt, A, B, C, D, dt_bias, dt_weight, state)
    ]


def checkpoint_shape(x: Tensor, A: Tensor, path: Tensor, backend: str, save: bool) -> tuple[Any, ...]:
    """(batch, K, ceil(T / checkpoint_steps(N)), N, E), or (0,) where nothing is kept."""
    K, E, N = A.shape
    steps = kernels(backend).checkpoint_steps(N)
    if not save or steps == 0:
        return (0,)
    return (x.shape[0], K, (path.shape[1] + steps - 1) // steps, N, E)


def _fake_forward(x: Tensor, dt: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    path, backend, merge, out_dtype, save = rest[5], rest[11], rest[9], rest[12], rest[13]
    K, E, N = A.shape
    shape = (x.shape[0], x.shape[1], E) if merge else (x.shape[0], x.shape[1], K, E)
    exact = state_dtype(x.dtype)
    return (
        x.new_empty(shape, dtype=out_dtype),
        x.new_empty((x.shape[0], K, E, N), dtype=exact),
        x.new_empty(checkpoint_shape(x, A, path, backend, save), dtype=exact),
    )


def _fake_backward(grad_y: Tensor, grad_last: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    x = rest[0]
    return tuple(
        x.new_empty(0 if shape is None else shape, dtype=dtype) for shape, dtype in _gradient_shapes(*rest[:10])
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:N_INPUTS], output[2])
    ctx.options = inputs[N_INPUTS:15]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    *inputs, checkpoints = ctx.saved_tensors
    x, A = inputs[0], inputs[2]
    merge = ctx.options[2]
    K, E, N = A.shape
    if grad_y is None:
        grad_y = x.new_zeros((x.shape[0], x.shape[1], E) if merge else (x.shape[0], x.shape[1], K, E))
    if grad_last is None:
        grad_last = x.new_zeros((x.shape[0], K, E, N), dtype=state_dtype(x.dtype))
    gradients = torch.ops.visionssm.path_scan_backward(grad_y, grad_last, *inputs, checkpoints, *ctx.options)
    *head, state = (None if value is None else g for value, g in zip(inputs[:8] + inputs[9:], gradients, strict=True))
    return (*head, None, state, *(None,) * 7)


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
