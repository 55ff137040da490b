"""The two-layer perceptron of transformer-style blocks."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import mlp
from .linear import is_plain_linear


class Mlp(nn.Module):
    """Linear, exact GELU, linear over the last axis; `gated` makes the first twice as wide and multiplies its halves.

    Example:
        >>> import torch
        >>> Mlp(8, 32)(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, width: int, hidden: int, gated: bool = False) -> None:
        super().__init__()
        self.gated = gated
        self.fc1 = nn.Linear(width, 2 * hidden if gated else hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            x, gate = self.fc1(x).chunk(2, dim=-1)
            return self.fc2(x * F.gelu(gate))
        if is_plain_linear(self.fc1) and is_plain_linear(self.fc2):
            return mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        return self.fc2(F.gelu(self.fc1(x)))
