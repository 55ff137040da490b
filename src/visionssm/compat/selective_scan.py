"""What code written for mamba_ssm's `selective_scan_interface` calls to scan: the same signatures, on our operator."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import selective_scan


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """mamba_ssm's `selective_scan_fn`, on any device: :func:`visionssm.ops.selective_scan`, and complex state spaces.

    Args:
        u, delta: (batch, E, L).
        A: (E, N), real or complex. A complex state stands for itself and its conjugate: the output is twice the real
            part.
        B, C: the same at every step, (E, N) in A's kind of numbers; or (batch, N, L), or (batch, groups, N, L). With a
            complex A the last axis has 2 L entries, real and imaginary part in turn; a complex tensor with L is taken too.
        D: (E) or None.
        z: (batch, E, L) or None: the output is multiplied by SiLU(z).
        delta_bias: (E) or None.
        delta_softplus: whether delta = softplus(delta + delta_bias).
        return_last_state: also return the state after the last step. Unlike mamba_ssm's, it has a gradient.

    Returns:
        (batch, E, L) in u's dtype; with `return_last_state` also (batch, E, N), float32 or complex64 (float64 and
        complex128 for float64).

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit.

    Example:
        >>> u = delta = torch.rand(2, 8, 5)
        >>> B = C = torch.rand(2, 4, 5)
        >>> y, last_state = selective_scan_fn(u, delta, -torch.ones(8, 4), B, C, return_last_state=True)
        >>> y.shape, last_state.shape
        (torch.Size([2, 8, 5]), torch.Size([2, 8, 4]))
    """
    scan = _complex_scan if A.is_complex() else selective_scan
    return scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`selective_scan_fn` by the definition, one step after the other: slow, for tests.

    Example:
        >>> u = delta = torch.rand(2, 8, 5)
        >>> selective_scan_ref(u, delta, -torch.ones(8, 4), torch.ones(8, 4), torch.ones(8, 4)).shape
        torch.Size([2, 8, 5])
    """
    scan = _complex_scan if A.is_complex() else selective_scan
    return scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, backend="reference")


def _complex_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_last_state: bool,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """A complex diagonal recurrence as a real one in a frame that turns with the state.

    With S the sum of delta so far and h = exp(i Im(A) S) g, g decays by the real exp(delta Re(A)). Its real and its
    imaginary part are 2 N real states, driven and read through B and C turned by the same angle.
    """
    if u.dim() != 3 or delta.shape != u.shape:
        raise ValueError(f"u, delta: got shapes {tuple(u.shape)} and {tuple(delta.shape)}, need (batch, E, L) twice")
    exact = torch.promote_types(u.dtype, torch.float32)
    delta = delta.to(exact)
    if delta_bias is not None:
        delta = delta + delta_bias.to(exact)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    # The angle grows with the length: its whole turns are taken off before float32 rounds it.
    angle = A.imag.double()[:, :, None] * delta.double().cumsum(-1)[:, :, None]
    angle = torch.remainder(angle, 2 * torch.pi).to(exact)
    turn = torch.complex(angle.cos(), angle.sin())
    B = _complex_per_channel("B", B, u, A) * turn.conj()
    C = _complex_per_channel("C", C, u, A) * turn
    out = selective_scan(
        u,
        delta,
        A.real.repeat(1, 2),
        torch.cat((B.real, B.imag), dim=2),
        2 * torch.cat((C.real, -C.imag), dim=2),
        D,
        z,
        return_last_state=True,
        backend=backend,
    )
    if not return_last_state:
        return out[0]
    return out[0], torch.complex(*out[1].chunk(2, dim=2)) * turn[..., -1]


def _complex_per_channel(name: str, value: Tensor, u: Tensor, A: Tensor) -> Tensor:
    """B or C of a complex state space in any of its forms, as (batch, E, N, L) complex."""
    (batch, E, L), N = u.shape, A.shape[1]
    given = value
    if value.shape == (E, N):
        return value[None, :, :, None].to(A.dtype).expand(batch, E, N, L)
    if not value.is_complex() and value.shape[-1] == 2 * L:
        exact = torch.promote_types(value.dtype, torch.float32)
        value = torch.view_as_complex(value.to(exact).unflatten(-1, (L, 2)).contiguous())
    if value.shape == (batch, N, L):
        value = value[:, None]
    if not value.is_complex() or value.dim() != 4 or value.shape[::2] != (batch, N) or value.shape[3] != L:
        raise ValueError(
            f"{name}: got shape {tuple(given.shape)} in {given.dtype}, need (E, N) = {(E, N)}, or (batch, N, 2 L) = "
            f"{(batch, N, 2 * L)} or (batch, groups, N, 2 L) with real and imaginary parts in turn, as A is complex"
        )
    if E % value.shape[1]:
        raise ValueError(f"{name}: got {value.shape[1]} groups, need a number that divides E={E}")
    return value.repeat_interleave(E // value.shape[1], dim=1)
