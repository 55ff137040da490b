"""The `native` back-end: the C++ kernels of csrc, called through ctypes.

The library sees pointers, sizes and strides only. It reads strided views in place, as long as their last dimension is contiguous,
and runs on torch's own OpenMP threads: torch is imported before the library is loaded, so that both use one runtime.
"""

import ctypes
import os
import sys
from array import array
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .tensors import ScanTensors
from .walk import state_dtype

_CHECKPOINT_STEPS = 64
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
INSTRUCTION_SETS = ("avx512bf16", "avx512", "avx2", "baseline")  # the best first
_DONE, _BAD_PATH, _NO_MEMORY = 0, 1, 2
_NO_TENSOR = (0, 0, 0, 0, 0)


# Numbers that keep a thread busy for longer than it takes to wake, which is 40 us where waiting threads sleep, and 1 us where they
# spin, OpenMP's default.
_WORTH_A_THREAD = 3 * 2**15 if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive" else 2**13


def useful_threads(numbers: int) -> int:
    """Threads for one pass over so many numbers: one where waking another costs more than it does, otherwise all.

    Never some: GCC's OpenMP ends the threads that a smaller team leaves out, and starts them again for the next.
    """
    return torch.get_num_threads() if numbers >= 2 * _WORTH_A_THREAD else 1


def checkpoint_steps(N: int) -> int:
    """Steps between two states that forward keeps for backward: with N = 1 and four paths they take a sixteenth of x's memory,
    an eighth where x has 16 bits."""
    return _CHECKPOINT_STEPS


def _library_file() -> Path | None:
    import visionssm

    suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    places = [Path(place) / "_lib" / f"libvisionssm{suffix}" for place in visionssm.__path__]
    return next((place for place in places if place.exists()), None)


@cache
def _load() -> tuple[Any, str | None]:
    """The library, or None and the reason why it cannot be used."""
    file = _library_file()
    if file is None:
        return (
            None,
            "was not built: no C++ compiler was found when visionssm was installed; install GCC or Clang and reinstall",
        )
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        return None, f"cannot be loaded: {error}; reinstall visionssm"
    library.visionssm_use_instruction_set.argtypes = [ctypes.c_char_p]
    library.visionssm_use_instruction_set.restype = ctypes.c_char_p
    for call in (library.visionssm_path_scan, library.visionssm_path_scan_backward):
        call.argtypes, call.restype = [ctypes.c_void_p], ctypes.c_int64
    for name in ("depthwise", "bias_gelu", "gelu_backward", "layer_norm", "rms_norm", "gate_silu", "product"):
        call = getattr(library, f"visionssm_{name}")
        call.argtypes, call.restype = [ctypes.c_void_p], None
    wanted = os.environ.get("VISIONSSM_CPU", "")
    if library.visionssm_use_instruction_set(wanted.encode()) is None:
        return (
            None,
            f"was told by the environment variable VISIONSSM_CPU={wanted} to use what this processor does not have",
        )
    return library, None


def unavailable() -> str | None:
    """Why the library cannot be used; None where it can."""
    return _load()[1]


@cache
def version() -> str:
    """Of the library: when it was built, and the instruction set that it was told to use; empty without a library."""
    file = _library_file()
    return "" if file is None else f"{file.stat().st_mtime_ns} {os.environ.get('VISIONSSM_CPU', '')}"


def use_instruction_set(name: str = "") -> str:
    """Runs the kernels with the named instruction set from now on; returns the name of what is used.

    Args:
        name: one of `INSTRUCTION_SETS` ("avx512bf16" is AVX-512 with products of bfloat16, "baseline" is NEON on ARM, SSE2 on
            x86), or "" for the best that this processor has, which is where every process begins, unless the environment
            variable VISIONSSM_CPU names another.

    Raises:
        ValueError: this processor does not have it.

    Example:
        >>> use_instruction_set("baseline")
        'baseline'
        >>> use_instruction_set() in INSTRUCTION_SETS
        True
    """
    library, reason = _load()
    if reason is not None:
        raise ValueError(f"the native back-end {reason}")
    found = library.visionssm_use_instruction_set(name.encode())
    if found is None:
        raise ValueError(
            f"name: got {name!r}, which this processor does not have; choose from {', '.join(INSTRUCTION_SETS)}, or ''"
        )
    return found.decode()


def forward(
    tensors: ScanTensors,
    *,
    softplus: bool,
    zoh: bool,
    merge: bool,
    complete: bool,
    out_dtype: torch.dtype,
    save: bool,
    log_A: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y, the last state, and the states that backward starts from; see `reference.scan`."""
    inputs = _Inputs(tensors)
    (batch, L), (K, E, N), T = tensors.x.shape[:2], tensors.A.shape, tensors.path.shape[1]
    new = torch.empty if complete else torch.zeros
    y = new(
        (batch, L, E) if merge else (batch, L, K, E),
        dtype=torch.float64 if inputs.exact == torch.float64 else out_dtype,
    )
    last = torch.empty((batch, K, E, N), dtype=inputs.exact)
    kept = (batch, K, -(-T // _CHECKPOINT_STEPS), N, E) if save else (0,)
    checkpoints = torch.empty(kept, dtype=inputs.exact)
    numbers = inputs.pack(
        softplus, zoh, merge, complete, log_A, checkpoints if save else None,
        (*_view(y), pointer(last), *_NO_TENSOR, 0, *_NO_TENSOR * 4, 0, 0, 0, 0, 0),
    )  # fmt: skip
    _call(_load()[0].visionssm_path_scan, numbers, L)
    return y if y.dtype == out_dtype else y.to(out_dtype), last, checkpoints


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
    inputs = _Inputs(tensors)
    if checkpoints.numel() == 0:
        checkpoints = forward(
            tensors, softplus=softplus, zoh=zoh, merge=merge, complete=complete, out_dtype=tensors.x.dtype, save=True
        )[2]  # fmt: skip
    exact = inputs.exact
    grad_y = _readable(grad_y, exact)
    grad_last = _dense(grad_last, exact)
    new = torch.empty if complete else torch.zeros
    maps = [new(value.shape, dtype=value.dtype) for value in (inputs.x, inputs.dt, inputs.B, inputs.C)]
    parameters = [
        None if v is None else torch.empty(v.shape, dtype=exact)
        for v in (tensors.A, *tensors[5:8], tensors.initial_state)
    ]
    numbers = inputs.pack(
        softplus, zoh, merge, complete, False, checkpoints,
        (*_NO_TENSOR, 0, *_view(grad_y), pointer(grad_last), *(n for v in maps for n in _view(v)), *map(pointer, parameters)),
    )  # fmt: skip
    _call(_load()[0].visionssm_path_scan_backward, numbers, tensors.x.shape[1])
    grad_x, grad_dt, grad_B, grad_C = maps
    grad_A, grad_D, grad_dt_bias, grad_dt_weight, grad_initial_state = parameters
    return grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_dt_bias, grad_dt_weight, grad_initial_state


def depthwise(numbers: array) -> None:
    """Runs a depthwise convolution; `numbers` are the fields of csrc/depthwise_arguments.h."""
    _load()[0].visionssm_depthwise(numbers.buffer_info()[0])


def layer_norm(numbers: array) -> None:
    """Runs a LayerNorm; `numbers` are the fields of csrc/norm_arguments.h."""
    _load()[0].visionssm_layer_norm(numbers.buffer_info()[0])


def rms_norm(numbers: array) -> None:
    """Runs an RMSNorm; `numbers` are the fields of the other struct of csrc/norm_arguments.h."""
    _load()[0].visionssm_rms_norm(numbers.buffer_info()[0])


def gate_silu(numbers: array) -> None:
    """Runs a gate; `numbers` are the fields of csrc/gate_arguments.h."""
    _load()[0].visionssm_gate_silu(numbers.buffer_info()[0])


def product(numbers: array) -> None:
    """Multiplies matrices; `numbers` are the fields of csrc/product_arguments.h."""
    _load()[0].visionssm_product(numbers.buffer_info()[0])


def bias_gelu(x: Tensor, bias: Tensor | None, hidden: Tensor) -> Tensor:
    """hidden = GELU(x + bias) for contiguous matrices of the bias's dtype; x becomes x + bias where it is not `hidden` itself."""
    rows, columns = x.shape
    bias = None if bias is None else bias.contiguous()
    keep = x.data_ptr() != hidden.data_ptr()
    numbers = array(
        "q",
        (
            rows, columns, torch.get_num_threads(), DTYPES[x.dtype],
            x.data_ptr(), 0 if bias is None else bias.data_ptr(), keep, hidden.data_ptr(),
        ),
    )  # fmt: skip
    _load()[0].visionssm_bias_gelu(numbers.buffer_info()[0])
    return hidden


def gelu_backward(x: Tensor, gradient: Tensor, hidden: Tensor) -> Tensor:
    """hidden = GELU(x); `gradient`, by GELU(x), becomes that by x. All are contiguous matrices of one dtype."""
    rows, columns = x.shape
    numbers = array(
        "q",
        (
            rows, columns, torch.get_num_threads(), DTYPES[x.dtype],
            x.data_ptr(), gradient.data_ptr(), hidden.data_ptr(),
        ),
    )  # fmt: skip
    _load()[0].visionssm_gelu_backward(numbers.buffer_info()[0])
    return hidden


class _Inputs:
    """The inputs in the form that the library reads; it holds on to whatever had to be copied."""

    def __init__(self, tensors: ScanTensors) -> None:
        x, dt, A, B, C, D, dt_bias, dt_weight, path, initial_state = tensors
        if 0 in (
            *A.shape,
            *path.shape,
            x.shape[1],
        ):  # path_scan refuses it before; a direct call of the operator does not
            raise ValueError(
                f"every size but batch must be at least 1, got A (K, E, N) = {tuple(A.shape)}, path (K, T) = {tuple(path.shape)} "
                f"and L={x.shape[1]} positions of x"
            )
        self.exact = exact = state_dtype(x.dtype)
        self.x, self.dt, self.B, self.C = (_readable(value, exact) for value in (x, dt, B, C))
        self.A, self.D, self.dt_bias, self.initial_state = (
            None if value is None else _dense(value, exact) for value in (A, D, dt_bias, initial_state)
        )
        if dt_weight is not None:
            dt_weight = _dense(dt_weight, exact if exact == torch.float64 else dt_weight.dtype)
        self.dt_weight = dt_weight
        if path.dtype != torch.int32:
            path = path.clamp(-2, 2**31 - 1).to(torch.int32)
        self.path = path if path.stride(1) == 1 else path.contiguous()

    def pack(
        self,
        softplus: bool,
        zoh: bool,
        merge: bool,
        complete: bool,
        log_A: bool,
        checkpoints: Tensor | None,
        results: tuple[int, ...],
    ) -> array:
        """`Arguments` of csrc/arguments.h, field by field."""
        K, E, N = self.A.shape  # type: ignore[union-attr]
        batch, L = self.x.shape[:2]
        weight = self.dt_weight
        return array(
            "q",
            (
                batch, L, K, E, N, self.path.shape[1], 0 if weight is None else weight.shape[2],
                softplus, zoh, merge, complete, self.x.dim() == 4, torch.get_num_threads(), _CHECKPOINT_STEPS, log_A,
                self.path.data_ptr(), self.path.stride(0),
                *_view(self.x), *_view(self.dt), *_view(self.B), *_view(self.C),
                pointer(self.A), pointer(self.D), pointer(self.dt_bias),
                pointer(weight), 0 if weight is None else DTYPES[weight.dtype],
                pointer(self.initial_state), pointer(checkpoints),
                *results,
                0, 0, 0,
            ),
        )  # fmt: skip


def _dense(value: Tensor, dtype: torch.dtype) -> Tensor:
    # The usual case costs two questions, not two calls into torch that do nothing.
    return value if value.dtype == dtype and value.is_contiguous() else value.to(dtype).contiguous()


def _readable(value: Tensor, exact: torch.dtype) -> Tensor:
    if exact == torch.float64:
        value = value.to(exact)
    return value if value.stride(-1) == 1 or value.shape[-1] == 1 else value.contiguous()


def _view(value: Tensor) -> tuple[int, int, int, int, int]:
    """Pointer, dtype, and strides of batch, position and path; a map shared by all paths has path stride 0."""
    strides = value.stride()
    return value.data_ptr(), DTYPES[value.dtype], strides[0], strides[1], strides[2] if len(strides) == 4 else 0


def pointer(value: Tensor | None) -> int:
    """Where a tensor's numbers begin; 0 for None."""
    return 0 if value is None else value.data_ptr()


def _call(function: Any, numbers: array, length: int) -> None:
    status = function(numbers.buffer_info()[0])
    if status == _BAD_PATH:
        k, t, position = numbers[-3:]
        raise ValueError(
            f"path: entry [{k}, {t}] visits position {position}, need 0 to {length - 1} (x has L={length} positions), "
            "or -1 for a step over padding"
        )
    if status == _NO_MEMORY:
        raise MemoryError("path_scan: not enough memory for the scratch of the native back-end")
    assert status == _DONE
