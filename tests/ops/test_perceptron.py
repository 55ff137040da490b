"""The MLP in tiles is the MLP: values, gradients, second gradients, precision, compiled graphs."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from visionssm.ops import default_backend, matrix_product, mlp, native, native_product, perceptron


@pytest.fixture(params=["torch", "onednn", "native"])
def choice(request, monkeypatch):
    if request.param == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch was built without oneDNN")
    if request.param == "native" and native.unavailable() is not None:
        pytest.skip("the native back-end was not built")
    monkeypatch.setenv("VISIONSSM_LINEAR", request.param)
    monkeypatch.setattr(matrix_product, "_decisions", {})
    monkeypatch.setattr(native_product, "_decisions", {})
    return request.param


def layers(width=16, hidden=64, dtype=torch.float32, requires_grad=False):
    shapes = (hidden, width), (hidden,), (width, hidden), (width,)
    return [(torch.randn(shape) / width**0.5).to(dtype).requires_grad_(requires_grad) for shape in shapes]


def plain(x, w1, b1, w2, b2):
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


@pytest.mark.parametrize("rows", [1, 256, 513, 900])
@torch.no_grad()
def test_tiles_do_not_show(choice, rows, monkeypatch):
    monkeypatch.setattr(perceptron, "_TILE_BYTES", 1)  # 256 rows
    exact = [torch.randn(rows, 16, dtype=torch.float64), *layers(dtype=torch.float64)]
    x, *weights = (value.float() for value in exact)
    found = mlp(x, *weights)
    torch.testing.assert_close(found, plain(*exact).float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(mlp(x.view(1, rows, 16).transpose(0, 1), *weights)[:, 0], found)


@pytest.mark.parametrize("columns", [64, 37])
def test_gelu_with_bias(instruction_set, columns):
    x, bias = torch.linspace(-12, 12, 40 * columns).view(40, columns), torch.randn(columns)
    exact = x.double() + bias
    wanted = exact * torch.special.ndtr(exact)
    before, hidden = x.clone(), torch.empty_like(x)
    native.bias_gelu(before, bias, hidden)
    torch.testing.assert_close(before, x + bias, rtol=1e-6, atol=1e-6)
    assert bool(((hidden - wanted).abs() <= 2e-7 * exact.abs() + 1e-9).all())
    place = x.clone()
    assert torch.equal(native.bias_gelu(place, bias, place), hidden)

    half = x.bfloat16()
    exact = half.double()
    wanted = exact * torch.special.ndtr(exact)
    rounded = native.bias_gelu(half, None, torch.empty_like(half))
    assert bool(((rounded - wanted).abs() <= 0.6 * torch.finfo(torch.bfloat16).eps * wanted.abs() + 1e-6).all())


@pytest.mark.parametrize("columns", [64, 37])
def test_gradient_of_gelu(instruction_set, columns):
    x, cotangent = torch.linspace(-12, 12, 40 * columns).view(40, columns), torch.randn(40, columns)
    exact = x.double().requires_grad_()
    wanted = exact * torch.special.ndtr(exact)
    (wanted_gradient,) = torch.autograd.grad(wanted, exact, cotangent.double())
    hidden = native.gelu_backward(x, cotangent, torch.empty_like(x))
    torch.testing.assert_close(hidden, wanted.detach().float(), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(cotangent, wanted_gradient.float(), rtol=2e-6, atol=1e-6)


def test_gelu_of_what_is_no_ordinary_number(instruction_set):
    x = torch.tensor([[torch.inf, -torch.inf, torch.nan, 1e30, -1e30, 0.0]])
    gradient = torch.ones_like(x)
    hidden = native.gelu_backward(x, gradient, torch.empty_like(x))
    torch.testing.assert_close(hidden, torch.tensor([[torch.inf, 0.0, torch.nan, 1e30, 0.0, 0.0]]), equal_nan=True)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 0.0, torch.nan, 1.0, 0.0, 0.5]]), equal_nan=True)
    assert torch.equal(native.bias_gelu(x, None, torch.empty_like(x)).nan_to_num(), hidden.nan_to_num())


@torch.no_grad()
def test_without_the_native_kernel_it_is_the_same(choice):
    tensors = [torch.randn(30, 16), *layers()]
    found = mlp(*tensors)
    with default_backend("torch"):
        torch.testing.assert_close(mlp(*tensors), found)


@pytest.mark.parametrize("sizes", [(16, 64), (16, 37), (15, 64), (128, 256)], ids=str)
@torch.no_grad()
def test_bfloat16_is_as_close_as_torchs(choice, sizes):
    exact = [torch.randn(300, sizes[0]), *layers(*sizes)]
    half = [value.bfloat16() for value in exact]
    assert (mlp(*half) - plain(*exact)).norm() < 1.1 * (plain(*half) - plain(*exact)).norm()


def gradients(function, tensors, cotangent, **options):
    leaves = [value.detach().requires_grad_() for value in tensors]
    return torch.autograd.grad(function(*leaves), leaves, cotangent, **options), leaves


@pytest.mark.parametrize("rows", [3, 600])
def test_gradients(choice, rows, monkeypatch):
    monkeypatch.setattr(perceptron, "_TILE_BYTES", 1)
    x, (weight1, bias1, weight2, bias2) = torch.randn(rows, 16), layers()
    tensors, cotangent = [x, weight1, bias1, weight2[:9], bias2[:9]], torch.randn(rows, 9)
    found, _ = gradients(mlp, tensors, cotangent)
    wanted, _ = gradients(plain, [value.double() for value in tensors], cotangent.double())
    again, _ = gradients(mlp, tensors, cotangent)
    for ours, exact, repeated in zip(found, wanted, again, strict=True):
        torch.testing.assert_close(ours, exact.float(), rtol=1e-4, atol=1e-4)
        assert torch.equal(ours, repeated)


@pytest.mark.parametrize("trained", range(5))
def test_any_one_tensor_can_be_the_one_that_is_trained(choice, trained):
    tensors, cotangent = [torch.randn(2, 3, 16), *layers()], torch.randn(2, 3, 16)
    tensors[trained].requires_grad_()
    (found,) = torch.autograd.grad(mlp(*tensors), tensors[trained], cotangent)
    (wanted,) = torch.autograd.grad(plain(*tensors), tensors[trained], cotangent)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_gradients_of_gradients(choice):
    tensors, cotangent = [torch.randn(5, 16), *layers()], torch.randn(5, 16)
    second = []
    for function in (mlp, plain):
        first, leaves = gradients(function, tensors, cotangent, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves, materialize_grads=True))
    for ours, torchs in zip(*second, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-3)


def test_without_biases(choice):
    x, (w1, _, w2, _) = torch.randn(4, 16), layers(requires_grad=True)
    torch.testing.assert_close(mlp(x, w1, None, w2, None), plain(x, w1, None, w2, None))
    mlp(x, w1, None, w2, None).sum().backward()


def test_opcheck():
    x, weights = torch.randn(2, 5, 16), layers(requires_grad=True)
    torch.library.opcheck(torch.ops.visionssm.mlp, (x, *weights, True))
    with torch.no_grad():
        torch.library.opcheck(torch.ops.visionssm.mlp, (x, *(w.detach() for w in weights), False))


def test_compiles_as_one_graph(choice):
    x, weights = torch.randn(2, 5, 16), layers()
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (5, 3):
        torch.testing.assert_close(compiled(x[:, :length], *weights), mlp(x[:, :length], *weights))


def test_flops_are_those_of_two_products():
    with FlopCounterMode(display=False) as counter:
        mlp(torch.randn(2, 5, 16), *layers())
    assert counter.get_total_flops() == 2 * 2 * 5 * 16 * 64 * 2


@torch.no_grad()
def test_biases_that_do_not_fit_are_refused(choice):
    x, (w1, b1, w2, b2) = torch.randn(4, 16), layers()
    for first, second in ((b1[:5], b2), (b1, b2[:5]), (b1, torch.zeros(20))):
        with pytest.raises(RuntimeError, match="size"):
            mlp(x, w1, first, w2, second)
    with pytest.raises(RuntimeError, match="dtype"):
        mlp(x, w1, b1.bfloat16(), w2, b2)


@torch.no_grad()
def test_parameters_that_are_views(choice):
    x, (w1, b1, w2, b2) = torch.randn(4, 16), layers()
    weights = [value.repeat_interleave(2, -1)[..., ::2] for value in (w1, b1, w2, b2)]
    torch.testing.assert_close(mlp(x, *weights), plain(x, w1, b1, w2, b2), rtol=1e-5, atol=1e-5)
