"""The operator as users call it: :func:`path_scan` over an image, :func:`selective_scan` over a sequence."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference, torch_chunked
from . import schema as _schema  # noqa: F401  registers torch.ops.visionssm.path_scan
from .backends import choose_backend
from .checks import check_tensors, path_facts
from .observe import observers
from .paths import raster
from .tensors import ScanTensors, without_autocast

DISCRETIZATIONS = ("euler", "zoh")


def path_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    path: Tensor,
    *,
    dt_weight: Tensor | None = None,
    softplus: bool = True,
    log_A: bool = False,
    merge: bool = True,
    discretization: str = "euler",
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan (S6, Mamba, arXiv 2312.00752) along K walks over an image, in place.

    For every image, path k and channel e, over the steps t with p = path[k, t]::

        delta = softplus(dt[p, k, e] + dt_bias[k, e])
        h[n] = exp(delta * A[k, e, n]) * h[n] + delta * B[p, k, n] * x[p, e]
        y[p, e] += sum_n C[p, k, n] * h[n] + D[k, e] * x[p, e]

    Args:
        x: (batch, L, E), L positions in image order; or (batch, L, K, E) when every path has its own input.
        dt: (batch, L, K, E), or (batch, L, K, R) together with `dt_weight`.
        A: (K, E, N), negative for a stable recurrence.
        B, C: (batch, L, K, N).
        D: (K, E) or None for no skip.
        dt_bias: (K, E) or None.
        path: (K, T) int32, the position visited at each step; each at most once per path. -1 is a step over padding:
            there x = dt = B = C = 0, so the state only decays, and nothing is written. See `visionssm.ops.paths`; a
            user's own order is just such a tensor. It is validated once per tensor, not under torch.compile.
        dt_weight: (K, E, R): delta's projection, done inside the operator, so that no (batch, L, K, E) tensor is made.
        softplus: False takes dt + dt_bias as delta.
        log_A: the argument A is log(-A), which is what models learn.
        merge: sum the paths' outputs; False keeps them apart.
        discretization: "euler", delta B, which all published weights use, or "zoh", (exp(delta A) - 1) / A B, which
            papers print.
        initial_state: (batch, K, E, N) state before the first step; None is zero.
        return_last_state: also return the state after the last step.
        out_dtype: dtype of y, x's by default; torch.float32 keeps the merged sum unrounded.
        backend: "auto", "reference", "torch", "native" or "triton"; a named one never falls back (`explain_backend`).

    dtypes: x, dt, B, C in float32, bfloat16, float16 or float64; where they differ, x and dt are promoted to their
        common type.
    A, D, dt_bias, the state and all sums are float32 (float64 for float64).

    Returns:
        y: (batch, L, E), or (batch, L, K, E) without merging; zero where no path goes. With `return_last_state` also
            the last
        state (batch, K, E, N).

    Raises:
        ValueError, TypeError: a shape, dtype, device, path entry or option that does not fit, by name.

    Example:
        >>> from visionssm.ops import path_scan, paths
        >>> batch, H, W, E, N = 2, 4, 5, 8, 1
        >>> path = paths.cross(H, W)
        >>> K, L = path.shape
        >>> y = path_scan(
        ...     torch.randn(batch, L, E), torch.randn(batch, L, K, E), -torch.ones(K, E, N),
        ...     torch.randn(batch, L, K, N), torch.randn(batch, L, K, N), torch.ones(K, E), torch.zeros(K, E), path,
        ... )
        >>> y.shape
        torch.Size([2, 20, 8])
    """
    sizes = check_tensors(ScanTensors(x, dt, A, B, C, D, dt_bias, dt_weight, path, initial_state))
    if discretization not in DISCRETIZATIONS:
        raise ValueError(f"discretization: got {discretization!r}, choose from {', '.join(DISCRETIZATIONS)}")
    out_dtype = out_dtype or x.dtype
    dtype = torch.promote_types(x.dtype, dt.dtype)
    chosen = choose_backend(backend, x.device, dtype)
    # Entries are data: under tracing and on the meta device they are not there to look at.
    abstract = torch.compiler.is_compiling() or x.is_meta
    facts = path_facts(path, sizes.L, abstract=abstract)

    exact = torch.float64 if dtype == torch.float64 else torch.float32
    x, dt, dt_weight = _cast(x, dtype), _cast(dt, dtype), _cast(dt_weight, dtype)
    B, C = (value if value.dtype == exact else _cast(value, dtype) for value in (B, C))
    A, D, dt_bias, initial_state = (_cast(value, exact) for value in (A, D, dt_bias, initial_state))
    needs_grad = torch.is_grad_enabled() and any(
        v is not None and v.requires_grad for v in (x, dt, A, B, C, D, dt_bias, dt_weight, initial_state)
    )
    # Where A is needed for nothing else, the kernel makes it on the way.
    inside = chosen == "native" and not (needs_grad or observers or torch.compiler.is_compiling())
    if log_A and not inside:
        A = -A.exp()
    tensors = ScanTensors(x, dt, A, B, C, D, dt_bias, dt_weight, path, initial_state)
    zoh = discretization == "zoh"
    for observer in observers:
        observer(tensors, softplus, zoh)

    if chosen == "reference" or (chosen == "torch" and not needs_grad and not abstract):
        plain = reference if chosen == "reference" else torch_chunked
        with without_autocast(x.device):
            y, last = plain.scan(tensors, softplus=softplus, zoh=zoh, merge=merge, out_dtype=out_dtype)
    else:
        y, last, _ = torch.ops.visionssm.path_scan(
            *tensors,
            softplus,
            zoh,
            merge,
            *facts,
            chosen,
            out_dtype,
            needs_grad,
            *((True,) if log_A and inside else ()),
        )
    return (y, last) if return_last_state else y


def _cast(value: Any, dtype: torch.dtype) -> Any:
    # The usual case costs a question, not a call into torch that does nothing.
    return value if value is None or value.dtype == dtype else value.to(dtype)


def selective_scan(
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
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan over sequences, with the shapes and the meaning that users of `mamba_ssm` know.

    Args:
        u: (batch, E, L).
        delta: (batch, E, L).
        A: (E, N), real.
        B, C: (batch, N, L); (batch, G, N, L) with G groups of E / G channels; or (E, N), the same at every step.
        D: (E) or None.
        z: (batch, E, L) or None: the output is multiplied by SiLU(z).
        delta_bias: (E) or None.
        delta_softplus: whether delta = softplus(delta + delta_bias).
        return_last_state: also return the state after the last step.

    Returns:
        (batch, E, L) in u's dtype; with `return_last_state` also (batch, E, N).

    Raises:
        ValueError, TypeError: a shape or dtype that does not fit; complex A, B or C.

    Example:
        >>> u = delta = torch.rand(2, 8, 5)
        >>> B = C = torch.rand(2, 4, 5)
        >>> selective_scan(u, delta, -torch.ones(8, 4), B, C, delta_softplus=True).shape
        torch.Size([2, 8, 5])
    """
    for name, value in (("u", u), ("delta", delta)):
        if value.dim() != 3:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, need (batch, E, L)")
    batch, E, L = u.shape
    if delta.shape != u.shape:
        raise ValueError(f"delta: got shape {tuple(delta.shape)}, need {tuple(u.shape)}, as u")
    if A.dim() != 2 or A.shape[0] != E:
        raise ValueError(f"A: got shape {tuple(A.shape)}, need (E, N) with E={E} from u")
    if z is not None and z.shape != u.shape:
        raise ValueError(f"z: got shape {tuple(z.shape)}, need {tuple(u.shape)}, as u")
    for name, value in (("A", A), ("B", B), ("C", C)):
        if value.is_complex():
            raise TypeError(f"{name}: got {value.dtype}, but only real state spaces are supported")
    B, C = (_grouped(name, value, batch, E, A.shape[1], L) for name, value in (("B", B), ("C", C)))
    groups = max(B.shape[2], C.shape[2])
    if E % groups or min(B.shape[2], C.shape[2]) not in (1, groups):
        raise ValueError(f"B, C: got {B.shape[2]} and {C.shape[2]} groups, need equal numbers that divide E={E}")
    B, C = B.expand(-1, -1, groups, -1), C.expand(-1, -1, groups, -1)

    def split(vector: Tensor | None) -> Tensor | None:
        return None if vector is None else vector.reshape(groups, E // groups)

    out = path_scan(
        u.transpose(1, 2).unflatten(2, (groups, -1)),
        delta.transpose(1, 2).unflatten(2, (groups, -1)),
        A.reshape(groups, E // groups, -1),
        B,
        C,
        split(D),
        split(delta_bias),
        raster(1, L, device=u.device).expand(groups, -1),
        softplus=delta_softplus,
        merge=False,
        return_last_state=True,
        out_dtype=u.dtype if z is None else torch.promote_types(u.dtype, torch.float32),
        backend=backend,
    )
    y, last = out[0].flatten(2).transpose(1, 2), out[1].flatten(1, 2)
    if z is not None:
        y = (y * F.silu(z.to(y.dtype))).to(u.dtype)
    return (y, last) if return_last_state else y


def _grouped(name: str, value: Tensor, batch: int, E: int, N: int, L: int) -> Tensor:
    """B or C in any of its three forms, as (batch, L, groups, N)."""
    if value.shape == (batch, N, L):
        return value.transpose(1, 2)[:, :, None]
    if value.dim() == 4 and (value.shape[0], *value.shape[2:]) == (batch, N, L):
        return value.permute(0, 3, 1, 2)
    if value.shape == (E, N):
        return value.expand(batch, L, E, N)
    raise ValueError(
        f"{name}: got shape {tuple(value.shape)}, need (batch, N, L) = {(batch, N, L)}, (batch, groups, N, L), or (E, N) = {(E, N)}"
    )
