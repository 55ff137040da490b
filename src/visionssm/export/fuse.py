"""The inference form of a model: fewer operations, the same function."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..layers.selective import SelectiveScan


@torch.no_grad()
def fuse(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """A copy for inference: BatchNorm folded into the convolution before it, and the scans' constants computed.

    Which convolution feeds which norm is seen by running the model, so it holds for any model; a pair is left alone
    if anything else reads the convolution's output.

    Args:
        model: the model; it is not changed.
        example: (batch, channels, H, W) images it takes; by default one of the model's own size.

    Returns:
        A model in eval mode with the same outputs within float error. Its state dict is its own: it is for running, not
        for training or saving as a checkpoint.

    Example:
        >>> import visionssm
        >>> model = visionssm.create_model("mambavision_nano").eval()
        >>> [sum(isinstance(m, nn.BatchNorm2d) for m in form.modules()) for form in (model, fuse(model))]
        [11, 1]
    """
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    if example is None:
        cfg: Any = getattr(model, "pretrained_cfg", None) or {}
        parameter = next(fused.parameters())
        example = torch.zeros(1, *cfg.get("input_size", (3, 224, 224)), dtype=parameter.dtype, device=parameter.device)
    modules = dict(fused.named_modules())
    for conv_name, norm_name in _pairs(fused, example):
        conv, norm = modules[conv_name], modules[norm_name]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        _replace(fused, conv_name, fuse_conv_bn_eval(conv, norm))
        _replace(fused, norm_name, nn.Identity())
    for module in fused.modules():
        if isinstance(module, SelectiveScan):
            module.constant_A = module.A()
            module.dt_bias = nn.Parameter(module.dt_bias * module.dt_bias_scale, requires_grad=False)
            module.dt_bias_scale = 1.0
    return fused


def _pairs(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Names of each convolution and the BatchNorm that alone reads its output."""
    made: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept, so that its id stays its own
    readers: dict[str, list[str]] = {}

    def after(name: str) -> Any:
        return lambda module, inputs, output: made.__setitem__(id(output), (name, output))

    def before(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            for value in inputs:
                if id(value) in made:
                    readers.setdefault(made[id(value)][0], []).append(name)

        return note

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after(name)))
        if not list(module.children()):
            handles.append(module.register_forward_pre_hook(before(name)))
    try:
        model(example)
    finally:
        for handle in handles:
            handle.remove()
    modules = dict(model.named_modules())
    return [
        (conv, names[0])
        for conv, names in readers.items()
        if len(names) == 1 and isinstance(modules[names[0]], nn.BatchNorm2d)
    ]


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
