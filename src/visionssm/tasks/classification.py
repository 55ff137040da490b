"""Image classification as a Lightning module: loss, optimizer, schedule, averaged weights, and steps that go wrong."""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule
from timm.data.mixup import Mixup, mixup_target
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional

from visionssm.data.loader import Batch, seed_everything
from visionssm.tasks.checkpoint import CARD, ModelCard
from visionssm.tasks.config import TrainConfig
from visionssm.tasks.health import first_nonfinite_module

HISTORY = "history"


class ClassificationTask(LightningModule):
    """Trains a model to tell classes apart.

    Every step is a function of the weights, the optimizer's state, the batch, the seed and the position in training:
    the random generators are set anew for each step, and the learning rate is computed from the step's number. That is
    what lets a run continue bit by bit.

    Args:
        model: maps (batch, channels, H, W) to logits (batch, classes).
        config: settings with nothing left open (see `with_defaults`).
        card: what is written into every checkpoint.
        batches_per_epoch: of each process.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, card: ModelCard, batches_per_epoch: int):
        super().__init__()
        self.model = model
        self.config = config
        self.card = card
        self.batches_per_epoch = batches_per_epoch
        self.ema = None
        if config.ema_decay:
            self.ema = ModelEmaV3(model, decay=config.ema_decay, use_warmup=config.ema_warmup)
        self.mixup = None
        if config.mixup or config.cutmix:
            classes = len(card.class_names)
            self.mixup = Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=classes)
        # One row per epoch, and the sums of the epoch that is under way: both travel in checkpoints.
        self.history: list[dict[str, Any]] = []
        self.train_sums = {"loss": 0.0, "images": 0, "grad_norm": 0.0, "steps": 0, "skipped": 0}
        self.val_sums = torch.zeros(4)
        self.skipped_in_a_row = 0
        self.images_seen: torch.Tensor | None = None

    @property
    def judged_model(self) -> nn.Module:
        """The model that is validated: the averaged one if there is one."""
        return self.model if self.ema is None else self.ema.module

    def ends_step(self, batch_idx: int) -> bool:
        """Whether the optimizer steps after this batch; between steps, gradients are held that no checkpoint keeps."""
        return (batch_idx + 1) % self.config.accumulate == 0 or batch_idx + 1 == self.batches_per_epoch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """timm's optimizer, without weight decay on 1-D parameters and those that the model exempts, and schedule."""
        config = self.config
        assert config.epochs is not None
        optimizer = create_optimizer_v2(
            self.model,
            opt=config.optimizer,
            lr=config.lr,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
        )
        self.schedule, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            num_epochs=config.epochs,
            min_lr=config.min_lr,
            warmup_lr=config.min_lr,
            warmup_epochs=config.warmup_epochs,  # type: ignore[arg-type]  # a fraction is fine: steps are counted
            step_on_epochs=False,
            updates_per_epoch=math.ceil(self.batches_per_epoch / config.accumulate),
        )
        return optimizer

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set everything that a step depends on from its position."""
        seed_everything(self.config.seed, self.current_epoch, batch_idx, self.global_rank)
        self.schedule.step_update(num_updates=self.global_step)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor | None:
        """Mean cross-entropy of a batch; None if not one of its images could be read."""
        if not len(batch["labels"]):
            return None
        images, targets, smoothing = self.mix(batch["images"], batch["labels"])
        self.images_seen = images
        logits = self.model(images)
        loss = functional.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        value = loss.item()
        if math.isfinite(value):
            self.train_sums["loss"] += value * len(images)
            self.train_sums["images"] += len(images)
        return loss

    def mix(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Apply mixup and cutmix. Returns images, targets (classes, or shares of classes), and smoothing still to do."""
        if self.mixup is None:
            return images, labels, self.config.label_smoothing
        # Images are mixed in pairs; a batch that lost one that couldn't be read may be odd.
        paired = len(images) - len(images) % 2
        mixed, targets = images[:0], images.new_zeros(0, self.mixup.num_classes)
        if paired:
            mixed, targets = self.mixup(images[:paired].clone(), labels[:paired])
        rest = mixup_target(labels[paired:], self.mixup.num_classes, smoothing=self.mixup.label_smoothing)
        return torch.cat([mixed, images[paired:]]), torch.cat([targets, rest.to(targets)]), 0.0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients, or drop them if they aren't finite: parameters without gradients stay as they are."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(parameter.grad for parameter in parameters if parameter.grad is not None)
        if torch.isfinite(norm):
            if self.config.clip_grad is not None:
                nn.utils.clip_grads_with_norm_(parameters, self.config.clip_grad, norm)
            self.train_sums["grad_norm"] += float(norm)
            self.train_sums["steps"] += 1
            self.skipped_in_a_row = 0
            return
        self.train_sums["skipped"] += 1
        self.skipped_in_a_row += 1
        where = first_nonfinite_module(self.model, self.images_seen)
        optimizer.zero_grad(set_to_none=True)
        message = f"step {self.global_step}: the gradients aren't finite, first seen in {where}; step skipped"
        self.print(message)
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise ValueError(
                f"{message}, {self.skipped_in_a_row} in a row (max_skipped): training stopped; the last good weights are "
                "in last.ckpt. Lower lr, raise warmup_epochs, or use float32"
            )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Average the weights right after every step of the optimizer, before a checkpoint can be taken."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step)

    def is_healthy(self) -> bool:
        """Whether the weights are finite and the last step was good."""
        return not self.skipped_in_a_row and all(bool(torch.isfinite(p).all()) for p in self.model.parameters())

    def on_validation_epoch_start(self) -> None:
        """Forget earlier sums."""
        self.val_sums = torch.zeros(4, dtype=torch.float32, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add up loss and hits."""
        labels = batch["labels"]
        if not len(labels):
            return
        logits = self.judged_model(batch["images"]).float()
        ranked = logits.topk(min(5, logits.shape[1])).indices
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        hits = ranked == labels[:, None]
        self.val_sums += torch.stack(
            [loss, hits[:, 0].sum(), hits.sum(), torch.tensor(len(labels), device=self.device)]
        )

    def on_validation_epoch_end(self) -> None:
        """Close the row of the epoch: validation is the last thing in it."""
        epoch = self.current_epoch + 1
        if self.history and self.history[-1]["epoch"] >= epoch:
            return  # validated again after a restart at the end of an epoch
        sums = self.train_sums
        val_loss, top1, top5, val_images = self._summed(self.val_sums)
        row = {
            "epoch": epoch,
            "step": self.global_step,
            "lr": max(group["lr"] for group in self.trainer.optimizers[0].param_groups),
            "train_loss": sums["loss"] / sums["images"] if sums["images"] else None,
            "grad_norm": sums["grad_norm"] / sums["steps"] if sums["steps"] else None,
            "skipped_steps": sums["skipped"],
            "val_loss": val_loss / val_images if val_images else None,
            "val_top1": top1 / val_images if val_images else 0.0,
            "val_top5": top5 / val_images if val_images else 0.0,
        }
        self.history.append(row)
        self.train_sums = dict.fromkeys(sums, 0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what describes the model, and the history."""
        checkpoint[CARD] = asdict(self.card)
        checkpoint[HISTORY] = {"epochs": self.history, "train_sums": self.train_sums, "in_a_row": self.skipped_in_a_row}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history up again."""
        self.history = checkpoint[HISTORY]["epochs"]
        self.train_sums = checkpoint[HISTORY]["train_sums"]
        self.skipped_in_a_row = checkpoint[HISTORY]["in_a_row"]

    def _summed(self, sums: torch.Tensor) -> list[float]:
        reduce: Callable = self.trainer.strategy.reduce
        return reduce(sums, reduce_op="sum").tolist()
