"""How the `triton` back-end cuts a call: blocks of channels and steps, chunks of walks, and the arguments all kernels share."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .tensors import ScanTensors

WALK_STATES = 8  # from here on the states fill a lane's registers, and steps are walked one by one
DOT_RANKS = 32  # the largest rank of dt whose projection inside the kernel leaves the scan its registers
CHUNK_STEPS = 64
WARPS_PER_PROCESSOR = 8
INT32_LIMIT = 2**31


class Blocks(NamedTuple):
    """Sizes of one program: BE channels, VEC of them next to each other in a lane, and BT steps at a time."""

    BE: int
    BT: int
    VEC: int
    warps: int = 1


def forward_blocks(E: int, N: int, lanes: int) -> Blocks:
    """Blocks of the forward kernels, `walk_forward` from N = 8 on, else `tile_forward`, for warps of so many lanes."""
    if N >= WALK_STATES:
        return Blocks(lanes, 4 if N == WALK_STATES else 2, 1, max(1, power_of_2(N) // 16))
    if lanes == 64 or -(-E // 32) % 2 == 0:  # blocks of 64 leave no more channels idle than blocks of 32
        return Blocks(64, 16, 64 // lanes)
    return Blocks(lanes, 32, 1)


def pair_blocks(lanes: int) -> Blocks:
    """Blocks of `pair_forward`, whose BT is a multiple of :func:`checkpoint_steps`. More channels in a lane spill."""
    return Blocks(lanes, 16, 1)


def backward_blocks(E: int, lanes: int) -> Blocks:
    """Blocks of the backward kernels. Two channels in a lane halve the cost of the sums over channels, dB and dC."""
    return Blocks(64, 8, 64 // lanes) if E > 32 else Blocks(lanes, 8, 1)


def checkpoint_steps(N: int) -> int:
    """Steps between two states that forward keeps for backward."""
    return 16 if N < WALK_STATES else CHUNK_STEPS


def power_of_2(value: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << (value - 1).bit_length()


@lru_cache
def processors_and_lanes(device: torch.device) -> tuple[int, int]:
    """Of a GPU: multiprocessors, and lanes of a warp."""
    if device.type != "cuda":
        return 132, 32
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.warp_size


class Merge(NamedTuple):
    """How the outputs of the paths of an image are added up.

    Args:
        pair: a path and its reversal are one; their sum never leaves the registers.
        serial: all of them in one program, one after the other; else each writes its part, and `sum_paths` adds the parts.
    """

    pair: bool
    serial: bool


def choose_merge(warps: int, enough: int, mirrored: bool) -> Merge:
    """By how busy images and channels alone keep the device: `warps` of the `enough` that it needs.

    The more programs, the better latencies are hidden; the fewer, the fewer times the sum goes through memory. Pairs take half as
    many instructions again, and make up for it with memory only where they alone keep every scheduler busy.
    """
    if warps >= enough:
        return Merge(pair=False, serial=True)
    pair = mirrored and 2 * warps >= enough
    return Merge(pair=pair, serial=pair)


@dataclass
class Call:
    """A call's sizes, its cut into chunks, and the arguments by the names that all kernels give them."""

    batch: int
    L: int
    K: int
    E: int
    N: int
    T: int
    complete: bool
    chunks: int
    merge: Merge
    lanes: int
    device: torch.device
    arguments: dict[str, Any]

    def new_states(self, *shape: int) -> Tensor:
        """An empty float32 tensor (batch, K, *shape, E)."""
        return torch.empty(self.batch, self.K, *shape, self.E, device=self.device)


def prepare(
    tensors: ScanTensors,
    grad_y: Tensor | None = None,
    *,
    softplus: bool,
    zoh: bool,
    complete: bool,
    mirrored: bool = False,
) -> Call:
    """Inputs as the kernels want them: strided views stay views, unless their channels are not next to each other.

    `mirrored` says that path k + K / 2 is path k reversed.
    """
    x, dt, A, B, C, D, dt_bias, dt_weight, path, _ = tensors
    (batch, L), (K, E, N), T = x.shape[:2], A.shape, path.shape[1]
    if dt_weight is not None and (N >= WALK_STATES or dt_weight.shape[2] > DOT_RANKS):
        dt, dt_weight = torch.einsum("blkr,ker->blke", dt.float(), dt_weight.float()), None
    maps = {"x": x, "dt": dt, "B": B, "C": C} | ({} if grad_y is None else {"grad_y": grad_y})
    maps = {name: value if value.stride(-1) == 1 else value.contiguous() for name, value in maps.items()}
    path = path.int() if path.stride(-1) == 1 else path.int().contiguous()
    vectors = {"D": D, "dt_bias": dt_bias, "weight": dt_weight}
    arguments: dict[str, Any] = maps | {
        name: None if value is None else value.contiguous() for name, value in vectors.items()
    }
    for name, value in maps.items():
        arguments |= strides(name.removeprefix("grad_"), value)
    R = 0 if dt_weight is None else dt_weight.shape[2]
    processors, lanes = processors_and_lanes(x.device)
    enough = WARPS_PER_PROCESSOR * processors
    chunks, chunk_steps = _chunks(batch * K * -(-E // lanes), enough, T)
    arguments |= {"L": L, "K": K, "E": E, "N": N, "T": T, "R": R}
    arguments |= {
        "A": A.transpose(1, 2).contiguous(),
        "path": path,
        "stride_pk": path.stride(0),
        "zero": 0,  # see triton_common
        "RANKS": max(16, power_of_2(R)),
        "chunks": chunks,
        "chunk_steps": chunk_steps,
        "kept": -(-T // checkpoint_steps(N)),
        "STEPS": checkpoint_steps(N),
        "SOFTPLUS": softplus,
        "ZOH": zoh,
        "PAD": not complete or T != L,
        "WIDE": L * max(K * E, K * N, *(value.stride(1) for value in maps.values())) >= INT32_LIMIT,
        "ALIGNED": math.gcd(16, *(_alignment(maps[name]) for name in ("B", "C"))),
        "UPCAST": x.device.type == "cpu" and x.dtype == torch.bfloat16,
    }
    pairs = mirrored and complete and T == L and N == 1 and x.dim() == 3
    merge = choose_merge(batch * -(-E // lanes), enough, pairs) if chunks == 1 else Merge(pair=False, serial=False)
    return Call(batch, L, K, E, N, T, complete, chunks, merge, lanes, x.device, arguments)


def _alignment(value: Tensor) -> int:
    """What divides the address of every row, in bytes."""
    steps = value.stride()[:-1]
    return math.gcd(16, value.data_ptr(), *(step * value.element_size() for step in steps))


def strides(name: str, value: Tensor) -> dict[str, int]:
    """A map's strides of batch, L, and K (0 where all paths share it), by the names that the kernels give them."""
    of_path = 0 if value.dim() == 3 else value.stride(2)
    return {f"stride_{name}b": value.stride(0), f"stride_{name}l": value.stride(1), f"stride_{name}k": of_path}


def _chunks(warps: int, enough: int, T: int) -> tuple[int, int]:
    """Into how many chunks walks are cut, and their steps: one where images, paths and channels keep the device busy.

    Chunks are walked twice, so that fewer than four gain little.
    """
    if 0 < warps < enough:
        chunks = min(-(-2 * enough // warps), T // CHUNK_STEPS)
        if chunks > 3:
            steps = T // chunks // CHUNK_STEPS * CHUNK_STEPS
            return -(-T // steps), steps
    return 1, T
