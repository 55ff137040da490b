"""UPerNet on a backbone of this library: scenes of digits, a few training steps, sliding-window inference.

python examples/segmentation.py 60       `visionssm train --task segmentation --data DIR` is the whole training
"""

import sys
import tempfile

import torch

from visionssm.data.ade20k import load_ade20k
from visionssm.data.scenes import make_scenes
from visionssm.heads import segment, upernet


def main(steps: int = 60, backbone: str = "vmamba_nano", size: int = 96) -> torch.Tensor:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        make_scenes(f"{folder}/scenes", images=24, size=size)
        train, _ = load_ade20k(f"{folder}/scenes")
        loaded = [train.load(i) for i in range(len(train))]
        samples = [(image / 255, target["label_map"].long()) for image, target, _ in loaded]
    model = upernet(backbone, len(train.class_names), channels=64, auxiliary_channels=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        images, labels = zip(*(samples[i % len(samples)] for i in range(4 * step, 4 * step + 4)), strict=True)
        loss = sum(model(torch.stack(images), torch.stack(labels)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    image, labels = samples[0]
    found = segment(model.eval(), image, window=size // 2 + 16, stride=size // 3).argmax(0)
    print(f"{100 * float((found == labels).float().mean()):.0f} % of the pixels are right")
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
