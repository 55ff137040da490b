"""Small detectors and a scene to test them on."""

import torch

SMALL = {
    "channels": 32,
    "hidden": 64,
    "proposals_train": [200, 100],
    "proposals_test": [200, 100],
    "roi_samples": 64,
}


def scene(H: int = 64, W: int = 96, boxes=((5, 6, 30, 40), (40, 10, 80, 44)), labels=(1, 3)):
    """An image with one plain rectangle per box, each class of its own colour, and its target."""
    generator = torch.Generator().manual_seed(0)
    image = 0.1 * torch.rand(3, H, W, generator=generator)
    masks = torch.zeros(len(boxes), H, W, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2), label in zip(masks, boxes, labels, strict=True):
        mask[y1:y2, x1:x2] = 1
        image[label - 1, y1:y2, x1:x2] += 0.8
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
    }
    return image, target


def empty(H: int = 50, W: int = 64):
    """An image without objects."""
    return scene(H, W, boxes=(), labels=())


def train(model, step, steps: int, lr: float = 2e-3):
    """Minimises the sum of what `step()` gives; returns the first and the last."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        loss = sum(step().values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses[0], losses[-1]
