"""What can be done with any model of the library: count, fingerprint, convert."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ._build import export_published
from ._checkpoint import save_checkpoint


def count_parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters, buffers not counted.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_gmacs(model: nn.Module, size: tuple[int, ...]) -> float:
    """Multiply-adds of one forward pass of one image, in 10^9, counted as these papers do.

    Convolutions, matrix products and attention products, and 9 per state and one per channel of each scan step; norms,
        activations and pooling are left out. Build the model under `torch.device("meta")`, and nothing is computed.

    Args:
        model: on any device.
        size: (H, W).
    """
    parameter = next(model.parameters())
    cfg: Any = getattr(model, "pretrained_cfg", {"input_size": (3, *size)})
    channels = cfg["input_size"][0]
    image = torch.empty(1, channels, *size, device=parameter.device, dtype=parameter.dtype)
    training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    model.train(training)
    return counter.get_total_flops() / 2e9


def fingerprint(model: nn.Module) -> list[tuple[int, float]]:
    """Index and value of the five largest logits for a fixed input of noise, on the CPU in float32.

    Args:
        model: a classifier in evaluation mode.
    """
    cfg: Any = model.pretrained_cfg
    channels, H, W = cfg["input_size"]
    noise = torch.randn(1, channels, H, W, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits: Tensor = model.float().cpu()(noise)[0]
    values, indices = logits.topk(min(5, len(logits)))
    return list(zip(indices.tolist(), values.tolist(), strict=True))


def convert_checkpoint(
    name: str, source: Path | str, target: Path | str, *, to: str = "own", prefer: Iterable[str] = (), **options: Any
) -> list[str]:
    """Writes a weight file anew, under own or published names, after loading it strictly into the model.

    Args:
        name: the model.
        source: any published or own file.
        target: `.safetensors`, or another name for a torch file of the bare state dict.
        to: "own" or "published".
        prefer: containers to look for first.
        options: of the model, such as num_classes.

    Returns:
        The names written.
    """
    from .._create import create_model, load_checkpoint

    model = create_model(name.partition(".")[0], **options)
    load_checkpoint(model, source, prefer=tuple(prefer))
    state = export_published(model) if to == "published" else model.state_dict()
    save_checkpoint(state, target)
    return list(state)
