"""A linear layer whose matrix product is the faster one of this machine."""

import math
from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..ops import linear

_SMALL = 2**23  # bytes of a result that one product makes faster than two


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by :func:`visionssm.ops.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether calling the module is nothing but the product with its weight: an adapter, a hook or a quantised weight is more."""
    plain = type(module) in (nn.Linear, Linear) and not has_hooks(module)
    return plain and not is_traceable_wrapper_subclass(module.weight)


def is_plain_conv(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """The same for a convolution of maps."""
    plain = type(module) is nn.Conv2d and not has_hooks(module)
    return plain and not is_traceable_wrapper_subclass(module.weight)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module runs forward hooks of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def use_fast_linear(model: nn.Module) -> nn.Module:
    """Turns every plain `nn.Linear` of a model into :class:`Linear`, in place; subclasses of it are left alone.

    Parameters, names and results stay. Works on any model, so a comparison can give both sides the same matrix product.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 2))
        >>> x, before = torch.ones(1, 3), model(torch.ones(1, 3))
        >>> torch.allclose(use_fast_linear(model)(x), before)
        True
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    return model


def in_halves(module: nn.Module, x: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """The two halves of module(x) along the last axis, the second as a function to be called once.

    Without gradients the second half of a large product is not computed before it is asked for, so that the two need not exist
    at the same time, and the caller may overwrite it.

    Example:
        >>> layer, x = nn.Linear(3, 8), torch.randn(2, 3)
        >>> first, second = in_halves(layer, x)
        >>> torch.allclose(torch.cat((first, second()), dim=-1), layer(x))
        True
    """
    if torch.is_grad_enabled() or not is_plain_linear(module):
        first, second = module(x).chunk(2, dim=-1)
        return first, lambda: second if torch.is_grad_enabled() else second.clone()
    assert isinstance(module, nn.Linear)
    if not torch.compiler.is_compiling() and math.prod(x.shape[:-1]) * module.out_features * x.itemsize <= _SMALL:
        first, second = linear(x, module.weight, module.bias).chunk(2, dim=-1)
        return first, lambda: second
    (weight, other), (bias, other_bias) = (
        (None, None) if parameter is None else parameter.chunk(2) for parameter in (module.weight, module.bias)
    )
    return linear(x, weight, bias), lambda: linear(x, other, other_bias)
