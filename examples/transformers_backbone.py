"""A visionssm backbone as transformers' TimmBackbone, alone and inside its UperNet: one training step.

    python examples/transformers_backbone.py vmamba_tiny

`import visionssm` has to come before a model saved like this is loaded again.
"""

import sys

import torch
from transformers import TimmBackboneConfig, UperNetConfig, UperNetForSemanticSegmentation
from transformers.models.timm_backbone import TimmBackbone

import visionssm  # noqa: F401  registers the models


def main(backbone: str = "vmamba_tiny", size: int = 224) -> torch.Tensor:
    config = TimmBackboneConfig(backbone=backbone, use_pretrained_backbone=False, out_indices=[0, 1, 2, 3])
    maps = TimmBackbone(config)(torch.rand(1, 3, size, size)).feature_maps
    print(f"{backbone}: {[tuple(entry.shape) for entry in maps]}")
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config, num_labels=3, hidden_size=64))
    images, labels = torch.rand(2, 3, size, size), torch.randint(0, 3, (2, size, size))
    output = model(images, labels=labels)
    output.loss.backward()
    print(f"UperNet: {tuple(images.shape)} -> {tuple(output.logits.shape)}, loss {output.loss.item():.3f}")
    return output.logits


if __name__ == "__main__":
    main(*sys.argv[1:2])
