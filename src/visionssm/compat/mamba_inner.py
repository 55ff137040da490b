"""The fused Mamba mixer of mamba_ssm, and its relatives that the code of Vim calls, on our operator.

xz is the output of the input projection: the first half of the channels is convolved, projected to delta, B and C, and
scanned; the second half gates the result. Legend: batch, E channels, L steps, N states, R rank of delta.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .causal_conv1d import causal_conv1d_fn
from .selective_scan import selective_scan_fn, selective_scan_ref


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """mamba_ssm's `mamba_inner_fn`: everything of a Mamba mixer after its input projection.

    Args:
        xz: (batch, 2 E, L).
        conv1d_weight: (E, 1, width).
        conv1d_bias: (E) or None.
        x_proj_weight: (R + N for B + N for C, E), 2 N each where A is complex; B and C that are given take no rows.
        delta_proj_weight: (E, R).
        out_proj_weight: (out, E).
        out_proj_bias: (out) or None.
        A: (E, N), real or complex.
        B, C: None to project them from the input, or given as to :func:`selective_scan_fn`.
        D, delta_bias: (E) or None.
        B_proj_bias, C_proj_bias: added to the projected B and C, or None.
        delta_softplus: whether delta = softplus(delta + delta_bias).
        checkpoint_lvl: taken and not needed: it trades memory for time in mamba_ssm, and never changes numbers.
        b_rms_weight, c_rms_weight: (N); normalise the projected B and C by their root mean square.
        dt_rms_weight: (E); the same for the projected delta.
        b_c_dt_rms_eps: of these norms.

    Returns:
        (batch, L, out).

    Example:
        >>> E, N, R = 8, 4, 2
        >>> mamba_inner_fn(
        ...     torch.rand(2, 2 * E, 5), torch.rand(E, 1, 4), torch.zeros(E), torch.rand(R + 2 * N, E), torch.rand(E, R),
        ...     torch.rand(6, E), None, -torch.ones(E, N),
        ... ).shape
        torch.Size([2, 5, 6])
    """
    x, z, delta, B, C = _project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias,
        norms=(b_rms_weight, c_rms_weight, dt_rms_weight), eps=b_c_dt_rms_eps,
    )  # fmt: skip
    y = cast(Tensor, selective_scan_fn(x, delta, A, B, C, D, z, delta_bias, delta_softplus))
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """:func:`mamba_inner_fn` with the scan by its definition: slow, for tests."""
    x, z, delta, B, C = _project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias
    )
    y = cast(Tensor, selective_scan_ref(x, delta, A, B, C, D, z, delta_bias, delta_softplus))
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """:func:`mamba_inner_fn` without the output projection, from Vim's version of mamba_ssm (arXiv 2401.09417).

    Vim calls it once on xz and once on xz.flip(2), and adds the results.

    Returns:
        (batch, E, L).
    """
    x, z, delta, B, C = _project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias
    )
    return cast(Tensor, selective_scan_fn(x, delta, A, B, C, D, z, delta_bias, delta_softplus))


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Vim's first two-way mixer ("v1"): one convolution and one projection, scanned with A forwards and A_b backwards.

    Args:
        A, A_b: (E, N) of the two directions; the others as in :func:`mamba_inner_fn`.

    Returns:
        (batch, L, out).
    """
    if A.is_complex() or A_b.is_complex():
        raise TypeError(f"A, A_b: got {A.dtype} and {A_b.dtype}, need real ones in both directions")
    x, z, delta, B, C = _project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias
    )
    forward = cast(Tensor, selective_scan_fn(x, delta, A, B, C, D, z, delta_bias, delta_softplus))
    x, z, delta, B, C = (value.flip(-1) if value.dim() > 2 else value for value in (x, z, delta, B, C))
    backward = cast(Tensor, selective_scan_fn(x, delta, A_b, B, C, D, z, delta_bias, delta_softplus))
    return F.linear((forward + backward.flip(2)).transpose(1, 2), out_proj_weight, out_proj_bias)


def _project(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    B_proj_bias: Tensor | None,
    C_proj_bias: Tensor | None,
    *,
    norms: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The convolved x, the gate z and delta, (batch, E, L), and B and C as :func:`selective_scan_fn` takes them."""
    if xz.dim() != 3 or xz.shape[1] != 2 * A.shape[0]:
        raise ValueError(f"xz: got shape {tuple(xz.shape)}, need (batch, 2 E, L) with E={A.shape[0]} from A")
    E, columns, rank = A.shape[0], A.shape[1] * (2 if A.is_complex() else 1), delta_proj_weight.shape[1]
    rows = rank + columns * ((B is None) + (C is None))
    if tuple(x_proj_weight.shape) != (rows, E):
        raise ValueError(
            f"x_proj_weight: got shape {tuple(x_proj_weight.shape)}, need {(rows, E)}: {rank} rows for delta, and "
            f"{columns} each for B and C unless they are given"
        )
    x, z = xz.chunk(2, dim=1)
    x = cast(Tensor, causal_conv1d_fn(x, conv1d_weight[:, 0], conv1d_bias, activation="silu"))
    projected = F.linear(x.transpose(1, 2), x_proj_weight)
    delta = _normalised(F.linear(projected[..., :rank], delta_proj_weight), norms[2], eps)
    if B is None:
        B = _per_step(projected[..., rank : rank + columns], B_proj_bias, norms[0], eps, A)
    if C is None:
        C = _per_step(projected[..., rows - columns :], C_proj_bias, norms[1], eps, A)
    return x, z, delta.transpose(1, 2), B, C


def _per_step(columns: Tensor, bias: Tensor | None, norm: Tensor | None, eps: float, A: Tensor) -> Tensor:
    """Projected columns (batch, L, N) as (batch, N, L); (batch, L, 2 N) of a complex A as (batch, N, L) complex."""
    columns = _normalised(columns if bias is None else columns + bias.to(columns.dtype), norm, eps)
    if A.is_complex():
        exact = torch.promote_types(columns.dtype, torch.float32)
        columns = torch.view_as_complex(columns.to(exact).unflatten(-1, (-1, 2)).contiguous())
    return columns.transpose(1, 2)


def _normalised(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """By the root mean square over the last axis, in float32 or better; x itself without a weight."""
    if weight is None:
        return x
    exact = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(exact), weight.shape, weight.to(exact), eps).to(x.dtype)
