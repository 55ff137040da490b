"""The functions of VMamba's `selective_scan_cuda_oflex`, and of its forerunner `selective_scan_cuda_core`.

These extensions (arXiv 2401.10166) are called from a `torch.autograd.Function` of the caller's: `fwd` in its forward,
`bwd` in its backward.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..ops import selective_scan


def fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
    oflex: bool = False,
) -> list[Tensor]:
    """The scan, without a graph.

    Args:
        u, delta: (batch, E, L).
        A: (E, N).
        B, C: (batch, groups, N, L) or (batch, N, L).
        D, delta_bias: (E) or None.
        delta_softplus: whether delta = softplus(delta + delta_bias).
        nrows: a launch parameter of the extension's kernel; any value gives the same numbers.
        oflex: y in float32 whatever u is (float64 for float64), instead of in u's dtype.

    Returns:
        y (batch, E, L), and what :func:`bwd` wants back: the last state, (batch, E, N).

    Example:
        >>> u = delta = torch.rand(2, 8, 5)
        >>> B = C = torch.rand(2, 2, 4, 5)
        >>> y, kept = fwd(u, delta, -torch.ones(8, 4), B, C, None, None, True, 1, True)
        >>> y.shape, kept.shape
        (torch.Size([2, 8, 5]), torch.Size([2, 8, 4]))
    """
    with torch.no_grad():
        y, last = _scan([u, delta, A, B, C, D, delta_bias], delta_softplus, exact_output=oflex)
    return [y, last]


def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
) -> list[Tensor | None]:
    """The gradients of the sum of `y * dout`, from the inputs of :func:`fwd`; the scan is run again for it.

    Args:
        dout: (batch, E, L), any floating dtype.
        x: what `fwd` returned beside y; not used, as everything is recomputed.

    Returns:
        Gradients of u, delta, A, B, C, D and delta_bias, each in the dtype of its input; None where that is None.

    Example:
        >>> u = delta = torch.rand(2, 8, 5)
        >>> B = C = torch.rand(2, 2, 4, 5)
        >>> du, ddelta, dA, dB, dC, dD, ddelta_bias = bwd(
        ...     u, delta, -torch.ones(8, 4), B, C, None, None, torch.ones(2, 8, 5), None, True, 1
        ... )
        >>> dA.shape, dD is None
        (torch.Size([8, 4]), True)
    """
    with torch.enable_grad():
        inputs = [None if v is None else v.detach().requires_grad_() for v in (u, delta, A, B, C, D, delta_bias)]
        y, _ = _scan(inputs, delta_softplus, exact_output=dout.dtype != u.dtype)
        given = [value for value in inputs if value is not None]
        gradients = iter(torch.autograd.grad(y, given, dout.to(y.dtype)))
    return [None if value is None else next(gradients) for value in inputs]


def _scan(inputs: Sequence[Any], softplus: bool, *, exact_output: bool) -> tuple[Tensor, Tensor]:
    u, delta, A, B, C, D, delta_bias = inputs
    wide = u.to(torch.promote_types(u.dtype, torch.float32)) if exact_output else u
    out = selective_scan(wide, delta, A, B, C, D, None, delta_bias, softplus, return_last_state=True)
    return cast(tuple[Tensor, Tensor], out)
