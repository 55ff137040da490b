"""What is attached to the linear layers of an MLP takes part, although they are usually computed together."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from visionssm.layers import Mlp


def plain(mlp, x):
    return F.linear(F.gelu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias)), mlp.fc2.weight, mlp.fc2.bias)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@torch.no_grad()
def test_equals_its_definition():
    mlp, x = Mlp(8, 32), torch.randn(3, 4, 8)
    torch.testing.assert_close(mlp(x), plain(mlp, x))


@torch.no_grad()
def test_hooks_and_replaced_layers_take_part():
    mlp, x = Mlp(8, 32), torch.randn(3, 4, 8)
    seen = []
    handle = mlp.fc1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    mlp(x)
    torch.testing.assert_close(seen[0], mlp.fc1(x))
    handle.remove()

    mlp.fc1 = nn.Sequential(mlp.fc1, nn.Dropout(0.0), nn.ReLU())  # an adapter keeps the layer inside another module
    torch.testing.assert_close(mlp(x), mlp.fc2(F.gelu(mlp.fc1(x))))


@torch.no_grad()
def test_parametrized_weights_take_part():
    mlp, x = Mlp(8, 32), torch.randn(3, 4, 8)
    register_parametrization(mlp.fc2, "weight", Doubled())
    torch.testing.assert_close(mlp(x), plain(mlp, x))
