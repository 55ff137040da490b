"""LoRA by PEFT: train small matrices beside the frozen linear layers of a backbone.

pip install peft
python examples/lora.py vmamba_tiny
"""

import sys

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

import visionssm


def main(name: str = "vmamba_tiny", size: int = 224, classes: int = 5, rank: int = 8) -> tuple[int, int]:
    torch.manual_seed(0)
    model = visionssm.create_model(name, num_classes=classes)  # pretrained=True for published weights
    adapted = get_peft_model(
        model, LoraConfig(r=rank, target_modules=["in_proj", "out_proj", "fc1", "fc2"], modules_to_save=["head"])
    )
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    total = sum(p.numel() for p in adapted.parameters())
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=1e-3)
    images, labels = torch.randn(4, 3, size, size), torch.arange(4) % classes
    losses = []
    for _ in range(3):
        loss = F.cross_entropy(adapted(images), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{name}: {trained:,} of {total:,} parameters trained; loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return trained, total


if __name__ == "__main__":
    main(*sys.argv[1:2])
