"""The `triton` back-end: which kernel serves a call, in what blocks and chunks, and the launches.

States are (batch, K, chunks, N, E) in float32. What was measured to choose the blocks is instructions and registers of the
compiled kernels.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

WALK_STATES = 8  # from here on the states fill a lane's registers, and steps are walked one by one
DOT_RANKS = 32  # the largest rank of dt whose projection costs no registers that the scan needs
CHUNK_STEPS = 64
WARPS_PER_PROCESSOR = 8
INT32 = 2**31


def checkpoint_steps(N: int) -> int:
    """Steps between two states that forward keeps for backward."""
    return 16 if N < WALK_STATES else CHUNK_STEPS


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


def _kernels() -> Any:
    """The module of all kernels, which needs Triton."""
    from . import triton_backward

    return triton_backward


def _interpreted() -> bool:
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(_kernels().tile_forward, InterpretedFunction)


class Blocks(NamedTuple):
    """Sizes of one program: BE channels, VEC of them next to each other in a lane, and BT steps at a time."""

    BE: int
    BT: int
    VEC: int
    warps: int = 1


def forward_blocks(E: int, N: int, lanes: int) -> Blocks:
    """Blocks of the forward kernels, `walk_forward` from N = 8 on, else `tile_forward`, for warps of so many lanes."""
    if N >= WALK_STATES:
        return Blocks(lanes, 4 if N == WALK_STATES else 2, 1, max(1, _power_of_2(N) // 16))
    if lanes == 64 or -(-E // 32) % 2 == 0:  # blocks of 64 leave no more channels idle than blocks of 32
        return Blocks(64, 16, 64 // lanes)
    return Blocks(lanes, 32, 1)


def backward_blocks(E: int, lanes: int) -> Blocks:
    """Blocks of the backward kernels. The sums over channels, for dB and dC, cost half as much with two channels in a lane."""
    return Blocks(64, 8, 64 // lanes) if E > 32 else Blocks(lanes, 8, 1)


def _power_of_2(value: int) -> int:
    return 1 << (value - 1).bit_length()


@dataclass
class _Call:
    """The inputs as the kernels want them, and the sizes they agree on."""

    x: Tensor
    dt: Tensor  # dense, or low-rank together with weight
    weight: Tensor | None
    A: Tensor  # (K, N, E)
    B: Tensor
    C: Tensor
    D: Tensor | None
    dt_bias: Tensor | None
    path: Tensor
    complete: bool
    flags: dict[str, Any]

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """batch, L, K, E, N, T."""
        (batch, L), (K, N, E) = self.x.shape[:2], self.A.shape
        return batch, L, K, E, N, self.path.shape[1]

    @property
    def R(self) -> int:
        return 0 if self.weight is None else self.weight.shape[2]

    @property
    def dot(self) -> dict[str, Any]:
        """Constants of the projection inside a kernel; the interpreter's bfloat16 product is wrong."""
        ranks = max(16, _power_of_2(self.R))
        return {"R": self.R, "RANKS": ranks, "UPCAST": _interpreted() and self.dt.dtype == torch.bfloat16}

    def strides(self, value: Tensor) -> tuple[int, int, int]:
        """Of batch, L, and K (0 where all paths share the map)."""
        return (*value.stride()[:2], 0 if value.dim() == 3 else value.stride(2))


def _prepare(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None, dt_weight: Tensor | None,
    path: Tensor, softplus: bool, zoh: bool, complete: bool, *outputs: Tensor,
) -> _Call:  # fmt: skip
    (L, T), (K, E, N) = (x.shape[1], path.shape[1]), A.shape
    if dt_weight is not None and (N >= WALK_STATES or dt_weight.shape[2] > DOT_RANKS):
        dt, dt_weight = torch.einsum("blkr,ker->blke", dt.float(), dt_weight.float()), None
    x, dt, B, C, path = (value if value.stride(-1) == 1 else value.contiguous() for value in (x, dt, B, C, path.int()))
    longest = max(K * E, *(value.stride(1) for value in (x, dt, B, C, *outputs)))
    flags = {
        "SOFTPLUS": softplus,
        "ZOH": zoh,
        "PAD": not complete or T != L,
        "WIDE": L * longest >= INT32,
    }
    D, dt_bias, weight = (None if value is None else value.contiguous() for value in (D, dt_bias, dt_weight))
    return _Call(x, dt, weight, A.transpose(1, 2).contiguous(), B, C, D, dt_bias, path, complete, flags)


def _device(device: torch.device) -> tuple[int, int]:
    """Processors, and lanes of a warp."""
    if device.type != "cuda":
        return 132, 32
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.warp_size


def _enough_warps(device: torch.device) -> int:
    """So many warps keep all processors busy."""
    return WARPS_PER_PROCESSOR * _device(device)[0]


def _chunks(call: _Call) -> tuple[int, int]:
    """Into how many chunks walks are cut, and their steps: one where images, paths and channels alone fill the device.

    Chunks are walked twice, so that two of them would gain nothing.
    """
    batch, _, K, E, _, T = call.sizes
    warps, enough = batch * K * -(-E // 32), _enough_warps(call.x.device)
    if warps < enough:
        chunks = min(-(-2 * enough // warps), T // CHUNK_STEPS)
        if chunks > 2:
            steps = -(-T // chunks // CHUNK_STEPS) * CHUNK_STEPS
            return -(-T // steps), steps
    return 1, T


class _Map(NamedTuple):
    """Where the kernels write a map, y or the gradient of x."""

    target: Tensor
    merged: Tensor  # the float32 sum of the paths before the last
    parts: int  # of `target`, to be added up
    constants: dict[str, bool]


def _new_map(call: _Call, merge: bool, dtype: torch.dtype, chunks: int) -> _Map:
    """Three ways to add up paths without atomics: nothing to add; all paths in one program; parts, and `sum_paths`."""
    batch, L, K, E, _, _ = call.sizes
    new = call.x.new_empty if call.complete else call.x.new_zeros
    if not merge or K == 1:
        target = new((batch, L, E) if merge else (batch, L, K, E), dtype=dtype)
        return _Map(target, target, 1, {"MERGE": False, "ZEROED": False})
    if chunks == 1 and batch * -(-E // 32) >= _enough_warps(call.x.device):
        merged = new((batch, L, E), dtype=torch.float32)
        target = merged if dtype == torch.float32 or not call.complete else torch.empty_like(merged, dtype=dtype)
        return _Map(target, merged, 1, {"MERGE": True, "ZEROED": not call.complete})
    parts = new((K, batch, L, E), dtype=torch.float32)
    return _Map(parts.permute(1, 2, 0, 3), parts, K, {"MERGE": False, "ZEROED": False})


def _finish_map(call: _Call, written: _Map, dtype: torch.dtype) -> Tensor:
    if written.parts == 1:
        return written.target.to(dtype)
    total = torch.empty_like(written.merged[0], dtype=dtype)
    grid = (-(-total.numel() // 1024),)
    _forward_kernels().sum_paths[grid](
        written.merged, total, total.numel(), K=written.parts, BLOCK=1024, **_options(call.x.device)
    )
    return total


def _options(device: torch.device, warps: int = 4) -> dict[str, Any]:
    """Fused multiply-adds are a CUDA option that newer Tritons no longer set by themselves."""
    if device.type == "cuda" and torch.version.hip is None:
        return {"num_warps": warps, "enable_fp_fusion": True}
    return {"num_warps": warps}


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return getattr(torch, device.type).device(device) if device.type in ("cuda", "xpu") else nullcontext()


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_weight: Tensor | None,
    path: Tensor,
    initial_state: Tensor | None,
    *,
    softplus: bool,
    zoh: bool,
    merge: bool,
    complete: bool,
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state (batch, K, E, N), and the states (batch, K, ceil(T / steps), N, E) kept for backward."""
    if A.shape[2] >= WALK_STATES:  # unpacking 16-bit values costs this kernel a third of its time
        B, C = B.float(), C.float()
    call = _prepare(x, dt, A, B, C, D, dt_bias, dt_weight, path, softplus, zoh, complete)
    batch, L, K, E, N, T = call.sizes
    kept = -(-T // checkpoint_steps(N))
    checkpoints = call.A.new_empty((batch, K, kept, N, E) if save else (0,))
    if batch == 0:
        shape = (batch, L, E) if merge else (batch, L, K, E)
        return x.new_empty(shape, dtype=out_dtype), A.new_empty(batch, K, E, N), checkpoints
    chunks, steps = _chunks(call)
    written = _new_map(call, merge, out_dtype, chunks)
    start = None if initial_state is None else initial_state.transpose(2, 3).contiguous()
    with _on(x.device):
        if chunks > 1:
            states, delta_sums = call.A.new_empty(batch, K, chunks, N, E), call.A.new_empty(batch, K, chunks, E)
            _launch_forward(call, None, None, states, delta_sums, checkpoints, chunks, steps, save=False)
            _scan_chunks(call, states, delta_sums, start, chunks, reverse=False)
            start = states
        last = call.A.new_empty(batch, K, chunks, N, E)
        _launch_forward(call, start, written, last, last, checkpoints, chunks, steps, save=save)
        y = _finish_map(call, written, out_dtype)
    return y, last[:, :, -1].transpose(2, 3).contiguous(), checkpoints


def _launch_forward(
    call: _Call, start: Tensor | None, written: _Map | None, last: Tensor, delta_sums: Tensor, checkpoints: Tensor,
    chunks: int, steps: int, save: bool,
) -> None:  # fmt: skip
    """The pass that writes, or, with nothing to write, the one that finds what each chunk alone does to the state."""
    batch, _, K, E, N, T = call.sizes
    blocks = forward_blocks(E, N, _device(call.x.device)[1])
    y, merged = (call.x, call.x) if written is None else (written.target, written.merged)
    constants = {"MERGE": False, "ZEROED": False} if written is None else written.constants
    constants = constants | call.flags | {"WRITE": written is not None, "SAVE": save, "STEPS": checkpoint_steps(N)}
    constants |= {"N": N, "BE": blocks.BE, "MASK": E % blocks.BE != 0}
    programs = batch * (1 if constants["MERGE"] else K) * chunks * -(-E // blocks.BE)
    states = (call.A, call.B, call.C, call.D, call.dt_bias, call.path, start, y, merged, last, delta_sums, checkpoints)
    numbers = (
        *call.strides(call.x), *call.strides(call.dt), *call.strides(call.B), *call.strides(call.C), call.path.stride(0),
        *call.strides(y), K, T, E, chunks, steps, checkpoints.shape[2] if save else 0, 0,
    )  # fmt: skip
    options = _options(call.x.device, blocks.warps)
    if N >= WALK_STATES:
        constants |= {"STATES": _power_of_2(N), "U": blocks.BT}
        _forward_kernels().walk_forward[(programs,)](call.x, call.dt, *states, *numbers, **constants, **options)
    else:
        constants |= {"BT": blocks.BT, "VEC": blocks.VEC, "TAIL": T % blocks.BT != 0, **call.dot}
        _forward_kernels().tile_forward[(programs,)](
            call.x, call.dt, call.weight, *states, *numbers, **constants, **options
        )


def _scan_chunks(
    call: _Call, states: Tensor, delta_sums: Tensor, start: Tensor | None, chunks: int, reverse: bool
) -> None:
    batch, _, K, E, N, _ = call.sizes
    grid = (batch * K * N * -(-E // 64),)
    options = _options(call.x.device, 2)
    _forward_kernels().chunk_scan[grid](
        states, delta_sums, call.A, start, K, E, chunks, N, BE=64, REVERSE=reverse, **options
    )


def backward(
    grad_y: Tensor,
    grad_last: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_weight: Tensor | None,
    path: Tensor,
    initial_state: Tensor | None,
    checkpoints: Tensor,
    *,
    softplus: bool,
    zoh: bool,
    merge: bool,
    complete: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of (x, dt, A, B, C, D, dt_bias, dt_weight, initial_state); None where the input is None."""
    grad_y = grad_y if grad_y.stride(-1) == 1 else grad_y.contiguous()
    call = _prepare(x, dt, A, B, C, D, dt_bias, dt_weight, path, softplus, zoh, complete, grad_y)
    batch, L, K, E, N, _ = call.sizes
    if batch == 0:
        inputs = (x, dt, A, B, C, D, dt_bias, dt_weight, initial_state)
        return tuple(None if value is None else torch.zeros_like(value) for value in inputs)
    chunks, steps = _chunks(call)
    written = _new_map(call, x.dim() == 3, x.dtype, chunks)
    blocks = backward_blocks(E, _device(x.device)[1])
    new = x.new_empty if complete else x.new_zeros
    grad_raw = new((batch, L, K, E), dtype=x.dtype)
    grad_B, grad_C = (new((-(-E // blocks.BE), batch, L, K, N), dtype=torch.float32) for _ in range(2))
    grad_A = call.A.new_empty(batch, K, chunks, N, E)
    grad_D, grad_bias = (call.A.new_empty(batch, K, chunks, E) for _ in range(2))
    with _on(x.device):
        carry = _carried(call, grad_y, grad_last, blocks, chunks, steps)
        gradients = (grad_raw, grad_A, grad_B, grad_C, grad_D, grad_bias)
        _launch_backward(call, grad_y, checkpoints, carry, written, gradients, blocks, chunks, steps)
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


def _carried(call: _Call, grad_y: Tensor, grad_last: Tensor, blocks: Blocks, chunks: int, steps: int) -> Tensor:
    """What reaches the last step of each chunk from the steps after it: (batch, K, chunks, N, E)."""
    batch, _, K, E, N, T = call.sizes
    carry = call.A.new_zeros(batch, K, chunks, N, E)
    if chunks == 1:
        return carry.copy_(grad_last.transpose(2, 3)[:, :, None])
    BT = 16
    delta_sums = call.A.new_empty(batch, K, chunks, E)
    constants = {"N": N, "BE": blocks.BE, "BT": BT, "VEC": blocks.VEC, "MASK": E % blocks.BE != 0, "TAIL": T % BT != 0}
    constants |= call.flags | call.dot
    del constants["ZOH"]
    _backward_kernels().adjoint_states[(batch * K * chunks * -(-E // blocks.BE),)](
        call.dt, call.weight, call.A, call.C, call.dt_bias, call.path, grad_y, carry, delta_sums,
        *call.strides(call.dt), *call.strides(call.C), call.path.stride(0), *call.strides(grad_y),
        K, T, E, chunks, steps, 0, **constants, **_options(call.x.device, blocks.warps),
    )  # fmt: skip
    _scan_chunks(call, carry, delta_sums, grad_last.transpose(2, 3).contiguous(), chunks, reverse=True)
    return carry


def _launch_backward(
    call: _Call, grad_y: Tensor, checkpoints: Tensor, carry: Tensor, written: _Map, gradients: tuple[Tensor, ...],
    blocks: Blocks, chunks: int, steps: int,
) -> None:  # fmt: skip
    batch, L, K, E, N, T = call.sizes
    interval = checkpoint_steps(N)
    constants = {
        "N": N,
        "BE": blocks.BE,
        "BT": blocks.BT,
        "VEC": blocks.VEC,
        "STEPS": interval,
        "MASK": E % blocks.BE != 0,
    }
    constants |= {"TAIL": T % 16 != 0, **call.flags, **call.dot, **written.constants}
    programs = batch * (1 if constants["MERGE"] else K) * chunks * -(-E // blocks.BE)
    scratch = call.A.new_empty(programs, interval + interval // blocks.BT * N, blocks.BE)
    _backward_kernels().tile_backward[(programs,)](
        call.x, call.dt, call.weight, call.A, call.B, call.C, call.D, call.dt_bias, call.path, checkpoints, grad_y, carry, scratch,
        written.target, written.merged, *gradients,
        *call.strides(call.x), *call.strides(call.dt), *call.strides(call.B), *call.strides(call.C), call.path.stride(0),
        *call.strides(grad_y), *call.strides(written.target),
        batch, L, K, T, E, chunks, steps, checkpoints.shape[2], 0, **constants, **_options(call.x.device, blocks.warps),
    )  # fmt: skip
