"""The MLP in tiles is the MLP: values, gradients, second gradients, precision, compiled graphs."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from visionssm.ops import matrix_product, mlp, perceptron


@pytest.fixture(params=["torch", "onednn"])
def choice(request, monkeypatch):
    if request.param == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch was built without oneDNN")
    monkeypatch.setenv("VISIONSSM_LINEAR", request.param)
    monkeypatch.setattr(matrix_product, "_decisions", {})
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


@torch.no_grad()
def test_bfloat16_is_as_close_as_torchs(choice):
    exact = [torch.randn(300, 16), *layers()]
    half = [value.bfloat16() for value in exact]
    assert (mlp(*half) - plain(*exact)).norm() < 1.1 * (plain(*half) - plain(*exact)).norm()


def gradients(function, tensors, cotangent, **options):
    leaves = [value.detach().requires_grad_() for value in tensors]
    return torch.autograd.grad(function(*leaves), leaves, cotangent, **options), leaves


@pytest.mark.parametrize("rows", [3, 600])
def test_gradients(choice, rows, monkeypatch):
    monkeypatch.setattr(perceptron, "_TILE_BYTES", 1)
    tensors, cotangent = [torch.randn(rows, 16), *layers()], torch.randn(rows, 16)
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
