"""The chosen matrix product is a matrix product: values, gradients, in compiled graphs; and it is chosen by measurement."""

import json

import pytest
import torch
import torch.nn.functional as F

from visionssm.ops import linear, matrix_product
from visionssm.ops.matrix_product import CHOICES, _remembered, uses_onednn


@pytest.fixture(params=["torch", "onednn"])
def choice(request, monkeypatch):
    if request.param == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch was built without oneDNN")
    monkeypatch.setenv("VISIONSSM_LINEAR", request.param)
    monkeypatch.setattr(matrix_product, "_decisions", {})
    return request.param


def tensors(grad=True):
    return [torch.randn(*shape, requires_grad=grad) for shape in ((2, 5, 16), (8, 16), (8,))]


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients(choice, gelu, bias):
    x, weight, b = tensors()
    b = b if bias else None
    y = linear(x, weight, b, gelu=gelu)
    expected = F.linear(x, weight, b)
    expected = F.gelu(expected) if gelu else expected
    torch.testing.assert_close(y, expected)
    leaves = [v for v in (x, weight, b) if v is not None]
    cotangent = torch.randn_like(y)
    for found, wanted in zip(
        torch.autograd.grad(y, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent), strict=True
    ):
        torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, b, gelu=gelu), expected)


def test_views_are_read_as_they_are(choice):
    x, weight, b = tensors(grad=False)
    torch.testing.assert_close(linear(x.transpose(0, 1), weight, b), F.linear(x.transpose(0, 1), weight, b))
    wide = torch.randn(2, 5, 40)[..., 8:24]
    torch.testing.assert_close(linear(wide, weight, b), F.linear(wide, weight, b))


@torch.no_grad()
def test_parameters_that_are_views(choice):
    x, weight, bias = torch.randn(4, 16), torch.randn(8, 32)[:, ::2], torch.randn(16)[::2]
    wanted = x.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(linear(x, weight, bias).double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(matrix_product.product(x, weight, bias).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shapes", [((8, 12), (8,)), ((8, 16), (4,)), ((8, 16), (2, 8))], ids=str)
def test_sizes_that_do_not_fit_are_named(choice, shapes):
    weight, bias = (torch.randn(shape) for shape in shapes)
    with pytest.raises(RuntimeError, match=r"shape|size|1-D|dim"):
        linear(torch.randn(4, 16), weight, bias)


def test_opcheck():
    x, weight, b = tensors()
    torch.library.opcheck(torch.ops.visionssm.linear, (x, weight, b, False))


def test_compiles_as_one_graph(choice):
    x, weight, b = tensors()
    compiled = torch.compile(lambda *args: linear(*args, gelu=True), fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (5, 3):
        torch.testing.assert_close(compiled(x[:, :length], weight, b), linear(x[:, :length], weight, b, gelu=True))


def test_other_precisions_and_autocast_are_torchs_own(choice):
    x, weight, b = tensors(grad=False)
    assert torch.equal(
        linear(x.double(), weight.double(), b.double()), F.linear(x.double(), weight.double(), b.double())
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(x, weight, b), F.linear(x, weight, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_measured_once_and_remembered(dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = _remembered(dtype)
    (file,) = (tmp_path / "visionssm").iterdir()
    assert json.loads(file.read_text()) == {"onednn_gain": first}
    assert _remembered(dtype) == first > 0
    file.write_text("{ cut off")
    assert _remembered(dtype) > 0


def test_bias_alone_has_its_gradient_through_gelu(choice):
    x, weight = torch.randn(3, 16), torch.randn(8, 16)
    bias = torch.randn(8, requires_grad=True)
    (found,) = torch.autograd.grad(linear(x, weight, bias, gelu=True).sum(), bias)
    (wanted,) = torch.autograd.grad(F.gelu(F.linear(x, weight, bias)).sum(), bias)
    torch.testing.assert_close(found, wanted)


def test_unknown_choice_is_named(monkeypatch):
    monkeypatch.setenv("VISIONSSM_LINEAR", "fast")
    monkeypatch.setattr(matrix_product, "_decisions", {})
    with pytest.raises(ValueError, match=f"got 'fast', choose from {', '.join(CHOICES)}"):
        uses_onednn()
