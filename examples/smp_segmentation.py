"""A visionssm backbone as encoder of segmentation_models_pytorch: any decoder of it, one training step.

    python examples/smp_segmentation.py vmamba_tiny

`encoder_depth=5` makes smp take all four stages (its first level is the image itself, the second has no features). Plain models
(Vim, LocalVim) have one resolution only, which smp refuses; `visionssm.heads.upernet` takes them.
"""

import sys

import segmentation_models_pytorch as smp
import torch

import visionssm  # noqa: F401  registers the models


def main(backbone: str = "vmamba_tiny", size: int = 224) -> torch.Tensor:
    model = smp.Unet(f"tu-{backbone}", encoder_weights=None, encoder_depth=5, classes=3)
    images, labels = torch.rand(2, 3, size, size), torch.randint(0, 3, (2, size, size))
    loss = smp.losses.DiceLoss("multiclass")(model(images), labels)
    loss.backward()
    logits = model.eval()(images)
    print(f"U-Net on {backbone}: {tuple(images.shape)} -> {tuple(logits.shape)}, loss {loss.item():.3f}")
    return logits


if __name__ == "__main__":
    main(*sys.argv[1:2])
