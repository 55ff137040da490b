"""A head of your own on the maps of a backbone: here, a density map from all four stages.

python examples/features_for_custom_head.py vmamba_tiny
"""

import sys

import timm
import torch
import torch.nn.functional as F
from torch import nn

import visionssm  # noqa: F401  registers the models


class DensityHead(nn.Module):
    """One non-negative number for each pixel of the first map."""

    def __init__(self, channels: list[int], width: int = 64) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.out = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        size = maps[0].shape[2:]
        levels = [
            F.interpolate(lateral(x), size, mode="bilinear") for lateral, x in zip(self.lateral, maps, strict=True)
        ]
        return F.softplus(self.out(sum(levels)))


def main(backbone: str = "vmamba_tiny", height: int = 224, width: int = 320) -> torch.Tensor:
    body = timm.create_model(backbone, features_only=True)  # pretrained=True for published weights
    head = DensityHead(body.feature_info.channels())
    images, counts = torch.rand(2, 3, height, width), torch.tensor([3.0, 5.0])
    density = head(body(images))
    loss = F.mse_loss(density.sum((1, 2, 3)), counts)
    loss.backward()
    print(f"{backbone}: {tuple(images.shape)} -> {tuple(density.shape)}, loss {loss.item():.3f}")
    return density


if __name__ == "__main__":
    main(*sys.argv[1:2])
