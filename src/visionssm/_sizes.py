"""Questions about sizes, which are numbers, symbols or, under torch.jit.trace, tensors."""

from typing import Any

from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true


def known_true(condition: Any) -> bool:
    """Whether a comparison of sizes holds: in a graph of open sizes for all of them, in a trace for the one that it is made of.

    Example:
        >>> known_true(2 < 3)
        True
    """
    return bool(condition) if isinstance(condition, Tensor) else statically_known_true(condition)
