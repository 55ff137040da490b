"""The convolutional MLP in bands equals its four steps in float64, however the bands fall."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from visionssm.ops import conv_mlp, conv_perceptron, default_backend, native

NATIVE = pytest.mark.skipif(native.unavailable() is not None, reason="the native back-end was not built")


def arguments(batch=3, H=23, W=6, width=8, hidden=20, taps=3, bias=True):
    sizes = (hidden, width), (hidden,), (hidden, 1, taps, taps), (hidden,), (width, hidden), (width,)
    weights = [torch.randn(size) / size[-1] ** 0.5 for size in sizes]
    if not bias:
        weights[1::2] = [None] * 3
    return [torch.randn(batch, H, W, width), *weights]


def expected(x, weight1, bias1, taps, taps_bias, weight2, bias2):
    x, weight1, bias1, taps, taps_bias, weight2, bias2 = (
        None if v is None else v.double() for v in (x, weight1, bias1, taps, taps_bias, weight2, bias2)
    )
    hidden = F.linear(x, weight1, bias1).permute(0, 3, 1, 2)
    hidden = F.conv2d(hidden, taps, taps_bias, padding=taps.shape[-1] // 2, groups=len(taps))
    return F.linear(F.gelu(hidden.permute(0, 2, 3, 1)), weight2, bias2)


@pytest.mark.parametrize("backend", [pytest.param("native", marks=NATIVE), "torch"])
@pytest.mark.parametrize("tile_bytes", [1, 6 * 20 * 4 * 50, 2**22], ids=["rows", "two images", "all"])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"taps": 5}, {"batch": 0}, {"H": 1}], ids=str)
@torch.no_grad()
def test_values(monkeypatch, backend, tile_bytes, options):
    monkeypatch.setattr(conv_perceptron, "_TILE_BYTES", tile_bytes)
    given = arguments(**options)
    with default_backend(backend):
        torch.testing.assert_close(conv_mlp(*given), expected(*given).float(), rtol=1e-5, atol=1e-5)


@NATIVE
@torch.no_grad()
def test_bands_cover_every_row_of_every_image_once(monkeypatch):
    for tile_bytes in (1, 100, 1000, 10**6):
        monkeypatch.setattr(conv_perceptron, "_TILE_BYTES", tile_bytes)
        seen = torch.zeros(3, 37)
        for images, rows in conv_perceptron._bands(3, 37, 10, halo=1):
            seen[images, rows] += 1
        assert bool((seen == 1).all())


def test_gradients():
    given = [v.double().requires_grad_() for v in arguments(batch=1, H=3, W=2, width=2, hidden=3)]
    assert torch.autograd.gradcheck(conv_mlp, given)


@NATIVE
def test_registered_operator_compiled_graph_and_flops():
    given = arguments()
    torch.library.opcheck(torch.ops.visionssm.conv_mlp, given)
    with torch.no_grad():
        compiled = torch.compile(conv_mlp, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*given), conv_mlp(*given))
        with FlopCounterMode(display=False) as counter:
            conv_mlp(*given)
    assert counter.get_total_flops() == 2 * 3 * 23 * 6 * 20 * (8 + 9 + 8)
