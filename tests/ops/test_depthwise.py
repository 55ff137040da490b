"""The depthwise convolution equals torch's in float64, at every border, in every layout and on every instruction set."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from visionssm.ops import default_backend, depthwise_conv, native
from visionssm.ops.scratch import reused_memory, scratch

NATIVE = pytest.mark.skipif(native.unavailable() is not None, reason="the native back-end was not built")


def expected(x, weight, bias, left):
    """Sums the shifted maps tap by tap, in float64."""
    x, weight = x.double(), weight.double()
    (K, _, high, wide), (H, W) = weight.shape, x.shape[1:3]
    outputs = []
    for k in range(K):
        y = 0 if bias is None else bias[k].double()
        for i in range(high):
            for j in range(wide):
                rows, columns = i - high // 2, j - left[k]
                pad = (0, 0, max(-columns, 0), max(columns, 0), max(-rows, 0), max(rows, 0))
                shifted = F.pad(x, pad)[:, max(rows, 0) :, max(columns, 0) :][:, :H, :W]
                y = y + shifted * weight[k, :, i, j]
        outputs.append(y.expand(x.shape))
    return torch.stack(outputs, dim=3)


CASES = [  # batch, H, W, E, K, high, wide, left
    (2, 5, 7, 24, 1, 3, 3, None),
    (1, 1, 1, 5, 1, 3, 3, None),
    (2, 1, 70, 33, 2, 1, 4, (3, 0)),
    (1, 1, 2, 16, 2, 1, 4, (3, 0)),
    (3, 1, 9, 16, 1, 1, 3, (2,)),
    (1, 4, 6, 20, 1, 5, 5, None),
    (1, 2, 130, 8, 1, 1, 3, None),
]


def arguments(case, dtype=torch.float32):
    batch, H, W, E, K, high, wide, left = case
    x, weight, bias = torch.randn(batch, H, W, E), torch.randn(K, E, high, wide), torch.randn(K, E)
    return [v.to(dtype) for v in (x, weight, bias)], [wide // 2] * K if left is None else list(left)


@pytest.fixture(params=[pytest.param("native", marks=NATIVE), "torch"])
def backend(request):
    with default_backend(request.param):
        yield request.param


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_values(backend, case):
    (x, weight, bias), left = arguments(case)
    torch.testing.assert_close(
        depthwise_conv(x, weight, left=case[-1]), expected(x, weight, None, left).float(), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        depthwise_conv(x, weight, bias, left=left, activation="silu"),
        F.silu(expected(x, weight, bias, left)).float(),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", ["none", "silu", "gelu", "relu"])
@torch.no_grad()
def test_activations(backend, name):
    (x, weight, bias), left = arguments(CASES[0])
    wanted = {"none": lambda y: y, "silu": F.silu, "gelu": F.gelu, "relu": F.relu}[name](
        expected(x, weight, bias, left)
    )
    found = depthwise_conv(x, weight, bias, activation=name)
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-5)


def test_an_unknown_activation_is_named():
    (x, weight, bias), _ = arguments(CASES[0])
    with pytest.raises(ValueError, match=r"activation: got 'swish', choose from none, silu, gelu, relu"):
        depthwise_conv(x, weight, bias, activation="swish")


@NATIVE
@torch.no_grad()
def test_every_instruction_set(instruction_set):
    for case in CASES:
        (x, weight, bias), left = arguments(case)
        found = depthwise_conv(x, weight, bias, left=left, activation="silu")
        wanted = F.silu(expected(x, weight, bias, left)).float()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision_is_rounded_once(backend, dtype):
    (x, weight, bias), left = arguments(CASES[0], dtype)
    found = depthwise_conv(x, weight, bias, activation="silu")
    wanted = F.silu(expected(x, weight, bias, left))
    assert found.dtype == dtype
    steps = 1 if backend == "native" else 3  # torch rounds before and after the SiLU
    assert bool(((found.double() - wanted).abs() <= steps * torch.finfo(dtype).eps * (wanted.abs() + 0.1)).all())


@torch.no_grad()
def test_views_are_read_in_place(backend):
    wide = torch.randn(2, 4, 6, 48)
    weight = torch.randn(1, 16, 3, 3)
    view = wide[:, 1:, :, 16:32]
    assert torch.equal(depthwise_conv(view, weight), depthwise_conv(view.contiguous(), weight))
    channels_first = torch.randn(2, 16, 4, 6).permute(0, 2, 3, 1)
    torch.testing.assert_close(
        depthwise_conv(channels_first, weight), depthwise_conv(channels_first.contiguous(), weight)
    )


@torch.no_grad()
def test_extreme_values_stay_what_they_are(backend):
    x, weight = torch.full((1, 1, 4, 16), 1e4), torch.ones(1, 16, 1, 3)
    assert torch.equal(depthwise_conv(-x, weight, activation="silu"), torch.zeros(1, 1, 4, 1, 16))
    assert bool(depthwise_conv(x, weight, activation="silu").isfinite().all())
    x[0, 0, 1] = torch.nan
    assert depthwise_conv(x, weight, activation="silu")[0, 0, :, 0].isnan().all(-1).tolist() == [
        True,
        True,
        True,
        False,
    ]


def test_gradients():
    (x, weight, bias), left = arguments((1, 1, 6, 4, 2, 1, 4, (3, 0)), torch.float64)
    inputs = [v.requires_grad_() for v in (x, weight, bias)]
    torch.autograd.gradcheck(lambda *v: depthwise_conv(*v, left=left, activation="silu"), inputs)


@NATIVE
def test_registered_operator_and_compiled_graph():
    (x, weight, bias), left = arguments(CASES[2])
    torch.library.opcheck(torch.ops.visionssm.depthwise_conv, (x, weight, bias, left, [False, True], "silu"))
    out = torch.empty(2, 1, 70, 2, 33)
    torch.library.opcheck(torch.ops.visionssm.depthwise_conv_into, (x, weight, bias, left, [False, True], "silu", out))
    compiled = torch.compile(depthwise_conv, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        found = compiled(x, weight, bias, left=left, activation="silu")
        assert torch.equal(found, depthwise_conv(x, weight, bias, left=left, activation="silu"))


@NATIVE
@torch.no_grad()
def test_flops():
    with FlopCounterMode(display=False) as counter:
        depthwise_conv(torch.randn(2, 3, 5, 8), torch.randn(1, 8, 3, 3))
    assert counter.get_total_flops() == 2 * 2 * 3 * 5 * 8 * 9


@NATIVE
def test_transient_results_share_memory_inside_of_a_pass_only():
    (x, weight, bias), left = arguments(CASES[2])
    options = {"left": left, "transient": True}
    with torch.no_grad(), reused_memory():
        first = depthwise_conv(x, weight, bias, **options)
        kept = first.clone()
        second = depthwise_conv(2 * x, weight, bias, **options)
        assert first.data_ptr() == second.data_ptr()
    with torch.no_grad():
        assert torch.equal(depthwise_conv(x, weight, bias, **options), kept)
        assert depthwise_conv(x, weight, bias, **options).data_ptr() != second.data_ptr()
    with reused_memory():  # gradients are recorded: nothing may be overwritten
        assert scratch("x", (1,), torch.float32) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(1, 5, 6, 8)}, "8 channels, need 4"),
        ({"bias": torch.randn(2, 8)}, r"bias: got shape \(2, 8\), need \(2, 4\)"),
        ({"left": (1,)}, "left: got 1 numbers"),
    ],
)
@torch.no_grad()
def test_sizes_that_do_not_fit_are_refused(backend, change, message):
    fitting = {"x": torch.randn(1, 5, 6, 4), "weight": torch.randn(2, 4, 3, 3), "bias": torch.randn(2, 4)}
    depthwise_conv(**fitting)
    with pytest.raises(ValueError, match=message):
        depthwise_conv(**fitting | change)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["auto", "torch"])
@torch.no_grad()
def test_flipped_taps_are_those_of_the_mirrored_map(backend, dtype):
    x, taps, bias = torch.randn(2, 3, 11, 20), torch.randn(2, 20, 3, 4), torch.randn(2, 20)
    x, taps, bias = x.to(dtype), taps.to(dtype), bias.to(dtype)
    with default_backend(backend):
        y = depthwise_conv(x, taps, bias, left=(3, 1), flip=(False, True))
        mirrored = depthwise_conv(x.flip(2), taps, bias, left=(3, 2))
        by_hand = depthwise_conv(x, torch.stack((taps[0], taps[1].flip(-1))), bias, left=(3, 1))
    assert torch.equal(y, by_hand)
    torch.testing.assert_close(y[..., 0, :], depthwise_conv(x, taps, bias, left=(3, 2))[..., 0, :])
    torch.testing.assert_close(y[..., 1, :], mirrored.flip(2)[..., 1, :])


@NATIVE
@torch.no_grad()
def test_taps_of_any_layout_and_precision_are_read_where_they_lie():
    x, taps = torch.randn(1, 5, 7, 18), torch.randn(18, 1, 3, 3)
    wanted = depthwise_conv(x, taps.transpose(0, 1).contiguous())
    assert torch.equal(depthwise_conv(x, taps.transpose(0, 1)), wanted)
    assert torch.equal(depthwise_conv(x, taps.transpose(2, 3).contiguous().transpose(2, 3).transpose(0, 1)), wanted)
    assert torch.equal(depthwise_conv(x, taps.transpose(0, 1).double()), wanted)
    with pytest.raises(ValueError, match="flip: got 2 numbers"):
        depthwise_conv(x, taps.transpose(0, 1), flip=(False, True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_float32_taps_on_maps_of_half_precision(backend, dtype):
    (x, weight, bias), left = arguments(CASES[0])
    found = depthwise_conv(x.to(dtype), weight, bias)
    wanted = expected(x.to(dtype), weight, bias, left)
    assert found.dtype == dtype
    assert (found.double() - wanted).abs().max() <= 4 * torch.finfo(dtype).eps * wanted.abs().max()
