"""The chosen matrix product is a matrix product: values, gradients, in compiled graphs; and it is chosen by measurement."""

import json
import time

import pytest
import torch
import torch.nn.functional as F

from visionssm.ops import linear, matrix_product, native, native_product
from visionssm.ops.matrix_product import uses_onednn
from visionssm.ops.product_choice import CHOICES, fastest


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


def test_measured_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def way(name, seconds):
        def run():
            calls.append(name)
            time.sleep(seconds)

        return run

    ways = {"usual": way("usual", 0.01), "better": way("better", 0), "worse": way("worse", 0.02)}
    assert fastest(ways, "sleeping") == "better"
    (file,) = (tmp_path / "visionssm").iterdir()
    gains = json.loads(file.read_text())
    assert gains["usual"] == 1 and gains["worse"] < 1 < gains["better"]
    calls.clear()
    assert fastest(ways, "sleeping") == "better" and calls == []
    assert fastest({"usual": ways["usual"], "worse": ways["worse"]}, "sleeping") == "usual"
    file.write_text("{ cut off")
    assert fastest(ways, "sleeping") == "better"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_answer_is_kept_for_every_dtype(dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("VISIONSSM_LINEAR", "auto")
    monkeypatch.setattr(matrix_product, "_decisions", {})
    chosen = uses_onednn(dtype)
    assert matrix_product._decisions == {dtype: chosen}
    assert not uses_onednn(torch.float64)


@torch.no_grad()
def test_many_rows_and_crowded_ones(choice):
    for rows, inner in ((4096, 24), (4097, 24), (5, 512), (5, 1024)):
        x, weight, bias = torch.randn(rows, inner), torch.randn(7, inner), torch.randn(7)
        wanted = x.double() @ weight.double().T + bias.double()
        torch.testing.assert_close(linear(x, weight, bias).double(), wanted, rtol=1e-5, atol=1e-4)


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
