"""The tensors of one call of the operator, in the order of its schema, and the precision in which they are multiplied."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor


class ScanTensors(NamedTuple):
    """What :func:`visionssm.ops.path_scan` describes, checked and in the dtypes that the back-ends take."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    dt_bias: Tensor | None
    dt_weight: Tensor | None
    path: Tensor
    initial_state: Tensor | None


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Keeps autocast out of the operator's own products: their precision is that of the tensors."""
    if device.type in ("cpu", "cuda", "xpu") and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
