"""A convolution as a matrix product is the convolution, and is left alone where it is not plain."""

import pytest
import torch
from torch import nn

from visionssm.layers.patches import conv_downsample


def expected(conv, x):
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1), "bias": False},
        {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 4},
        {"kernel_size": 3, "stride": 2, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 3, "stride": 1, "padding": "same"},
        {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(2, 5, 7), (1, 14, 14), (1, 33, 40)], ids=str)
def test_values_and_gradients(options, size):
    conv, x = nn.Conv2d(8, 64, **options), torch.randn(*size, 8)
    torch.testing.assert_close(conv_downsample(conv, x), expected(conv, x))
    with torch.no_grad():
        torch.testing.assert_close(conv_downsample(conv, x), expected(conv, x), rtol=1e-5, atol=1e-5)
    conv_downsample(conv, x).sum().backward()
    assert conv.weight.grad is not None


@torch.no_grad()
def test_hooks_and_other_modules_take_part():
    conv, x, seen = nn.Conv2d(8, 64, 3, 2, 1), torch.randn(1, 4, 4, 8), []
    conv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(conv_downsample(conv, x).permute(0, 3, 1, 2), seen[0])
    adapted = nn.Sequential(conv, nn.ReLU())
    torch.testing.assert_close(conv_downsample(adapted, x), expected(adapted, x))


@torch.no_grad()
def test_compiles_with_open_sizes():
    conv = nn.Conv2d(8, 64, 3, 2, 1)
    compiled = torch.compile(conv_downsample, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (4, 6, 20):
        x = torch.randn(1, size, size, 8)
        torch.testing.assert_close(compiled(conv, x), expected(conv, x), rtol=1e-5, atol=1e-5)
