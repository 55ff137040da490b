"""The tensors of one call of the operator, in the order of its schema."""

from typing import NamedTuple

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
