"""Mask R-CNN on a backbone of this library: scenes of digits, a few training steps, one prediction.

python examples/detection.py 60          `visionssm train --task detection --data DIR` is the whole training
"""

import sys
import tempfile

import torch

from visionssm.data.coco import load_coco
from visionssm.data.scenes import make_scenes
from visionssm.heads import mask_rcnn

SMALL = {"channels": 64, "hidden": 128, "proposals_train": [500, 200], "proposals_test": [500, 200], "roi_samples": 128}


def main(steps: int = 60, backbone: str = "vmamba_nano", size: int = 96) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        make_scenes(f"{folder}/scenes", images=24, size=size)
        train, _ = load_coco(f"{folder}/scenes")
        samples = [(image / 255, target) for image, target, _ in map(train.load, range(len(train)))]
    model = mask_rcnn(backbone, len(train.class_names), min_size=None, settings=SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        images, targets = zip(*(samples[i % len(samples)] for i in range(4 * step, 4 * step + 4)), strict=True)
        loss = sum(model(list(images), list(targets)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    with torch.inference_mode():
        found = model.eval()([samples[0][0]])[0]
    print(f"{len(found['boxes'])} digits found, {len(samples[0][1]['boxes'])} are there")
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
