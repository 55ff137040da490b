"""Inputs at the edge of the number range give what float64 gives, or its limit; never NaN."""

import pytest
import torch

from visionssm.ops import explain_backend, path_scan, paths

BACKENDS = ("reference", "torch", "native")


@pytest.fixture(params=BACKENDS)
def backend(request):
    reason = explain_backend("cpu")[request.param]
    if reason is not None:
        pytest.skip(f"{request.param} {reason}")
    return request.param


def both(backend, x, dt, A, B, C, D=None, bias=None, **options):
    path = paths.raster(1, x.shape[1])
    exact = path_scan(
        *(None if v is None else v.double() for v in (x, dt, A, B, C, D, bias)), path, backend="reference", **options
    )
    return path_scan(x, dt, A, B, C, D, bias, path, backend=backend, **options), exact


@pytest.mark.parametrize("A", [-1e-6, -1.0, -1e4], ids=["A_near_0", "A_1", "A_1e4"])
@pytest.mark.parametrize("dt", [-60.0, 60.0, -20.0, 20.0])
def test_large_steps(backend, dt, A):
    T, E, N = 6, 17, 2
    x, B, C = torch.ones(1, T, E), torch.ones(1, T, 1, N), torch.ones(1, T, 1, N)
    y, exact = both(backend, x, torch.full((1, T, 1, E), dt), torch.full((1, E, N), A), B, C)
    assert y.isfinite().all()
    torch.testing.assert_close(y.double(), exact, rtol=3e-6, atol=1e-30)


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
def test_gradients_of_large_steps_are_finite_and_right(backend, discretization):
    T, E, N = 5, 16, 1
    dt = torch.linspace(-60, 60, E).expand(1, T, 1, E)
    found = {}
    for dtype, name in ((torch.float32, backend), (torch.float64, "reference")):
        leaves = [
            v.to(dtype).clone().requires_grad_()
            for v in (
                torch.ones(1, T, E),
                dt,
                torch.full((1, E, N), -0.5),
                torch.ones(1, T, 1, N),
                torch.ones(1, T, 1, N),
            )
        ]
        y = path_scan(*leaves, None, None, paths.raster(1, T), backend=name, discretization=discretization)
        y.sum().backward()
        found[dtype] = [leaf.grad for leaf in leaves]
    for a, b in zip(found[torch.float32], found[torch.float64], strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=1e-6 * float(b.abs().max()))


@pytest.mark.parametrize("name", ["torch", "native"])
def test_long_sequences_drift_no_more_than_the_definition(name):
    """65 536 steps with a memory of thousands: float32 rounding adds up, in the step-by-step reference as in any other."""
    if explain_backend("cpu")[name] is not None:
        pytest.skip(f"{name} {explain_backend('cpu')[name]}")
    T, E, N = 65_536, 16, 1
    generator = torch.Generator().manual_seed(0)
    x, dt = (torch.randn(1, T, *s, generator=generator) for s in ((E,), (1, E)))
    B, C = (torch.randn(1, T, 1, N, generator=generator) for _ in range(2))
    inputs = (x, dt - 4, torch.full((1, E, N), -1e-3), B, C)
    path = paths.raster(1, T)
    exact = path_scan(*(v.double() for v in inputs), None, None, path, backend="torch")
    found, step_by_step = (path_scan(*inputs, None, None, path, backend=b) for b in (name, "reference"))
    errors = [float((y - exact).abs().max() / exact.abs().max()) for y in (found, step_by_step)]
    assert errors[0] <= errors[1]
