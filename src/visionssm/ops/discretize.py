"""From the continuous state space h' = A h + B x, y = C h, to a recurrence, and to a convolution.

The selective scan uses :func:`zero_order_hold` for A, and for B either its exact form or Euler's delta * B.
"""

import torch
from torch import Tensor


def input_coefficient(delta: Tensor, A: Tensor, zoh: bool) -> Tensor:
    """What stands in front of B x in one step: delta (Euler), or (exp(delta A) - 1) / A (zero-order hold).

    Args:
        delta: step sizes, broadcastable with A.
        A: diagonal of the state matrix, real and usually negative.
        zoh: which of the two rules.

    Example:
        >>> delta, A = torch.tensor([0.5]), torch.tensor([-1.0])
        >>> input_coefficient(delta, A, zoh=False)
        tensor([0.5000])
        >>> input_coefficient(delta, A, zoh=True)
        tensor([0.3935])
    """
    if not zoh:
        return delta
    return delta * _expm1_over(delta * A)


def input_coefficient_gradients(delta: Tensor, A: Tensor, zoh: bool) -> tuple[Tensor, Tensor]:
    """Derivatives of :func:`input_coefficient` by delta and by A, broadcast like its arguments.

    Example:
        >>> input_coefficient_gradients(torch.tensor([0.5]), torch.tensor([-1.0]), zoh=True)
        (tensor([0.6065]), tensor([0.0902]))
    """
    if not zoh:
        return torch.ones_like(delta), torch.zeros_like(delta)
    z = delta * A
    small = z.abs() < 1e-2
    safe = torch.where(small, torch.ones_like(z), z)
    slope = torch.where(
        small,
        1 / 2 + z / 3 + z**2 / 8 + z**3 / 30 + z**4 / 144 + z**5 / 840,
        (torch.exp(safe) - torch.expm1(safe) / safe) / safe,
    )
    return torch.exp(z), delta**2 * slope


def _expm1_over(z: Tensor) -> Tensor:
    """(exp(z) - 1) / z, 1 at z = 0."""
    small = z.abs() < 1e-5
    safe = torch.where(small, torch.ones_like(z), z)
    return torch.where(small, 1 + z / 2 + z * z / 6, torch.expm1(safe) / safe)


def zero_order_hold(A: Tensor, B: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Discretises a diagonal state space whose input is held constant over each step.

    A_bar = exp(delta A), B_bar = (exp(delta A) - 1) / A * B (Mamba, arXiv 2312.00752, equation 4).

    Args:
        A: (..., N) diagonal of the state matrix.
        B: (..., N) input matrix.
        delta: (..., 1) or scalar tensor of step sizes, in the unit of time that A uses.

    Returns:
        A_bar and B_bar, both broadcast to the common shape.

    Example:
        >>> A_bar, B_bar = zero_order_hold(torch.tensor([-1.0, -2.0]), torch.ones(2), torch.tensor(0.1))
        >>> A_bar
        tensor([0.9048, 0.8187])
        >>> B_bar
        tensor([0.0952, 0.0906])
    """
    return torch.exp(delta * A), input_coefficient(delta, A, zoh=True) * B


def ssm_convolution_kernel(A_bar: Tensor, B_bar: Tensor, C: Tensor, length: int) -> Tensor:
    """The convolution kernel of a time-invariant state space: kernel[t] = sum_n C[n] A_bar[n]^t B_bar[n].

    With it, the recurrence h = A_bar h + B_bar x, y = C h equals the causal convolution of x with the kernel (S4, arXiv
    2111.00396, equation 5).

    Args:
        A_bar, B_bar, C: (..., N) discretised diagonal state space.
        length: number of taps.

    Returns:
        (..., length).

    Example:
        >>> ssm_convolution_kernel(torch.tensor([0.5]), torch.tensor([1.0]), torch.tensor([2.0]), 4)
        tensor([2.0000, 1.0000, 0.5000, 0.2500])
    """
    if length < 1:
        raise ValueError(f"length: got {length}, need at least 1 tap")
    powers = A_bar.unsqueeze(-1) ** torch.arange(length, device=A_bar.device)
    return ((C * B_bar).unsqueeze(-1) * powers).sum(-2)
