"""The native gate is y * SiLU(z): values in every precision and on every instruction set, views, gradients, graphs."""

import pytest
import torch
import torch.nn.functional as F

from visionssm.ops import default_backend, gate_silu, native

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason="the native back-end was not built")
SHAPES = [(9, 96), (4, 16), (1, 1), (5, 3), (2, 3, 37), (2, 5, 4, 24), (400, 768), (0, 8)]


def arguments(shape, dtype=torch.float32):
    return (torch.randn(shape) * 3).to(dtype), (torch.randn(shape) * 8).to(dtype)


def expected(y, z, scale=1.0):
    return y.double() * F.silu(z.double()) * scale


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_values_on_every_instruction_set(instruction_set, shape):
    for scale in (1.0, 0.5, -3.0):
        y, z = arguments(shape)
        wanted = expected(y, z, scale).float()
        found = gate_silu(y, z, scale)
        assert found is y
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision_is_rounded_once(dtype):
    y, z = arguments((6, 50), dtype)
    wanted = expected(y, z)
    found = gate_silu(y, z)
    assert found.dtype == dtype
    assert bool(((found.double() - wanted).abs() <= 0.51 * torch.finfo(dtype).eps * (wanted.abs() + 0.01)).all())


@torch.no_grad()
def test_extremes_are_torchs():
    z = torch.tensor([-torch.inf, -200.0, -88.5, -0.0, 88.5, 200.0, torch.inf, torch.nan])
    found, wanted = gate_silu(torch.ones(8), z.clone()), F.silu(z)
    torch.testing.assert_close(found, wanted, equal_nan=True, atol=1e-35, rtol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
@torch.no_grad()
def test_the_same_bits_on_any_number_of_threads(threads):
    torch.manual_seed(0)
    before = torch.get_num_threads()
    y, z = arguments((500, 403))
    wanted = gate_silu(y.clone()[:1], z[:1])
    try:
        torch.set_num_threads(threads)
        rows = gate_silu(y.clone(), z.clone())
    finally:
        torch.set_num_threads(before)
    parts = torch.cat([gate_silu(y[i : i + 50].clone(), z[i : i + 50]) for i in range(0, 500, 50)])
    assert torch.equal(rows[:1], wanted)
    assert torch.equal(rows, parts)


@torch.no_grad()
def test_views_are_read_where_they_lie():
    y, z = arguments((2, 6, 40))
    wanted = gate_silu(y.clone(), z.clone())
    halves = torch.stack((torch.full_like(z, torch.nan), z), dim=2).flatten(2)  # rows of 80, the second half is z
    assert torch.equal(gate_silu(y.clone(), halves[..., 40:]), wanted)
    assert torch.equal(gate_silu(y.clone(), z.transpose(0, 1).contiguous().transpose(0, 1)), wanted)
    assert torch.equal(gate_silu(y.clone(), z.transpose(1, 2).contiguous().transpose(1, 2)), wanted)
    row = gate_silu(y[:1].clone(), z[:1, :1].expand(1, 6, 40))
    torch.testing.assert_close(row, expected(y[:1], z[:1, :1]).float())


@torch.no_grad()
def test_other_backends_and_precisions_are_torchs():
    y, z = arguments((4, 24))
    with default_backend("torch"):
        torch.testing.assert_close(gate_silu(y.clone(), z.clone(), 0.5), gate_silu(y.clone(), z.clone()) / 2)
    mixed = gate_silu(y.clone(), z.bfloat16())
    assert mixed.dtype == torch.float32
    assert gate_silu(y.bfloat16(), z.clone()).dtype == torch.float32
    assert torch.equal(gate_silu(y.double(), z.double()), expected(y, z))


def test_gradients():
    y, z = (value.double().requires_grad_() for value in arguments((3, 8)))
    torch.autograd.gradcheck(lambda y, z: gate_silu(y, z, 0.5), (y, z))
    before = y.detach().clone()
    gate_silu(y, z)
    assert torch.equal(y, before)


@torch.no_grad()
def test_registered_operator_and_compiled_graph():
    y, z = arguments((2, 3, 16))
    torch.library.opcheck(torch.ops.visionssm.gate_silu_, (y.clone(), z, 0.5))
    compiled = torch.compile(lambda y, z: gate_silu(y * 1, z * 1), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(y, z), gate_silu(y, z))
