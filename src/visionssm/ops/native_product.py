"""Matrix products by the native kernel: float32 or bfloat16, bias and GELU in the same pass, one matrix or a group of them."""

import math
from array import array
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from . import native
from .backends import native_serves_cpu
from .product_choice import fastest, wanted

DTYPES = (torch.float32, torch.bfloat16)
_LINE = 64  # bytes, of the cache
_ONE, _NONE = (1,), (0,)  # groups of a single matrix, and the distance between them
# Rows a multiple of so many bytes apart share their places in the first-level cache, and displace each other.
_CROWDED = 4096


def is_chosen(
    dtype: torch.dtype, question: str, ways: Callable[[torch.dtype], Mapping[str, Callable[[], object]]]
) -> bool:
    """Whether the native kernel is there for CPU tensors of this dtype and is faster here than what torch has.

    Args:
        dtype: of the matrices.
        question: what is done; decided once for it and the dtype, and kept for the process.
        ways: makes what is measured: "library" and "native", each does it once.
    """
    if dtype not in DTYPES or not native_serves_cpu():
        return False
    if (question, dtype) not in _decisions:
        choice = wanted()
        _decisions[question, dtype] = choice == "native" or (
            choice == "auto" and fastest(ways(dtype), f"{question} {dtype}") == "native"
        )
    return _decisions[question, dtype]


_decisions: dict[tuple[str, torch.dtype], bool] = {}


def native_product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False, out: Tensor | None = None
) -> Tensor:
    """x W^T + bias, or GELU of it, without autograd.

    Args:
        x: (rows, in), or (rows, groups, in).
        weight: (out, in), or (groups, out, in). Float32 is read as it lies, and transposed, here and in x.
        bias: (out), for every group, or None.
        gelu: apply the exact GELU.
        out: (rows, out), or (rows, groups, out), dense in the last axis, which the result is written to.

    Raises:
        TypeError: another dtype than float32 and bfloat16, or several.
        ValueError: sizes that do not fit; in bfloat16 an odd number `in`, because it is multiplied in pairs.

    Example:
        >>> native_product(torch.ones(2, 3), torch.ones(4, 3)).tolist()
        [[3.0, 3.0, 3.0, 3.0], [3.0, 3.0, 3.0, 3.0]]
    """
    _check(x, weight)
    if (weight if bias is None else bias).dtype != weight.dtype:
        raise TypeError(f"bias: got {bias.dtype}, need {weight.dtype} as in the weight")  # type: ignore[union-attr]
    if bias is not None and bias.shape != weight.shape[-2:-1]:
        raise ValueError(f"bias: got {tuple(bias.shape)}, need as many as the weight {tuple(weight.shape)} has outputs")
    if out is None:
        out = x.new_empty(*x.shape[:-1], weight.shape[-2])
    _run(x, weight, None if bias is None else bias.contiguous(), gelu, False, out)
    return out


def add_native_product(total: Tensor, x: Tensor, weight: Tensor) -> None:
    """Adds x W^T to the total, all of float32, without autograd.

    Args:
        total: (rows, out), dense in the last axis.
        x: (rows, in), read as it lies, and transposed.
        weight: (out, in), read so too.

    Example:
        >>> total = torch.ones(1, 2)
        >>> add_native_product(total, torch.ones(1, 3), torch.ones(2, 3))
        >>> total.tolist()
        [[4.0, 4.0]]
    """
    _check(x, weight)
    if not total.dtype == x.dtype == torch.float32 or total.shape != (len(x), len(weight)):
        raise ValueError(
            f"total: got {tuple(total.shape)} of {total.dtype}, need {(len(x), len(weight))}, and float32 everywhere"
        )
    _run(x, weight, None, False, True, total)


def _check(x: Tensor, weight: Tensor) -> None:
    if x.dtype not in DTYPES or x.dtype != weight.dtype:
        raise TypeError(f"the native product takes one of float32 and bfloat16, got x {x.dtype}, weight {weight.dtype}")
    sizes, others = x.shape, weight.shape
    if len(sizes) != len(others) or sizes[-1] != others[-1] or (len(sizes) > 2 and sizes[1:-1] != others[:-2]):
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)}: need (rows, in) and (out, in), or one of each per group"
        )
    if not takes(x.dtype, x.shape[-1]):
        raise ValueError(f"x {tuple(x.shape)}: bfloat16 is multiplied in pairs, so `in` has to be even")


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, add: bool, out: Tensor) -> None:
    if out.numel() == 0:
        return
    x = x if _reads(x) else _apart(x)
    weight = weight if _reads_weight(weight) else weight.contiguous()
    rows, *groups, inner = x.shape
    x_row, *x_group, x_inner = x.stride()
    out_row, *out_group, _ = out.stride()
    *weight_group, weight_column, weight_inner = weight.stride()
    numbers = array(
        "q",
        (
            *(groups or _ONE), rows, inner, out.shape[-1], torch.get_num_threads(), gelu, add, native.DTYPES[x.dtype],
            x.data_ptr(), *(x_group or _NONE), x_row, x_inner,
            weight.data_ptr(), *(weight_group or _NONE), weight_column, weight_inner, native.pointer(bias),
            out.data_ptr(), *(out_group or _NONE), out_row,
        ),
    )  # fmt: skip
    native.product(numbers)


def takes(dtype: torch.dtype, *inner: int) -> bool:
    """Whether :func:`native_product` multiplies matrices of this dtype and of such numbers `in`: bfloat16 goes in pairs."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and all(number % 2 == 0 for number in inner))


def takes_in_place(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`native_product` takes these, and copies neither."""
    return takes(x.dtype, x.shape[-1]) and _reads(x) and _reads_weight(weight)


def _reads(x: Tensor) -> bool:
    *outer, last = x.stride()
    if last != 1:
        return outer[0] == 1 and x.dtype == torch.float32
    return (x.dtype != torch.bfloat16 or _even(outer)) and outer[0] * x.itemsize % _CROWDED != 0


def _reads_weight(weight: Tensor) -> bool:
    *outer, last = weight.stride()
    if weight.dtype != torch.bfloat16:
        return last == 1 or outer[-1] == 1
    return last == 1 and _even(outer)  # a transposed one would have the pairs of bfloat16 in two rows


def _even(numbers: list[int]) -> bool:
    return all(number % 2 == 0 for number in numbers)


def _apart(x: Tensor) -> Tensor:
    """A copy whose rows lie a line of the cache farther apart than they are long."""
    length = math.prod(x.shape[1:])
    memory = x.new_empty(len(x), length + _LINE // x.itemsize)
    return memory[:, :length].unflatten(1, x.shape[1:]).copy_(x)
