"""A scan order of your own: the Hilbert curve against raster order on handwritten digits, everything else equal.

python examples/custom_scan_path.py 10
"""

import sys

import torch
import torch.nn.functional as F

import visionssm
from visionssm.data import load_digits
from visionssm.ops import paths


def hilbert(H: int, W: int, *, device=None) -> torch.Tensor:
    """The curve, its transpose, and both from the end. On a map that is no power of two: the larger curve, cut."""
    side = 1 << (max(H, W) - 1).bit_length()
    curve = paths.hilbert(side, side)[0]
    row, column = curve // side, curve % side
    inside = (row < H) & (column < W)
    there = (row * W + column)[inside]
    transposed = paths.transposed(H, W)[0][torch.argsort(torch.argsort(there))].to(there.dtype)
    table = torch.stack([there, transposed])
    return torch.cat([table, table.flip(1)]).to(torch.int32).to(device or "cpu")


def tensors(images) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.from_numpy(images.pixels).float()[:, None] / 16 - 0.5
    return F.interpolate(pixels, (32, 32), mode="bilinear"), torch.tensor(images.labels)


def accuracy(scan_mode, epochs: int, batch: int = 64) -> float:
    torch.manual_seed(0)
    model = visionssm.create_model("vmamba_nano", in_chans=1, scan_mode=scan_mode)
    (images, labels), (test_images, test_labels) = (tensors(part) for part in (load_digits().train, load_digits().test))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(batch):
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.inference_mode():
        return float((model.eval()(test_images).argmax(1) == test_labels).float().mean())


def main(epochs: int = 10) -> dict[str, float]:
    found = {name: accuracy(mode, epochs) for name, mode in (("raster", "cross"), ("hilbert", hilbert))}
    for name, share in found.items():
        print(f"{name:8} {100 * share:.1f} % of the test digits after {epochs} epochs")
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
