"""Run by `test_processes.py` under torchrun: a model that overflows at one step, in the second process only."""

import sys

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from visionssm.data import load_digits
from visionssm.data.transforms import Preprocessing
from visionssm.tasks.checkpoint import ModelCard
from visionssm.tasks.classification import ClassificationTask
from visionssm.tasks.classification_config import ClassificationConfig
from visionssm.tasks.classification_data import ClassificationData
from visionssm.tasks.engine import fit
from visionssm.tasks.run import open_run


class Fragile(nn.Module):
    """A linear classifier; `bad_step` overflows where the rank is 1."""

    def __init__(self, bad_step: int) -> None:
        super().__init__()
        self.hidden, self.overflow, self.head = nn.Linear(64, 32), nn.Identity(), nn.Linear(32, 10)
        self.bad_step, self.step = bad_step, -1

    def forward(self, images: Tensor) -> Tensor:
        self.step += torch.is_grad_enabled()
        hidden = self.hidden(images.flatten(1))
        if self.training and self.step == self.bad_step and rank_zero_only.rank == 1:
            hidden = hidden * float("inf")
        return self.head(self.overflow(hidden))


def main() -> None:
    config = ClassificationConfig(epochs=1, batch_size=64, device="cpu", out=sys.argv[1], ema_decay=0.9).with_defaults()
    preprocessing = Preprocessing((1, 8, 8), "bicubic", (0.5,), (0.5,), 1.0, "center")
    splits = load_digits()
    run = open_run(config, "")
    card = ModelCard.of_run(config, run, {}, splits.class_names, preprocessing.to_dict())
    data = ClassificationData(splits, preprocessing, config)
    torch.manual_seed(0)
    task = ClassificationTask(Fragile(bad_step=3), config, card, data.batches_per_epoch())
    fit(task, data, run, "cpu")
    for row in task.history:
        print(f"process {rank_zero_only.rank} skipped {row['skipped_steps']}")


if __name__ == "__main__":
    main()
