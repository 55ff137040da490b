"""Grad-CAM (arXiv 1610.02391): which parts of an image speak for a class, for every family."""

import torch
from torch import Tensor, nn

from ..models._backbone import HierarchicalBackbone
from ..models._plain import PlainBackbone


def cam_layers(model: nn.Module) -> list[str]:
    """The layers that `grad_cam` can look at, in order: "stages.0" ..., or "blocks.0" ... in plain models.

    Example:
        >>> import visionssm
        >>> cam_layers(visionssm.create_model("vmamba_nano"))
        ['stages.0', 'stages.1', 'stages.2', 'stages.3']
    """
    if isinstance(model, HierarchicalBackbone):
        return [f"stages.{i}" for i in range(len(model.stages))]
    if isinstance(model, PlainBackbone):
        return [info["module"] for info in model.feature_info]
    raise TypeError(f"model: got {type(model).__name__}, need a model of this library")


def grad_cam(model: nn.Module, images: Tensor, class_index: int | None = None, layer: str | None = None) -> Tensor:
    """Where in each image a class is seen.

    Args:
        model: a classifier of this library, in eval mode.
        images: (batch, channels, H, W), preprocessed.
        class_index: the class that is asked for; by default each image's most likely one.
        layer: one of `cam_layers`; by default the last stage whose map has four rows and columns (the first, if none has),
            or in plain models the second last block, because after the last one only the class token is read.

    Returns:
        (batch, h, w) on the layer's map, 0 .. 1, the maximum of each image 1 (0 everywhere if nothing speaks for the
        class).

    Raises:
        ValueError: an unknown layer (the message lists them) or class.

    Example:
        >>> import visionssm
        >>> model = visionssm.create_model("vim_nano").eval()
        >>> grad_cam(model, torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 4, 4])
    """
    layers = cam_layers(model)
    layer = layer or _default_layer(model, layers, min(images.shape[2:]))
    if layer not in layers:
        raise ValueError(f"layer: got {layer!r}, choose from {', '.join(layers)}")
    index = layers.index(layer)
    with torch.enable_grad():
        if isinstance(model, HierarchicalBackbone):
            feature, logits = _hierarchical(model, images, index)
            maps = feature.movedim(-1, 1) if model.channels_last else feature
        else:
            assert isinstance(model, PlainBackbone)
            feature, logits = _plain(model, images, index)
        classes = logits.shape[1]
        if class_index is not None and not 0 <= class_index < classes:
            raise ValueError(f"class_index: got {class_index}, but the model has {classes} classes")
        chosen = logits.argmax(1) if class_index is None else torch.full((len(logits),), class_index)
        score = logits.gather(1, chosen.to(logits.device)[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, feature)
    if isinstance(model, HierarchicalBackbone):
        gradients = gradient.movedim(-1, 1) if model.channels_last else gradient
    else:
        grid = model.stem.grid(images.shape[2], images.shape[3])
        maps, gradients = (model._arrange(value, grid, "NCHW") for value in (feature, gradient))
    weights = gradients.float().mean((2, 3), keepdim=True)
    cam = (weights * maps.detach().float()).sum(1).relu()
    return cam / cam.amax((1, 2), keepdim=True).clamp(min=torch.finfo(cam.dtype).tiny)


def _default_layer(model: nn.Module, layers: list[str], side: int) -> str:
    if not isinstance(model, HierarchicalBackbone):
        return layers[-2]
    wide = [layer for layer, info in zip(layers, model.feature_info, strict=False) if side >= 4 * info["reduction"]]
    return wide[-1] if wide else layers[0]


def _hierarchical(model: HierarchicalBackbone, images: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """The output of a stage's blocks, cut from what came before it, and the logits that follow from it."""
    x = model.run_stem(images)
    feature = x
    for i, stage in enumerate(model.stages):
        x = model.stage_feature(model.run_stage(stage, x), i)
        if i == index:
            x = feature = x.detach().requires_grad_()
        x = stage.downsample(x)
    return feature, model.forward_head(model.finish(x))


def _plain(model: PlainBackbone, images: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """The stream after a step, (batch, L, C), cut from what came before it, and the logits that follow from it."""
    tokens, grid = model.embed(images)
    rotation = model._rotation(tokens, grid)
    hidden, residual = tokens, None
    feature = tokens
    for i in range(model._steps()):
        hidden, residual = model._rotated(hidden, residual, rotation)
        hidden, residual = model._run_step(i, hidden, residual, grid)
        if i == index:
            residual = residual.detach()
            feature = (residual + hidden).detach().requires_grad_()
            hidden = feature - residual
    assert residual is not None
    return feature, model.forward_head(model.norm(residual + hidden).to(tokens.dtype))
