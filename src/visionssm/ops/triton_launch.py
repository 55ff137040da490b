"""The `triton` back-end: launches of the kernels in `triton_forward`, `_pair` and `_backward`. States are (..., N, E), float32."""

import os
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .tensors import ScanTensors
from .triton_plan import (
    WALK_STATES,
    Call,
    backward_blocks,
    checkpoint_steps,
    forward_blocks,
    pair_blocks,
    power_of_2,
    prepare,
    strides,
)

__all__ = ["backward", "checkpoint_steps", "forward", "unavailable"]


def unavailable(device: str) -> str | None:
    """Why this back-end cannot serve tensors of a kind of device, as the end of a sentence; None if it can."""
    if find_spec("triton") is None:
        return "needs Triton, which is not installed (pip install triton)"
    if device in ("cuda", "xpu"):
        return None
    if device != "cpu":
        return f"runs on NVIDIA, AMD and Intel GPUs, got {device}"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "runs on GPUs; on CPU tensors only in Triton's slow interpreter, with TRITON_INTERPRET=1 set before Python starts"
    if not _interpreted():
        return "was compiled for GPUs before TRITON_INTERPRET=1 was set; set it before Python starts"
    return None


@lru_cache
def _kernel(name: str) -> Any:
    """A kernel by its name; the first import of Triton."""
    from . import triton_backward, triton_forward, triton_pair

    return next(getattr(m, name) for m in (triton_forward, triton_pair, triton_backward) if hasattr(m, name))


def _interpreted() -> bool:
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(_kernel("tile_forward"), InterpretedFunction)


def _launch(call: Call, name: str, programs: int, warps: int, **arguments: Any) -> None:
    """Runs a kernel with those of the call's arguments, and of these, that it names."""
    kernel = _kernel(name)
    arguments = call.arguments | arguments
    options = {"num_warps": warps}
    if call.device.type == "cuda":
        options["enable_fp_fusion"] = True  # without it, multiply-adds are two instructions
    kernel[(programs,)](**{name: arguments[name] for name in kernel.arg_names}, **options)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return getattr(torch, device.type).device(device) if device.type in ("cuda", "xpu") else nullcontext()


class _Map(NamedTuple):
    """Where the kernels write a map, y or the gradient of x."""

    target: Tensor
    merged: Tensor  # the float32 sum of the paths before the last, or all parts of the sum
    parts: int
    constants: dict[str, bool]


def _new_map(call: Call, merge: bool, dtype: torch.dtype) -> _Map:
    """Three ways to add up paths without atomics: nothing to add; all paths in one program; parts, and `sum_paths`."""
    batch, L, E = call.batch, call.L, call.E
    K = call.K // 2 if call.merge.pair else call.K

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (torch.empty if call.complete else torch.zeros)(shape, dtype=dtype, device=call.device)

    if not merge or K == 1:
        target = new(batch, L, E, dtype=dtype) if merge else new(batch, L, K, E, dtype=dtype)
        return _Map(target, target, 1, {"MERGE": False, "ZEROED": False})
    if call.merge.serial:
        merged = new(batch, L, E)
        target = merged if dtype == torch.float32 or not call.complete else torch.empty_like(merged, dtype=dtype)
        return _Map(target, merged, 1, {"MERGE": True, "ZEROED": not call.complete})
    parts = new(K, batch, L, E)
    return _Map(parts.permute(1, 2, 0, 3), parts, K, {"MERGE": False, "ZEROED": False})


def _finish_map(call: Call, written: _Map, dtype: torch.dtype) -> Tensor:
    if written.parts == 1:
        return written.target.to(dtype)
    total = torch.empty_like(written.merged[0], dtype=dtype)
    sizes = {"size": total.numel(), "COUNT": written.parts, "BLOCK": 1024}
    _launch(call, "sum_paths", -(-total.numel() // 1024), 4, parts=written.merged, total=total, **sizes)
    return total


def _scan_chunks(call: Call, reverse: bool, **states: Tensor | None) -> None:
    programs = call.batch * call.K * call.N * -(-call.E // 64)
    _launch(call, "chunk_scan", programs, 2, **states, BE=64, REVERSE=reverse)


def forward(
    tensors: ScanTensors,
    *,
    softplus: bool,
    zoh: bool,
    merge: bool,
    complete: bool,
    mirrored: bool,
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state (batch, K, E, N), and the states (batch, K, ceil(T / steps), N, E) kept for backward."""
    x, initial_state = tensors.x, tensors.initial_state
    if tensors.A.shape[2] >= WALK_STATES:  # unpacking 16-bit values would cost `walk_forward` a third of its time
        tensors = tensors._replace(B=tensors.B.float(), C=tensors.C.float())
    call = prepare(tensors, softplus=softplus, zoh=zoh, complete=complete, mirrored=merge and mirrored)
    kept = save or call.merge.pair
    checkpoints = call.new_states(call.arguments["kept"], call.N) if kept else torch.empty(0, device=x.device)
    if call.batch == 0:
        y = x.new_empty((0, call.L, call.E) if merge else (0, call.L, call.K, call.E), dtype=out_dtype)
        return y, call.new_states(call.N).transpose(2, 3).contiguous(), checkpoints
    written = _new_map(call, merge, out_dtype)
    start = None if initial_state is None else initial_state.transpose(2, 3).contiguous()
    with _on(x.device):
        if call.chunks > 1:
            states, delta_sums = call.new_states(call.chunks, call.N), call.new_states(call.chunks)
            _launch_forward(call, start=None, last=states, delta_sums=delta_sums, checkpoints=checkpoints)
            _scan_chunks(call, reverse=False, states=states, delta_sums=delta_sums, start=start)
            start = states
        last = call.new_states(call.chunks, call.N)
        found: dict[str, Any] = {"start": start, "last": last, "delta_sums": None, "checkpoints": checkpoints}
        if call.merge.pair:
            _launch_forward(call, second_half=True, **found)
            _launch_pairs(call, written, save, **found)
        else:
            _launch_forward(call, written, **found)
        y = _finish_map(call, written, out_dtype)
    return y, last[:, :, -1].transpose(2, 3).contiguous(), checkpoints if save else checkpoints.new_empty(0)


def _launch_forward(
    call: Call, written: _Map | None = None, second_half: bool = False, *, checkpoints: Tensor, **states: Tensor | None
) -> None:
    """The pass that writes. With nowhere to write, one that finds states only: what each chunk alone does to the state, or,
    of the second half of the paths, those that enter each tile.
    """
    arguments: dict[str, Any] = {"WRITE": written is not None, "SECOND_HALF": second_half}
    if written is None:
        arguments |= {"SAVE": second_half, "MERGE": False, "ZEROED": False, "y": None, "merged": None}
        arguments |= {"stride_yb": 0, "stride_yl": 0, "stride_yk": 0}
    else:
        arguments |= {"SAVE": checkpoints.numel() > 0, "y": written.target, "merged": written.merged}
        arguments |= strides("y", written.target) | written.constants
    blocks = forward_blocks(call.E, call.N, call.lanes)
    paths = 1 if arguments["MERGE"] else call.K // 2 if second_half else call.K
    programs = call.batch * paths * call.chunks * -(-call.E // blocks.BE)
    name = "walk_forward" if call.N >= WALK_STATES else "tile_forward"
    _launch(
        call, name, programs, blocks.warps, checkpoints=checkpoints, **states, **arguments, BE=blocks.BE, VEC=blocks.VEC,
        BT=blocks.BT, U=blocks.BT, STATES=power_of_2(call.N), MASK=call.E % blocks.BE != 0, TAIL=call.T % blocks.BT != 0,
    )  # fmt: skip


def _launch_pairs(call: Call, written: _Map, save: bool, **states: Tensor | None) -> None:
    blocks = pair_blocks(call.lanes)
    programs = call.batch * (1 if written.constants["MERGE"] else call.K // 2) * -(-call.E // blocks.BE)
    _launch(
        call, "pair_forward", programs, blocks.warps, y=written.target, merged=written.merged, **strides("y", written.target),
        **written.constants, **states, SAVE=save, BE=blocks.BE, BT=blocks.BT, VEC=blocks.VEC, MASK=call.E % blocks.BE != 0,
        LEAD=call.T % blocks.BT != 0,
    )  # fmt: skip


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
    x, dt, A, B, C, D, dt_bias, dt_weight, _, initial_state = tensors
    if x.shape[0] == 0:
        inputs = (x, dt, A, B, C, D, dt_bias, dt_weight, initial_state)
        return tuple(None if value is None else torch.zeros_like(value) for value in inputs)
    call = prepare(tensors, grad_y, softplus=softplus, zoh=zoh, complete=complete)
    batch, L, K, E, N = call.batch, call.L, call.K, call.E, call.N
    blocks = backward_blocks(E, call.lanes)
    channel_blocks = -(-E // blocks.BE)
    written = _new_map(call, x.dim() == 3, x.dtype)
    new = torch.empty if complete else torch.zeros
    grad_raw = new(batch, L, K, E, dtype=x.dtype, device=x.device)
    grad_B, grad_C = (new(channel_blocks, batch, L, K, N, device=x.device) for _ in range(2))
    grad_A, grad_D, grad_bias = (
        call.new_states(call.chunks, N),
        call.new_states(call.chunks),
        call.new_states(call.chunks),
    )
    programs = batch * (1 if written.constants["MERGE"] else K) * call.chunks * channel_blocks
    steps = checkpoint_steps(N)
    with _on(x.device):
        carry = _carried(call, grad_last)
        _launch(
            call, "tile_backward", programs, blocks.warps, checkpoints=checkpoints, carry=carry,
            scratch=torch.empty(programs, steps + steps // blocks.BT * N, blocks.BE, device=x.device),
            grad_x=written.target, merged=written.merged, grad_raw=grad_raw, grad_A=grad_A, grad_B=grad_B, grad_C=grad_C,
            grad_D=grad_D, grad_bias=grad_bias, **strides("gx", written.target), images=batch, BE=blocks.BE, BT=blocks.BT,
            VEC=blocks.VEC, **written.constants, MASK=E % blocks.BE != 0, TAIL=call.T % 16 != 0,
        )  # fmt: skip
        grad_x = _finish_map(call, written, x.dtype)
    grad_weight = None
    if dt_weight is not None:
        grad_weight = torch.einsum("blke,blkr->ker", grad_raw, dt).contiguous()
        grad_raw = torch.einsum("blke,ker->blkr", grad_raw, dt_weight).contiguous()
    return (
        grad_x,
        grad_raw,
        grad_A.sum((0, 2)).transpose(1, 2).contiguous(),
        grad_B.sum(0),
        grad_C.sum(0),
        None if D is None else grad_D.sum((0, 2)),
        None if dt_bias is None else grad_bias.sum((0, 2)),
        grad_weight,
        None if initial_state is None else carry[:, :, 0].transpose(2, 3).contiguous(),
    )


def _carried(call: Call, grad_last: Tensor) -> Tensor:
    """What reaches the last step of each chunk from the steps after it: (batch, K, chunks, N, E)."""
    carry = call.new_states(call.chunks, call.N)
    if call.chunks == 1:
        return carry.copy_(grad_last.transpose(2, 3)[:, :, None])
    carry.zero_()
    blocks = backward_blocks(call.E, call.lanes)
    programs = call.batch * call.K * call.chunks * -(-call.E // blocks.BE)
    delta_sums = call.new_states(call.chunks)
    _launch(
        call, "adjoint_states", programs, blocks.warps, carry=carry, delta_sums=delta_sums, BE=blocks.BE,
        VEC=blocks.VEC, MASK=call.E % blocks.BE != 0, TAIL=call.T % 16 != 0,
    )  # fmt: skip
    start = grad_last.transpose(2, 3).contiguous()
    _scan_chunks(call, reverse=True, states=carry, delta_sums=delta_sums, start=start)
    return carry
