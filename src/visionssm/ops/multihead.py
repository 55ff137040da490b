"""The recurrence of Mamba-2, one decay per head, as matrix products over chunks of steps or by `path_scan`'s kernels.

For every image, path k and head r, over the steps t with p = path[k, t], with channels e of the head:

    delta = softplus(dt[p, k, r] + dt_bias[k, r])
    h[n, e] = exp(delta * A[k, r]) * h[n, e] + delta * B[p, k, n] * x[p, e]
    y[p, e] += sum_n C[p, k, n] * h[n, e] + D[k, e] * x[p, e]

All channels of a head decay alike, so inside a chunk the sum over earlier steps is a matrix, (C B^T) times the decays between two
steps, and only the state between chunks is passed on step by step ("state space duality", arXiv 2405.21060).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backends, paths
from .api import path_scan
from .checks import path_facts
from .reorder import reorder
from .walk import state_dtype


def multihead_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    path: Tensor,
    *,
    softplus: bool = True,
    merge: bool = True,
    chunk: int = 32,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """Selective scan with one decay per head (SSD, Mamba-2, arXiv 2405.21060) along K walks over an image.

    It is :func:`visionssm.ops.path_scan` where dt and A are the same for all channels of a head and for all states.

    Args:
        x: (batch, L, E), L positions in image order; or (batch, L, K, E) when every path has its own input. Head r has the channels
            r E / heads to (r + 1) E / heads.
        dt: (batch, L, K, heads).
        A: (K, heads), negative for a stable recurrence.
        B, C: (batch, L, K, N), shared by the heads.
        D: (K, E) or None for no skip.
        dt_bias: (K, heads) or None.
        path: (K, T) int32, as in `path_scan`; on a step over padding, -1, x = dt = B = C = 0.
        softplus: False takes dt + dt_bias as delta.
        merge: sum the paths' outputs; False keeps them apart.
        chunk: steps that "matrix" computes together. It changes speed and rounding only.
        out_dtype: dtype of y, x's by default.
        backend: "matrix", products over chunks of steps in plain torch, on any device; one of `path_scan`'s, which compute
            each channel's decays anew; or "auto": "native" where that can serve the call, else "matrix".

    dtypes: x, dt, B, C in any floating dtype; state, decays and sums are float32 (float64 for float64), whatever the
        autocast.

    Returns:
        (batch, L, E), or (batch, L, K, E) without merging; zero where no path goes.

    Raises:
        ValueError: a shape, path entry or option that does not fit, by name.

    Example:
        >>> batch, H, W, E, N, heads = 2, 4, 5, 12, 8, 3
        >>> path = paths.cross(H, W)
        >>> K, L = path.shape
        >>> y = multihead_scan(
        ...     torch.randn(batch, L, E), torch.randn(batch, L, K, heads), -torch.ones(K, heads),
        ...     torch.randn(batch, L, K, N), torch.randn(batch, L, K, N), torch.ones(K, E), torch.zeros(K, heads), path,
        ... )
        >>> y.shape
        torch.Size([2, 20, 12])
    """
    _check(x, dt, A, B, C, D, dt_bias, path, chunk)
    if _takes_kernels(backend, x):
        share = x.shape[-1] // A.shape[1]
        y = path_scan(
            x,
            dt.repeat_interleave(share, dim=-1),
            A.repeat_interleave(share, dim=-1).unsqueeze(-1).expand(-1, -1, B.shape[-1]),
            B,
            C,
            D,
            None if dt_bias is None else dt_bias.repeat_interleave(share, dim=-1),
            path,
            softplus=softplus,
            merge=merge,
            out_dtype=out_dtype,
            backend=backend,
        )
        assert isinstance(y, Tensor)
        return y
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            y = _scan(x, dt, A, B, C, D, dt_bias, path, softplus, chunk)
    else:
        y = _scan(x, dt, A, B, C, D, dt_bias, path, softplus, chunk)
    return (y.sum(2) if merge else y).to(out_dtype or x.dtype)


def _takes_kernels(backend: str, x: Tensor) -> bool:
    """Whether `path_scan` serves the call: it was named, here or as the default, or its CPU kernels are there.

    It also serves tensors without values, so that multiply-adds are counted by its rule.
    """
    if backend == "matrix":
        return False
    if x.is_meta:
        return True
    if backend == "auto" and backends.current_default() == "auto":
        return x.device.type == "cpu" and backends.explain_backend(x.device, x.dtype)["native"] is None
    return True


def _scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    path: Tensor,
    softplus: bool,
    chunk: int,
) -> Tensor:
    """(batch, L, K, E) in float32 or float64."""
    exact, L, heads = state_dtype(x.dtype), x.shape[1], A.shape[1]
    abstract = torch.compiler.is_compiling() or x.is_meta
    complete = path_facts(path, L, abstract).complete
    steps = paths.inverse(path, L)
    x, dt, B, C = (reorder(values.to(exact), path, steps, complete) for values in (x, dt, B, C))
    delta = dt if dt_bias is None else dt + dt_bias.to(exact)
    delta = F.softplus(delta) if softplus else delta

    driven = (x.unflatten(-1, (heads, -1)) * delta.unsqueeze(-1)).flatten(-2)
    y = _chunked(driven, delta * A.to(exact), B, C, min(chunk, path.shape[1]), heads)
    if D is not None:
        y = y + D.to(exact) * x
    return reorder(y, steps, path, complete)


def _chunked(driven: Tensor, decay: Tensor, B: Tensor, C: Tensor, size: int, heads: int) -> Tensor:
    """The recurrence over delta x (batch, T, K, E) and the logarithms of decays (batch, T, K, heads), in walking order."""
    T = driven.shape[1]
    driven, decay, B, C = (_cut(values, size) for values in (driven, decay, B, C))
    decay = decay.transpose(-1, -2)  # (batch, K, M, heads, S)
    between = _segment_sums(decay).exp()  # (..., heads, S, S): what is left at step t of what was added at step j
    since_start = decay.cumsum(-1).exp()

    weights = (C @ B.transpose(-1, -2)).unsqueeze(3) * between
    inside = weights @ driven.unflatten(-1, (heads, -1)).transpose(3, 4)
    kept = driven.unflatten(-1, (heads, -1)) * between[..., -1, :].transpose(-1, -2).unsqueeze(-1)
    added = B.transpose(-1, -2) @ kept.flatten(-2)  # (batch, K, M, N, E)
    entering = _carry(added.unflatten(-1, (heads, -1)), since_start[..., -1])
    carried = (C @ entering.flatten(-2)).unflatten(-1, (heads, -1)).transpose(3, 4) * since_start.unsqueeze(-1)
    y = (inside + carried).transpose(3, 4).flatten(-2)  # (batch, K, M, S, E)
    return y.flatten(2, 3)[:, :, :T].transpose(1, 2)


def _cut(values: Tensor, size: int) -> Tensor:
    """(batch, T, K, X) to (batch, K, M, S, X), zeros at the end, which leave the state as it is."""
    values = F.pad(values, (0, 0, 0, 0, 0, -values.shape[1] % size))
    return values.unflatten(1, (-1, size)).permute(0, 3, 1, 2, 4)


def _segment_sums(values: Tensor) -> Tensor:
    """(..., S) to (..., S, S): entry [t, j] is the sum over the steps j + 1 .. t, and -inf for t < j.

    Summed up from j on, and not as a difference of two running sums: those cancel when decays are strong.
    """
    S = values.shape[-1]
    lower = torch.ones(S, S, dtype=torch.bool, device=values.device).tril()
    rows = values.unsqueeze(-1).expand(*values.shape, S)
    sums = rows.masked_fill(~lower.tril(-1), 0).cumsum(-2)
    return sums.masked_fill(~lower, float("-inf"))


def _carry(added: Tensor, decay: Tensor) -> Tensor:
    """The state that enters each chunk, from what each adds (batch, K, M, N, heads, P) and leaves (batch, K, M, heads)."""
    state, entering = torch.zeros_like(added[:, :, 0]), []
    for m in range(added.shape[2]):
        entering.append(state)
        state = decay[:, :, m, None, :, None] * state + added[:, :, m]
    return torch.stack(entering, dim=2)


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    path: Tensor,
    chunk: int,
) -> None:
    if A.dim() != 2 or path.dim() != 2 or x.dim() not in (3, 4) or B.dim() != 4:
        given = ", ".join(f"{n} {tuple(v.shape)}" for n, v in (("x", x), ("A", A), ("B", B), ("path", path)))
        raise ValueError(
            f"got {given}, need x (batch, L, E) or (batch, L, K, E), A (K, heads), B (batch, L, K, N), path (K, T)"
        )
    if chunk < 1:
        raise ValueError(f"chunk: got {chunk}, need at least 1")
    (K, heads), (batch, L), E, N = A.shape, x.shape[:2], x.shape[-1], B.shape[-1]
    if E % heads:
        raise ValueError(f"x: got {E} channels, need a multiple of the {heads} heads of A")
    wanted = {
        "x": (x, (batch, L, E) if x.dim() == 3 else (batch, L, K, E)),
        "dt": (dt, (batch, L, K, heads)),
        "B": (B, (batch, L, K, N)),
        "C": (C, (batch, L, K, N)),
        "D": (D, (K, E)),
        "dt_bias": (dt_bias, (K, heads)),
        "path": (path, (K, path.shape[1])),
    }
    for name, (value, shape) in wanted.items():
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, need {shape}, by x and A")
