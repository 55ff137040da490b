"""`selective_scan` means what users of mamba_ssm know."""

import numpy as np
import pytest
import torch
from parity_data import operator_vectors

from visionssm.ops import default_backend, explain_backend, selective_scan

BACKENDS = ("reference", "torch", "native")


@pytest.fixture(params=BACKENDS)
def backend(request):
    reason = explain_backend("cpu", torch.float64)[request.param]
    if reason is not None:
        pytest.skip(f"{request.param} {reason}")
    return request.param


def cases():
    return sorted({key.split("/")[0] for key in operator_vectors("vmamba", "operators") if key.startswith("sscan")})


@pytest.mark.parametrize("case", cases())
def test_published_vectors_with_gradients(case, backend):
    """Grouped selective scan in float64, with four groups, against the published kernel's reference."""
    vectors = operator_vectors("vmamba", "operators")
    inputs = {
        n: torch.from_numpy(vectors[f"{case}/{n}"]).requires_grad_()
        for n in ("u", "delta", "A", "B", "C", "D", "delta_bias")
    }
    y = selective_scan(**inputs, delta_softplus=True, backend=backend)
    assert np.abs(y.detach().numpy() - vectors[f"{case}/y"]).max() < 1e-10
    (y * torch.from_numpy(vectors[f"{case}/R"])).sum().backward()
    for name, value in inputs.items():
        expected = vectors[f"{case}/grad_{name}"]
        assert np.abs(value.grad.numpy() - expected).max() < 1e-10 * max(1, np.abs(expected).max()), name


def sequence(batch=2, E=4, N=3, L=9, groups=None):
    draw = torch.Generator().manual_seed(0)
    shape = (batch, N, L) if groups is None else (batch, groups, N, L)
    rand = lambda *s: torch.randn(*s, generator=draw, dtype=torch.float64)  # noqa: E731
    return {
        "u": rand(batch, E, L),
        "delta": rand(batch, E, L),
        "A": -rand(E, N).exp(),
        "B": rand(*shape),
        "C": rand(*shape),
    }


def plain(u, delta, A, B, C):
    """One sequence at a time, one step at a time; B and C (batch, E, N, L)."""
    y = torch.zeros_like(u)
    h = u.new_zeros(*u.shape[:2], A.shape[1])
    for t in range(u.shape[2]):
        d = delta[:, :, t, None]
        h = torch.exp(d * A) * h + d * B[..., t] * u[:, :, t, None]
        y[:, :, t] = (h * C[..., t]).sum(-1)
    return y, h


def test_constant_B_and_C_are_the_same_at_every_step(backend):
    values = sequence()
    B, C = (torch.randn(4, 3, dtype=torch.float64) for _ in range(2))
    y, last = selective_scan(values["u"], values["delta"], values["A"], B, C, return_last_state=True, backend=backend)
    expected, expected_last = plain(
        values["u"], values["delta"], values["A"], *(v[None, :, :, None].expand(2, 4, 3, 9) for v in (B, C))
    )
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(last, expected_last)


def test_groups_share_B_and_C_among_their_channels(backend):
    values = sequence(groups=2)
    y = selective_scan(**values, backend=backend)
    per_channel = [values[n].repeat_interleave(2, dim=1) for n in ("B", "C")]
    torch.testing.assert_close(y, plain(values["u"], values["delta"], values["A"], *per_channel)[0])


def test_gate_multiplies_by_silu(backend):
    values = sequence()
    z = torch.randn(2, 4, 9, dtype=torch.float64)
    with default_backend(backend):
        torch.testing.assert_close(selective_scan(**values, z=z), selective_scan(**values) * z * torch.sigmoid(z))


def test_low_precision_gate_is_applied_before_rounding(backend):
    values = {name: v.bfloat16() for name, v in sequence().items()}
    z = torch.randn(2, 4, 9).bfloat16()
    y = selective_scan(**values, z=z, backend=backend)
    assert y.dtype == torch.bfloat16
    exact = selective_scan(**{n: v.double() for n, v in values.items()}, z=z.double(), backend="reference")
    assert (y.double() - exact).abs().max() <= 2**-8 * exact.abs().max()
