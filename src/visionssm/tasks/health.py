"""Find out where numbers stop being finite."""

from collections.abc import Callable, Sequence

import torch
from torch import nn


@torch.no_grad()
def first_nonfinite_module(
    model: nn.Module, images: torch.Tensor | Sequence[torch.Tensor], compute: Callable[[], object] | None = None
) -> str:
    """Name the place where a value that isn't finite appears first: input, weights, a module's output, or a gradient.

    Args:
        model: the model as it was when the step went wrong, gradients included.
        images: the batch of that step, (batch, channels, H, W), or one tensor for each image.
        compute: does the forward pass of that step again; None: `model(images)`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> _ = model[1].bias.data.fill_(float("inf"))
        >>> first_nonfinite_module(model, torch.ones(1, 2))
        'the weight 1.bias'
    """
    if not all(torch.isfinite(image).all() for image in images):
        return "the input images"
    for name, parameter in model.named_parameters():
        if not torch.isfinite(_local(parameter)).all():
            return f"the weight {name}"
    found: list[str] = []

    def check(name: str) -> object:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not found and isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                found.append(f"the output of {name or 'the model'} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(check(name)) for name, module in model.named_modules()]
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code doesn't call the hooks
            compute() if compute is not None else model(images)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    # Gradients flow from the last module to the first one: the last in order is the first to go wrong.
    bad = [
        name for name, p in model.named_parameters() if p.grad is not None and not torch.isfinite(_local(p.grad)).all()
    ]
    return f"the gradient of {bad[-1]}" if bad else "the gradients' norm"


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor that is split over processes; others as they are."""
    return getattr(tensor, "_local_tensor", tensor)
