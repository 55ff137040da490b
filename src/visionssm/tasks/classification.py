"""Image classification: the loss with mixup, smoothing, teacher and MESA, and top-1 and top-5 accuracy."""

from typing import Any

import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor, nn
from torch.nn import functional

from visionssm.data.loader import Batch
from visionssm.tasks.base import Task
from visionssm.tasks.checkpoint import ModelCard
from visionssm.tasks.classification_config import ClassificationConfig
from visionssm.tasks.distillation import Teacher, distillation_loss, mesa_loss
from visionssm.tasks.processes import summed


class ClassificationTask(Task):
    """Trains a model that maps (batch, channels, H, W) to logits (batch, classes).

    A model with a second classifier for distillation, such as GroupMamba's, gives two logits in training where there is a
    teacher: the first are compared with the labels, the second with the teacher.

    Args:
        model, config, card, batches_per_epoch: see :class:`Task`.
        teacher: for `config.distillation`.
    """

    score, score_name = "val_top1", "val top-1"
    config: ClassificationConfig

    def __init__(
        self,
        model: nn.Module,
        config: ClassificationConfig,
        card: ModelCard,
        batches_per_epoch: int,
        teacher: Teacher | None = None,
    ):
        if hasattr(model, "set_distilled_training") and isinstance(model.get_classifier(), tuple):  # type: ignore[operator]
            model.set_distilled_training(teacher is not None)  # type: ignore[operator]
        super().__init__(model, config, card, batches_per_epoch)
        self.teacher = teacher
        self.label_smoothing = config.label_smoothing
        self.mixup = None
        if config.mixup or config.cutmix:
            classes = len(card.class_names)
            self.mixup = Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=classes)

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of a batch, the teacher's part, and that of the averaged weights (MESA)."""
        config = self.config
        images, targets, smoothing = self.mix(batch["images"], batch["labels"])
        outputs = self.model(images)
        logits, distilled = (o.float() for o in (outputs if isinstance(outputs, tuple) else (outputs, outputs)))
        loss = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        if self.teacher is not None:
            told = distillation_loss(
                distilled, self.teacher(images), config.distillation, config.distillation_temperature
            )
            loss = (1 - config.distillation_alpha) * loss + config.distillation_alpha * told
        if self.mesa_is_on:
            with torch.no_grad():
                averaged = self.judged_model(images).float()
            loss = loss + config.mesa * mesa_loss(logits, averaged)
        return loss

    @property
    def mesa_is_on(self) -> bool:
        """Whether the averaged weights are asked in this epoch."""
        assert self.config.epochs is not None
        schedule = self.config.epochs - self.config.cooldown_epochs
        return self.config.mesa > 0 and self.current_epoch / schedule > self.config.mesa_start

    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        """Apply mixup and cutmix. Returns images, targets (classes, or shares of classes), and smoothing still to do."""
        if self.mixup is None:
            return images, labels, self.label_smoothing
        # Images are mixed in pairs; a batch that lost one that couldn't be read may be odd.
        paired = len(images) - len(images) % 2
        mixed, targets = images[:0], images.new_zeros(0, self.mixup.num_classes)
        if paired:
            mixed, targets = self.mixup(images[:paired].clone(), labels[:paired])
        rest = mixup_target(labels[paired:], self.mixup.num_classes, smoothing=self.mixup.label_smoothing)
        return torch.cat([mixed, images[paired:]]), torch.cat([targets, rest.to(targets)]), 0.0

    def start_validation(self) -> None:
        """Sums of loss, hits, hits among the first five, and images."""
        self.val_sums = torch.zeros(4, dtype=torch.float32, device=self.device)

    def validate(self, batch: Batch) -> None:
        """Add up loss and hits."""
        read = len(batch["labels"])
        images, labels = (batch if read else self.blank_batch())["images"], batch["labels"]
        logits = self.judged_model(images).float()[:read]
        ranked = logits.topk(min(5, logits.shape[1])).indices
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        hits = ranked == labels[:, None]
        self.val_sums += torch.stack([loss, hits[:, 0].sum(), hits.sum(), torch.tensor(read, device=self.device)])

    def validation_row(self) -> dict[str, float | None]:
        """Mean loss and shares of hits."""
        loss, top1, top5, images = summed(self.trainer, self.val_sums).tolist()
        return {
            "val_loss": loss / images if images else None,
            "val_top1": top1 / images if images else 0.0,
            "val_top5": top5 / images if images else 0.0,
        }

    def blank_batch(self) -> Any:
        """One black image of the first class."""
        images = torch.zeros(1, *self.card.preprocessing["input_size"], device=self.device)
        labels = torch.zeros(1, dtype=torch.int64, device=self.device)
        return Batch(images=images, labels=labels, indices=labels, unreadable=[])
