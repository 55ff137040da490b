"""The native norms are torch's: values in every precision and on every instruction set, views, compiled graphs."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from visionssm.ops import add_layer_norm, add_rms_norm, default_backend, layer_norm, native, rms_norm

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason="the native back-end was not built")
SHAPES = [(9, 96), (4, 16), (1, 1), (5, 3), (2, 3, 37), (3, 768), (0, 8)]


def arguments(shape, dtype=torch.float32, offset=1.0):
    x, weight, bias = torch.randn(shape) * 2 + offset, torch.randn(shape[-1]), torch.randn(shape[-1])
    return [value.to(dtype) for value in (x, weight, bias)]


def expected(x, weight, bias):
    return F.layer_norm(
        x.double(), x.shape[-1:], *(None if value is None else value.double() for value in (weight, bias))
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_values_on_every_instruction_set(instruction_set, shape):
    x, weight, bias = arguments(shape)
    for parameters in ((weight, bias), (weight, None), (None, bias), (None, None)):
        found = layer_norm(x, *parameters)
        torch.testing.assert_close(found, expected(x, *parameters).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 4, 16), (2, 3, 1, 37), (3, 2, 50), (2, 3, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_groups_with_parameters_of_their_own(instruction_set, shape, dtype):
    x, weight, bias = (torch.randn(size).to(dtype) for size in (shape, shape[-2:], shape[-2:]))
    rounding = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 4e-3, "atol": 1e-4}
    for w, b in ((weight, bias), (weight, None), (None, bias)):
        found = layer_norm(x, w, b)
        wanted = F.layer_norm(x.double(), shape[-1:]) * (1 if w is None else w.double()) + (0 if b is None else b)
        torch.testing.assert_close(found.double(), wanted, **rounding)
        with default_backend("torch"):
            exact = layer_norm(x.float(), *(value if value is None else value.float() for value in (w, b)))
        torch.testing.assert_close(exact.double(), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError):
        layer_norm(x, weight[:, 1:])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_the_sum_is_normalised_and_given_back(instruction_set, shape, dtype):
    (x, weight, bias), update = arguments(shape, dtype), torch.randn(shape).to(dtype)
    copies = x.clone(), update.clone()
    y, total = add_layer_norm(x, update, weight, bias)
    assert torch.equal(total, x + update) and torch.equal(y, layer_norm(x + update, weight, bias))
    assert torch.equal(x, copies[0]) and torch.equal(update, copies[1])


@torch.no_grad()
def test_sums_of_views_of_other_shapes_and_backends():
    x, weight, bias = arguments((4, 6, 8))
    update = torch.randn(6, 4, 8).transpose(0, 1)
    y, total = add_layer_norm(x, update, weight, bias)
    assert torch.equal(total, x + update)
    with default_backend("torch"):
        torch.testing.assert_close(add_layer_norm(x, update, weight, bias), (y, total))
    for other in (update[:1], update.double()):
        y, total = add_layer_norm(x, other, weight.to(other.dtype), bias.to(other.dtype))
        assert torch.equal(total, x + other) and y.shape == x.shape
    torch.library.opcheck(torch.ops.visionssm.add_layer_norm, (x, update, weight, bias, 1e-5))


@torch.no_grad()
def test_a_large_mean_costs_no_more_digits_than_torch_loses():
    x, weight, bias = arguments((8, 96), offset=1000.0)
    wanted = expected(x, weight, bias)
    torchs = F.layer_norm(x, (96,), weight, bias)
    assert (layer_norm(x, weight, bias) - wanted).abs().max() <= 2 * (torchs - wanted).abs().max() + 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision_is_rounded_once(dtype):
    x, weight, bias = arguments((6, 50), dtype)
    found, wanted = layer_norm(x, weight, bias), expected(x, weight, bias)
    assert found.dtype == dtype
    assert bool(((found.double() - wanted).abs() <= 0.51 * torch.finfo(dtype).eps * (wanted.abs() + 0.01)).all())


@torch.no_grad()
def test_views_other_backends_and_repeats():
    x, weight, bias = arguments((4, 6, 8))
    turned = layer_norm(x.transpose(0, 1), weight, bias)
    assert turned.is_contiguous()
    assert torch.equal(turned.transpose(0, 1), layer_norm(x, weight, bias))
    with default_backend("torch"):
        torch.testing.assert_close(layer_norm(x, weight, bias), turned.transpose(0, 1))
        assert torch.equal(layer_norm(x, weight, bias), F.layer_norm(x, (8,), weight, bias))


@torch.no_grad()
def test_nan_stays_in_its_row():
    x, weight, bias = arguments((6, 20))
    x[2, 3] = torch.nan
    assert layer_norm(x, weight, bias).isnan().any(-1).tolist() == [False, False, True, False, False, False]


def test_gradients_and_other_precisions_are_torchs():
    x, weight, bias = (value.requires_grad_() for value in arguments((3, 8)))
    assert torch.equal(layer_norm(x, weight, bias), F.layer_norm(x, (8,), weight, bias))
    exact = [v.detach().double().requires_grad_() for v in (x, weight, bias)]
    torch.autograd.gradcheck(layer_norm, exact)
    torch.autograd.gradcheck(add_layer_norm, [torch.ones(3, 8).double().requires_grad_(), *exact])
    grouped = torch.randn(2, 8).double().requires_grad_()
    torch.autograd.gradcheck(layer_norm, [torch.randn(3, 2, 8).double().requires_grad_(), grouped, grouped])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer_norm(x, weight, bias), F.layer_norm(x, (8,), weight, bias))


@torch.no_grad()
def test_registered_operator_and_compiled_graph():
    x, weight, bias = arguments((2, 3, 16))
    torch.library.opcheck(torch.ops.visionssm.layer_norm, (x, weight, bias, 1e-5))
    compiled = torch.compile(layer_norm, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias), layer_norm(x, weight, bias))


@torch.no_grad()
def test_parameters_of_another_width_are_refused():
    x = torch.randn(4, 8)
    for parameters in ((torch.ones(4), None), (None, torch.ones(4)), (torch.ones(16), torch.ones(16))):
        with pytest.raises(RuntimeError, match="same shape as normalized_shape"):
            layer_norm(x, *parameters)


def rms(x, residual, weight):
    total = x.double() if residual is None else x.double() + residual.double()
    return F.rms_norm(total, x.shape[-1:], weight.double(), 1e-5), total


@pytest.mark.parametrize("shape", [*SHAPES, (700, 192)], ids=str)
@torch.no_grad()
def test_rms_norm_on_every_instruction_set(instruction_set, shape):
    x, weight, _ = arguments(shape)
    for residual in (torch.randn(shape), None):
        y, total = add_rms_norm(x, residual, weight)
        wanted, _ = rms(x, residual, weight)
        assert torch.equal(total, x if residual is None else x + residual)
        torch.testing.assert_close(y, wanted.float(), rtol=1e-5, atol=1e-6)
    assert torch.equal(rms_norm(x, weight), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_rms_norm_of_half_precision_is_rounded_once_and_keeps_the_sum(dtype):
    x, weight, _ = arguments((6, 50), dtype)
    residual = torch.randn(6, 50)
    y, total = add_rms_norm(x, residual, weight)
    assert (y.dtype, total.dtype) == (dtype, torch.float32)
    assert torch.equal(total, residual + x)
    wanted, _ = rms(x, residual, weight)
    assert bool(((y.double() - wanted).abs() <= 0.51 * torch.finfo(dtype).eps * (wanted.abs() + 0.01)).all())
    assert rms_norm(x, weight).dtype == torch.float32


@torch.no_grad()
def test_rms_norm_leaves_its_inputs_alone_and_does_not_depend_on_threads():
    x, weight, _ = arguments((801, 192))
    residual = torch.randn(801, 192)
    copies = x.clone(), residual.clone()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(add_rms_norm(x, residual, weight))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(x, copies[0]) and torch.equal(residual, copies[1])
    for y, total in found[1:]:
        assert torch.equal(y, found[0][0]) and torch.equal(total, found[0][1])


@pytest.mark.parametrize("policy", ["passive", "active"])
def test_few_numbers_wake_no_thread(policy):
    code = "import torch; torch.set_num_threads(3); from visionssm.ops.native import useful_threads as u; "
    code += "print(u(1), u(50_000), u(10**7))"
    environment = os.environ | {"OMP_WAIT_POLICY": policy}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1" if policy == "passive" else "3", "3"]


@torch.no_grad()
def test_rms_norm_of_views_and_other_backends():
    x, weight, _ = arguments((4, 6, 8))
    residual = torch.randn(6, 4, 8)
    y, total = add_rms_norm(x.transpose(0, 1), residual, weight)
    with default_backend("torch"):
        other, sums = add_rms_norm(x.transpose(0, 1), residual, weight)
        torch.testing.assert_close(y, other)
        torch.testing.assert_close(rms_norm(x, weight), F.rms_norm(x, (8,), weight, 1e-5))
    assert torch.equal(total, sums)
    wider, sums = add_rms_norm(x.bfloat16(), residual.transpose(0, 1).double(), weight)
    assert (wider.dtype, sums.dtype) == (torch.bfloat16, torch.float64)
    broadcast, _ = add_rms_norm(x, residual[:1].transpose(0, 1)[:, :1, :], weight)
    assert broadcast.shape == x.shape


def test_rms_norm_gradients_are_torchs():
    x, weight, _ = (value.requires_grad_() for value in arguments((3, 8)))
    residual = torch.randn(3, 8)
    y, total = add_rms_norm(x, residual, weight)
    assert torch.equal(y, F.rms_norm(x + residual, (8,), weight, 1e-5))
    torch.autograd.gradcheck(add_rms_norm, [v.detach().double().requires_grad_() for v in (x, residual, weight)])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, total = add_rms_norm(x.bfloat16(), residual, weight)
        assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)


@torch.no_grad()
def test_rms_norm_as_registered_operator_and_in_graphs():
    x, weight, _ = arguments((2, 3, 16))
    for residual in (torch.randn(2, 3, 16), None):
        torch.library.opcheck(torch.ops.visionssm.add_rms_norm, (x, residual, weight, 1e-5))
        compiled = torch.compile(add_rms_norm, fullgraph=True, backend="aot_eager")
        for found, wanted in zip(compiled(x, residual, weight), add_rms_norm(x, residual, weight), strict=True):
            torch.testing.assert_close(found, wanted)
