"""Matrix products by the native kernel: float32, with bias and GELU in the same pass, for one matrix or a group of them."""

from array import array
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from . import native
from .backends import choose_backend
from .product_choice import fastest, wanted


def is_chosen(dtype: torch.dtype, question: str, ways: Callable[[], Mapping[str, Callable[[], object]]]) -> bool:
    """Whether the native kernel is there for CPU tensors of this dtype and is faster here than what torch has.

    Args:
        dtype: of the matrices.
        question: what is done; decided once for it, and kept for the process.
        ways: makes what is measured: "library" and "native", each does it once.
    """
    if dtype != torch.float32 or choose_backend("auto", torch.device("cpu"), dtype) != "native":
        return False
    if question not in _decisions:
        choice = wanted()
        _decisions[question] = choice == "native" or (choice == "auto" and fastest(ways(), question) == "native")
    return _decisions[question]


_decisions: dict[str, bool] = {}


def native_product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False, out: Tensor | None = None
) -> Tensor:
    """x W^T + bias, or GELU of it, without autograd.

    Args:
        x: (rows, in), or (rows, groups, in).
        weight: (out, in), or (groups, out, in); read as it lies, and transposed.
        bias: (out), for every group, or None.
        gelu: apply the exact GELU.
        out: (rows, out), or (rows, groups, out), dense in the last axis, which the result is written to.

    Raises:
        TypeError: a dtype other than float32.
        ValueError: sizes that do not fit.

    Example:
        >>> native_product(torch.ones(2, 3), torch.ones(4, 3)).tolist()
        [[3.0, 3.0, 3.0, 3.0], [3.0, 3.0, 3.0, 3.0]]
    """
    if not x.dtype == weight.dtype == (weight if bias is None else bias).dtype == torch.float32:
        raise TypeError(f"the native product takes float32, got x {x.dtype}, weight {weight.dtype}")
    if weight.dim() != x.dim() or x.shape[1:] != (*weight.shape[:-2], weight.shape[-1]):
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)}: need (rows, in) and (out, in), or one of each per group"
        )
    if bias is not None and bias.shape != weight.shape[-2:-1]:
        raise ValueError(f"bias: got {tuple(bias.shape)}, need as many as the weight {tuple(weight.shape)} has outputs")
    if out is None:
        out = x.new_empty(*x.shape[:-1], weight.shape[-2])
    if out.numel() == 0:
        return out
    x = x if x.stride(-1) == 1 else x.contiguous()
    weight = weight if 1 in weight.stride()[-2:] else weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    single = x.dim() == 2
    numbers = array(
        "q",
        (
            1 if single else x.shape[1], x.shape[0], x.shape[-1], out.shape[-1], torch.get_num_threads(), gelu,
            x.data_ptr(), 0 if single else x.stride(1), x.stride(0),
            weight.data_ptr(), 0 if single else weight.stride(0), *weight.stride()[-2:],
            0 if bias is None else bias.data_ptr(),
            out.data_ptr(), 0 if single else out.stride(1), out.stride(0),
        ),
    )  # fmt: skip
    native.product(numbers)
    return out
