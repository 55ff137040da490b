"""Linear layers in 8-bit integers, by torchao."""

import copy

import torch
from torch import nn


def quantize_linear(model: nn.Module) -> nn.Module:
    """A copy whose linear layers hold int8 weights, one scale for each output channel, and quantise activations row by row.

    Layers of fewer than 16 inputs, scans, convolutions and norms stay as they are. What it costs in accuracy has to be
    measured for each model and data set (docs/export.md has digits).

    Raises:
        ModuleNotFoundError: torchao is missing: pip install 'visionssm[export]'.

    Example:
        >>> import visionssm
        >>> model = quantize_linear(visionssm.create_model("vmamba_nano").eval())  # doctest: +SKIP
    """
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    copied = copy.deepcopy(model).eval().requires_grad_(False)
    quantize_(copied, Int8DynamicActivationInt8WeightConfig(), _worth_it)
    assert isinstance(copied, torch.nn.Module)
    return copied


def _worth_it(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and module.in_features >= 16
