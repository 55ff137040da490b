"""A convolution and its BatchNorm folded for inference equal the two modules, which are called wherever they do more."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from visionssm.layers.conv_norm import conv_norm, conv_norm_last


def pair(*arguments, bias=True, **options):
    conv = nn.Conv2d(*arguments, bias=bias, **options)
    norm = nn.BatchNorm2d(conv.out_channels).eval()
    for value in (norm.running_mean, norm.bias):
        value.data.normal_()
    for value in (norm.running_var, norm.weight):
        value.data.uniform_(0.5, 2)
    return conv, norm


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_folded_equals_both(bias, dtype):
    conv, norm = (m.to(dtype) for m in pair(6, 10, 3, bias=bias, stride=2, padding=1))
    x = torch.randn(2, 6, 9, 8, dtype=dtype)
    found = conv_norm(conv, norm, x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, norm(conv(x)), rtol=1e-5, atol=1e-5)


POINTWISE, DEPTHWISE = {"kernel_size": 1}, {"kernel_size": 3, "padding": 1, "groups": 12}


@pytest.mark.parametrize(
    ("options", "activation"),
    [(POINTWISE, "none"), (POINTWISE, "relu"), (DEPTHWISE, "none"), (DEPTHWISE, "relu"), (DEPTHWISE, "gelu")],
    ids=str,
)
@torch.no_grad()
def test_channels_last(options, activation):
    conv, norm = pair(12, 12, **options)
    x = torch.randn(2, 5, 7, 12)
    wanted = {"none": lambda y: y, "relu": F.relu, "gelu": F.gelu}[activation](norm(conv(x.permute(0, 3, 1, 2))))
    found = conv_norm_last(conv, norm, x, activation)
    torch.testing.assert_close(found, wanted.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


def test_training_gradients_and_hooks_call_the_modules():
    conv, norm = pair(3, 4, 1)
    x = torch.randn(1, 5, 7, 3)
    assert conv_norm_last(conv, norm, x) is None
    with torch.no_grad():
        assert conv_norm_last(conv, norm, x) is not None
        assert conv_norm_last(conv, norm.train(), x) is None
        norm.eval()
        calls = []
        conv.register_forward_hook(lambda *_: calls.append("conv"))
        conv_norm(conv, norm, x.permute(0, 3, 1, 2))
    assert calls == ["conv"]
