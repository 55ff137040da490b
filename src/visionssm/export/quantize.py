"""Linear layers in 8-bit integers, by torchao."""

import copy

import torch
from torch import nn


def quantize_linear(model: nn.Module) -> nn.Module:
    """A copy whose linear layers hold int8 weights, one scale per output channel, and quantise activations row by row.

    Scans, convolutions and norms stay as they are. For inference on the CPU or a GPU; what it costs in accuracy has to
    be measured for each model and data set (docs/export.md has digits).

    Raises:
        ModuleNotFoundError: torchao is missing: pip install 'visionssm[export]'.

    Example:
        >>> import visionssm
        >>> model = quantize_linear(visionssm.create_model("vmamba_nano").eval())  # doctest: +SKIP
    """
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    copied = copy.deepcopy(model).eval().requires_grad_(False)
    # The classifier's rows are few and decide: it is a linear layer like any other and is included.
    quantize_(copied, Int8DynamicActivationInt8WeightConfig(), lambda module, name: isinstance(module, nn.Linear))
    assert isinstance(copied, torch.nn.Module)
    return copied
