"""What a call of the operator must satisfy, with an error that names the argument, what it got and what it needs."""

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from .tensors import ScanTensors

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int32, torch.int64)
_FLOAT_NAMES = "float32, bfloat16, float16 or float64"


class Sizes(NamedTuple):
    """The legend of the operator's shapes."""

    batch: int
    L: int
    K: int
    E: int
    N: int
    T: int


def check_tensors(tensors: ScanTensors) -> Sizes:
    """Shapes, dtypes and devices of all arguments; returns the sizes they agree on."""
    x, dt, A, B, C, D, dt_bias, dt_weight, path, initial_state = tensors
    if A.dim() != 3:
        raise ValueError(f"A: got shape {_shape(A)}, need (K, E, N)")
    if path.dim() != 2:
        raise ValueError(f"path: got shape {_shape(path)}, need (K, T)")
    if x.dim() not in (3, 4):
        raise ValueError(f"x: got shape {_shape(x)}, need (batch, L, E), or (batch, L, K, E) for an input per path")
    K, E, N = A.shape
    T = path.shape[1]
    batch, L = x.shape[:2]
    sizes = Sizes(batch, L, K, E, N, T)
    _need("x", x, (batch, L, E) if x.dim() == 3 else (batch, L, K, E), sizes)
    if dt_weight is None:
        _need("dt", dt, (batch, L, K, E), sizes, "; give dt_weight (K, E, R) for a low-rank dt")
    else:
        R = dt_weight.shape[-1]
        _need("dt_weight", dt_weight, (K, E, R), sizes)
        _need("dt", dt, (batch, L, K, R), sizes, f" and R={R} from dt_weight")
    _need("B", B, (batch, L, K, N), sizes)
    _need("C", C, (batch, L, K, N), sizes)
    _need("path", path, (K, T), sizes)
    _need("D", D, (K, E), sizes)
    _need("dt_bias", dt_bias, (K, E), sizes)
    _need("initial_state", initial_state, (batch, K, E, N), sizes)
    if min(L, K, E, N, T) < 1:
        raise ValueError(f"every size but batch must be at least 1, got L={L}, K={K}, E={E}, N={N}, T={T}")
    device = x.device
    for name, value in zip(tensors._fields, tensors, strict=True):
        if value is None:
            continue
        if value.dtype not in (FLOATS if name != "path" else INTEGERS):
            need = "int32 (or int64) positions" if name == "path" else f"a real floating dtype: {_FLOAT_NAMES}"
            raise TypeError(f"{name}: got {value.dtype}, need {need}")
        if value.device != device:
            raise ValueError(f"{name}: is on {value.device}, but x is on {device}; move it there")
    return sizes


def _need(name: str, value: Tensor | None, shape: tuple[int, ...], sizes: Sizes, more: str = "") -> None:
    if value is None or value.shape == shape:
        return
    batch, L, K, E, N, _ = sizes
    known = f"with batch={batch}, L={L} from x and K={K}, E={E}, N={N} from A"
    raise ValueError(f"{name}: got shape {_shape(value)}, need {shape} {known}{more}")


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)


class PathFacts(NamedTuple):
    """What is known about a table of paths.

    Args:
        complete: every path visits every position.
        mirrored: path k + K / 2 is path k from its end, for each k of the first half.
    """

    complete: bool
    mirrored: bool


UNKNOWN = PathFacts(complete=False, mirrored=False)
_checked: dict[int, tuple[weakref.ref[Tensor], int, int, PathFacts]] = {}


def path_facts(path: Tensor, length: int, abstract: bool) -> PathFacts:
    """Checks the entries of a (K, T) table for maps of `length` positions, and says what they are like.

    The answer is remembered for as long as the tensor lives and is not written to. Where entries are not there to look at
    (`abstract`: under tracing, or on the meta device), it is what the functions of `visionssm.ops.paths` say of the tables that
    they make, and nothing of others.
    """
    if abstract:
        return getattr(path, "facts", UNKNOWN)
    version = 0 if path.is_inference() else path._version
    known = _checked.get(id(path))
    if known is not None and known[0]() is path and known[1:3] == (version, length):
        return known[3]
    facts = _check_entries(path, length)
    if len(_checked) > 4096:
        _checked.clear()
    _checked[id(path)] = (weakref.ref(path), version, length, facts)
    return facts


def _check_entries(path: Tensor, length: int) -> PathFacts:
    table = path.cpu().long()
    lowest, highest = int(table.min()), int(table.max())
    if lowest < -1 or highest >= length:
        bad = lowest if lowest < -1 else highest
        raise ValueError(
            f"path: visits position {bad}, need 0 to {length - 1} (x has L={length} positions), or -1 for a step over padding"
        )
    visits = torch.zeros(table.shape[0], length + 1, dtype=torch.long)
    visits.scatter_add_(1, torch.where(table < 0, length, table), torch.ones_like(table))
    visits = visits[:, :length]
    if int(visits.max()) > 1:
        k, position = (visits > 1).nonzero()[0].tolist()
        raise ValueError(
            f"path: row {k} visits position {position} more than once; a path visits each position at most once"
        )
    half = table.shape[0] // 2
    mirrored = table.shape[0] == 2 * half and torch.equal(table[:half].flip(1), table[half:])
    return PathFacts(complete=bool((visits == 1).all()), mirrored=mirrored)
