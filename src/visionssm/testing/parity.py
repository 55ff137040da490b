"""Reference numbers of the published models, and the rule that rebuilds the weights they were made with.

A fixture ships no weights: every tensor follows from its published name and shape.
"""

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_A_LOG = re.compile(r"(^|\.)A(_b)?_logs?$")
_DT_BIAS = re.compile(r"(^|\.)(dt_projs?_bias|dt_proj(_b)?\.bias|dt_bias)$")
_STACKED_LINEAR = re.compile(r"(^|\.)(x_proj|dt_projs)_weight$")
_TOKEN = re.compile(r"(^|\.)(pos_embed|cls_token|dist_token|absolute_pos_embed)$")


def rule_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """The float32 tensor that the published tensor called `name` holds in every fixture.

    Example:
        >>> rule_tensor("norm.weight", (2,)).shape
        torch.Size([2])
    """
    n: np.ndarray = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if _A_LOG.search(name):
        n = np.log(np.arange(1, shape[-1] + 1, dtype=np.float32)) + 0.05 * n
    elif name.endswith("running_var"):
        n = 1 + 0.1 * np.abs(n)
    elif _DT_BIAS.search(name):
        n = -3 + 0.5 * n
    elif name.endswith(("bias", "running_mean")) or _TOKEN.search(name):
        n = 0.1 * n
    elif len(shape) < 2:
        n = 1 + 0.1 * n
    else:
        fan_in = shape[-1] if _STACKED_LINEAR.search(name) else np.prod(shape[1:])
        n = n / np.float32(np.sqrt(fan_in))
    return torch.from_numpy(np.asarray(n))


def rule_image(height: int, width: int, batch: int = 2, seed: int = 0) -> Tensor:
    """The input of a fixture: (batch, 3, height, width), float32, standard normal."""
    noise = np.random.RandomState(seed).standard_normal((batch, 3, height, width))
    return torch.from_numpy(noise.astype(np.float32))


def rule_state_dict(fixture: Mapping[str, Any]) -> dict[str, Tensor]:
    """The published state dict of a fixture: floating tensors by the rule; others, and those kept as built, are left out."""
    kept = set(fixture.get("kept_as_built", ()))
    return {
        name: rule_tensor(name, tuple(shape))
        for name, (shape, dtype) in fixture["state_dict"].items()
        if name not in kept and "float" in dtype
    }


def read_fixture(path: str | Path) -> dict[str, Any]:
    """One reference file."""
    content: dict[str, Any] = json.loads(Path(path).read_text())
    return content


def relative_error(value: Tensor, reference: Tensor | np.ndarray | list[Any]) -> float:
    """Largest absolute difference over the largest magnitude of the reference, in float64.

    Example:
        >>> round(relative_error(torch.tensor([1.0, 2.1]), [1.0, 2.0]), 3)
        0.05
    """
    expected = torch.as_tensor(np.asarray(reference), dtype=torch.float64)
    difference = (value.detach().double().reshape(expected.shape) - expected).abs().max()
    return float(difference / expected.abs().max().clamp(min=1e-300))


def map_errors(feature: Tensor, expected: Mapping[str, Any]) -> dict[str, float]:
    """Relative errors of a feature map against a fixture's summary: samples (by the largest), mean and std (by the std), norm."""
    assert list(feature.shape) == list(expected["shape"]), f"{tuple(feature.shape)} instead of {expected['shape']}"
    flat = feature.detach().double().flatten()
    index = torch.as_tensor(np.linspace(0, flat.numel() - 1, 16).astype(int))
    scale = max(abs(value) for value in expected["sample"])
    std = float(flat.std(correction=0))
    return {
        "sample": float((flat[index] - torch.tensor(expected["sample"], dtype=torch.float64)).abs().max()) / scale,
        "mean": abs(float(flat.mean()) - expected["mean"]) / expected["std"],
        "std": abs(std - expected["std"]) / expected["std"],
        "l2": abs(float(flat.norm()) - expected["l2"]) / expected["l2"],
    }
