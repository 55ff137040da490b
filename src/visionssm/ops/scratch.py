"""Memory for intermediate results that serves all blocks of a forward pass in turn.

The C library gives large blocks back to the system when they are freed. Every allocation then starts with pages that the system has
to clear first, which takes longer than many an operator needs to fill them.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_LARGEST = 2**25  # bytes; what is larger is worth its pages, and would be missed elsewhere


class _Pool(threading.local):
    held: dict[tuple[str, torch.dtype], Tensor] | None = None


_pool = _Pool()


@contextmanager
def reused_memory() -> Iterator[None]:
    """Inside the block, :func:`scratch` hands out the same memory for the same name again; it is freed at the end.

    Does nothing where gradients are recorded, in which case intermediate results live on, and in graphs.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or _pool.held is not None:
        yield
        return
    _pool.held = {}
    try:
        yield
    finally:
        _pool.held = None


def scratch(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    """Uninitialised CPU memory that the next call with this name hands out again; None outside of :func:`reused_memory`, and
    for more than 32 MiB.

    Example:
        >>> with torch.no_grad(), reused_memory():
        ...     first, second = (scratch("x", (2, n), torch.float32) for n in (3, 2))
        >>> first.data_ptr() == second.data_ptr(), scratch("x", (1,), torch.float32)
        (True, None)
    """
    size = math.prod(shape)
    if _pool.held is None or size * dtype.itemsize > _LARGEST:
        return None
    memory = _pool.held.get((name, dtype))
    if memory is None or len(memory) < size:
        memory = _pool.held[name, dtype] = torch.empty(size, dtype=dtype)
    return memory[:size].view(*shape)
