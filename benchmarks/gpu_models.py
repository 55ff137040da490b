"""Models on a GPU: images per second and peak memory, beside the models that their papers compare them with."""

from typing import Any

import torch

from visionssm.bench.measure import Setting, compare

VISION = ("vmamba_tiny", "swin_tiny_patch4_window7_224", "convnext_tiny", "mambavision_tiny")
PLAIN = ("vim_tiny", "deit_tiny_patch16_224")
LARGE = (1248, 1248)

COMPARISONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "inference": (VISION, {"batch": 128}),
    "training": (VISION[:3], {"batch": 128, "train": True}),
    "inference, plain": (PLAIN, {"batch": 128}),
    "inference at 1248": (PLAIN, {"batch": 8, "size": LARGE}),
    "training, plain": (PLAIN, {"batch": 128, "train": True}),
    "training at 1248": (PLAIN, {"batch": 8, "size": LARGE, "train": True}),
    "inference, compiled": (VISION[:2], {"batch": 128, "compile": True}),
}
TINY: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "inference": (("vmamba_nano", "test_vit"), {"batch": 1, "size": (32, 32)}),
    "training": (("vmamba_nano",), {"batch": 1, "size": (32, 32), "train": True}),
}


def measure(name: str, device: str, seconds: float, tiny: bool) -> list[dict[str, Any]]:
    """One comparison: each model's numbers as `visionssm bench` has them, in bfloat16."""
    models, options = (TINY if tiny else COMPARISONS)[name]
    dtype = "float32" if tiny else "bfloat16"
    found = compare(models, Setting(dtype=dtype, device=device, **options), seconds=seconds)
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return [measurement.as_dict() for measurement in found]


def training_memory(device: str, tiny: bool) -> dict[str, Any]:
    """Highest memory of a training step of VMamba-T alone: weights, gradients, activations; without an optimizer's state."""
    model, batch, size = ("vmamba_nano", 1, (32, 32)) if tiny else ("vmamba_tiny", 128, (224, 224))
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    dtype = "float32" if tiny else "bfloat16"
    found = compare([model], Setting(batch=batch, size=size, dtype=dtype, device=device, train=True), seconds=0.1)
    total = torch.cuda.max_memory_allocated() / 1e9 if device.startswith("cuda") else None
    return {"model": model, "batch": batch, "step_mib": found[0].peak_mib, "peak_gb": total}
