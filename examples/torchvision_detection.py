"""A visionssm backbone in torchvision's own Faster R-CNN, as its BackboneWithFPN would be: one training step, one detection.

    python examples/torchvision_detection.py vmamba_tiny

`visionssm.heads.mask_rcnn` has the settings of the published detectors; this is torchvision's, with nothing set.
"""

import sys
from collections import OrderedDict

import timm
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

import visionssm  # noqa: F401  registers the models


class BackboneWithFPN(torch.nn.Module):
    """Five levels of equal width, as a dictionary."""

    def __init__(self, name: str, out_channels: int = 256, **options) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, out_norms=True, **options)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), out_channels, LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.fpn(OrderedDict((str(i), entry) for i, entry in enumerate(self.body(x))))


def main(backbone: str = "vmamba_tiny", size: int = 320) -> dict[str, torch.Tensor]:
    model = FasterRCNN(BackboneWithFPN(backbone), num_classes=3, min_size=size, max_size=2 * size)
    image, target = torch.rand(3, size, size), {"boxes": torch.tensor([[8.0, 8, 40, 50]]), "labels": torch.tensor([1])}
    losses = model([image], [target])
    sum(losses.values()).backward()
    print(f"Faster R-CNN on {backbone}: {', '.join(f'{name} {loss.item():.3f}' for name, loss in losses.items())}")
    return model.eval()([image])[0]


if __name__ == "__main__":
    main(*sys.argv[1:2])
