"""The operator in plain torch with about 2 sqrt(T) sequential steps instead of T, on any device.

The walk is cut into chunks. All chunks advance together, one step at a time, first from zero to learn what each adds to
the state, then again from the right state. Nothing of size (L, E, N) outlives one step. The backward runs the same
scheme in reverse and rebuilds the states inside a chunk from every eighth one.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .discretize import input_coefficient, input_coefficient_gradients
from .tensors import ScanTensors
from .walk import gather_steps, scatter_steps, state_dtype

REBUILD_STEPS = 8


def checkpoint_steps(N: int) -> int:
    """None are kept: backward recomputes all states."""
    return 0


class _Chunks(NamedTuple):
    """Inputs in walking order, cut into M chunks of S steps; the tail is filled with steps that change nothing."""

    x: Tensor  # (batch, K, M, S, E)
    delta: Tensor  # (batch, K, M, S, E)
    B: Tensor  # (batch, K, M, S, N)
    C: Tensor  # (batch, K, M, S, N)
    A: Tensor  # (K, 1, E, N)
    zoh: bool

    def advance(self, state: Tensor, s: int) -> Tensor:
        """The states (batch, K, M, E, N) of all chunks after their step s."""
        return self.decay(s) * state + self.drive(s)

    def decay(self, s: int) -> Tensor:
        return torch.exp(self.delta[:, :, :, s, :, None] * self.A)

    def drive(self, s: int) -> Tensor:
        step = self.delta[:, :, :, s, :, None]
        gain = self.B[:, :, :, s, None, :] * self.x[:, :, :, s, :, None]
        return input_coefficient(step, self.A, self.zoh) * gain

    def total_decay(self) -> Tensor:
        """(batch, K, M, E, N): what one whole chunk leaves of the state that enters it."""
        return torch.exp(self.delta.sum(3)[..., None] * self.A)


def _cut(steps: Tensor, size: int) -> Tensor:
    """(batch, K, T, X) -> (batch, K, M, S, X), zeros at the end."""
    missing = -steps.shape[2] % size
    return F.pad(steps, (0, 0, 0, missing)).unflatten(2, (-1, size))


def _project(dt_steps: Tensor, dt_weight: Tensor | None, dt_bias: Tensor | None) -> Tensor:
    if dt_weight is not None:
        dt_steps = torch.einsum("bktr,ker->bkte", dt_steps, dt_weight.to(dt_steps.dtype))
    return dt_steps if dt_bias is None else dt_steps + dt_bias.to(dt_steps.dtype)[None, :, None]


def _chunks(
    x_steps: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, path: Tensor, zoh: bool, size: int
) -> _Chunks:
    dtype = x_steps.dtype
    return _Chunks(
        x=_cut(x_steps, size),
        delta=_cut(delta, size),
        B=_cut(gather_steps(B.to(dtype), path), size),
        C=_cut(gather_steps(C.to(dtype), path), size),
        A=A.to(dtype)[:, None],
        zoh=zoh,
    )


def _carry(own: Tensor, decay: Tensor, first: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
    """Passes a state through the chunks: what enters each (batch, K, M, E, N), and what leaves the last."""
    entering = []
    state = first
    order = range(own.shape[2])
    for m in reversed(order) if reverse else order:
        entering.append(state)
        state = decay[:, :, m] * state + own[:, :, m]
    if reverse:
        entering.reverse()
    return torch.stack(entering, dim=2), state


def _enter(chunks: _Chunks, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state that enters each chunk, and the last state of the walk."""
    batch, K, M, S, E = chunks.x.shape
    zero = chunks.x.new_zeros(batch, K, M, E, chunks.A.shape[-1])
    own = zero
    for s in range(S):
        own = chunks.advance(own, s)
    first = zero[:, :, 0] if initial_state is None else initial_state.to(zero.dtype)
    return _carry(own, chunks.total_decay(), first)


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
    T = path.shape[1]
    size = max(1, math.isqrt(T))
    x_steps = gather_steps(x.to(dtype), path)
    delta = _project(gather_steps(dt.to(dtype), path), dt_weight, dt_bias)
    chunks = _chunks(x_steps, F.softplus(delta) if softplus else delta, A, B, C, path, zoh, size)
    state, last = _enter(chunks, initial_state)
    outputs = []
    for s in range(size):
        state = chunks.advance(state, s)
        outputs.append((state * chunks.C[:, :, :, s, None, :]).sum(-1))
    y = torch.stack(outputs, dim=3).flatten(2, 3)[:, :, :T]
    if D is not None:
        y = y + D.to(dtype)[None, :, None] * x_steps
    y = scatter_steps(y, path, x.shape[1])
    return (y.sum(2) if merge else y).to(out_dtype), last


def forward(tensors: ScanTensors, *, complete: bool, save: bool, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`scan` behind the registered operator; backward recomputes everything, so nothing is kept."""
    y, last = scan(tensors, **options)
    return y, last, y.new_empty(0, dtype=last.dtype)


def backward(
    grad_y: Tensor,
    grad_last: Tensor,
    tensors: ScanTensors,
    checkpoints: Tensor,
    *,
    softplus: bool,
    zoh: bool,
    merge: bool,
    complete: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of (x, dt, A, B, C, D, dt_bias, dt_weight, initial_state); None where the input is None."""
    x, dt, A, B, C, D, dt_bias, dt_weight, path, initial_state = tensors
    dtype = state_dtype(x.dtype)
    L, T = x.shape[1], path.shape[1]
    size = max(1, math.isqrt(T))
    x_steps = gather_steps(x.to(dtype), path)
    dt_steps = gather_steps(dt.to(dtype), path)
    raw = _project(dt_steps, dt_weight, dt_bias)
    chunks = _chunks(x_steps, F.softplus(raw) if softplus else raw, A, B, C, path, zoh, size)
    dy_steps = gather_steps(grad_y.to(dtype), path)

    dx, ddelta, dA, dB, dC, dfirst = _walk_back(chunks, _cut(dy_steps, size), grad_last.to(dtype), initial_state)
    dx, ddelta, dB, dC = (steps.flatten(2, 3)[:, :, :T] for steps in (dx, ddelta, dB, dC))
    draw = ddelta * torch.sigmoid(raw) if softplus else ddelta
    dD = None
    if D is not None:
        dD = (dy_steps * x_steps).sum((0, 2))
        dx = dx + D.to(dtype)[None, :, None] * dy_steps
    ddt_bias = None if dt_bias is None else draw.sum((0, 2))
    ddt_weight = None
    if dt_weight is not None:
        ddt_weight = torch.einsum("bkte,bktr->ker", draw, dt_steps)
        draw = torch.einsum("bkte,ker->bktr", draw, dt_weight.to(dtype))
    dx_map = scatter_steps(dx, path, L)
    return (
        dx_map.sum(2) if x.dim() == 3 else dx_map,
        scatter_steps(draw, path, L),
        dA,
        scatter_steps(dB, path, L),
        scatter_steps(dC, path, L),
        dD,
        ddt_bias,
        ddt_weight,
        None if initial_state is None else dfirst,
    )


def _walk_back(chunks: _Chunks, dy: Tensor, grad_last: Tensor, initial_state: Tensor | None) -> tuple[Tensor, ...]:
    """The adjoint recurrence g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}, and all that is read off it."""
    size = chunks.x.shape[3]
    state, _ = _enter(chunks, initial_state)
    adjoint = torch.zeros_like(state)
    for s in reversed(range(size)):
        adjoint = chunks.decay(s) * (adjoint + chunks.C[:, :, :, s, None, :] * dy[:, :, :, s, :, None])
    carried, dfirst = _carry(adjoint, chunks.total_decay(), grad_last, reverse=True)

    kept = []
    for s in range(size):
        if s % REBUILD_STEPS == 0:
            kept.append(state)
        state = chunks.advance(state, s)

    dA = torch.zeros_like(chunks.A)
    columns: list[tuple[Tensor, ...]] = []
    for start in reversed(range(0, size, REBUILD_STEPS)):
        stop = min(start + REBUILD_STEPS, size)
        before = [kept[start // REBUILD_STEPS]]
        for s in range(start, stop - 1):
            before.append(chunks.advance(before[-1], s))
        for s in reversed(range(start, stop)):
            h, decay = before[s - start], chunks.decay(s)
            x, delta = chunks.x[:, :, :, s, :, None], chunks.delta[:, :, :, s, :, None]
            B, C, out = chunks.B[:, :, :, s, None, :], chunks.C[:, :, :, s, None, :], dy[:, :, :, s, :, None]
            coefficient = input_coefficient(delta, chunks.A, chunks.zoh)
            by_delta, by_A = input_coefficient_gradients(delta, chunks.A, chunks.zoh)
            g = carried + C * out
            after = decay * h + coefficient * B * x
            held = g * decay * h
            driven = g * B * x
            columns.append(
                (
                    (g * coefficient * B).sum(-1),
                    (held * chunks.A + driven * by_delta).sum(-1),
                    (g * coefficient * x).sum(-2),
                    (after * out).sum(-2),
                )
            )
            dA = dA + (held * delta + driven * by_A).sum((0, 2))[:, None]
            carried = decay * g
    columns.reverse()
    dx, ddelta, dB, dC = (torch.stack(column, dim=3) for column in zip(*columns, strict=True))
    return dx, ddelta, dA[:, 0], dB, dC, dfirst
