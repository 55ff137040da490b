"""Semantic segmentation: losses, and how well the labels of pixels agree."""

from typing import Any

import torch
from torch import Tensor

from visionssm.data.ade20k import IGNORE, LabelMapImages
from visionssm.data.dense_loader import DenseBatch
from visionssm.tasks.dense import DenseTask
from visionssm.tasks.dense_config import SegmentationConfig
from visionssm.tasks.processes import summed
from visionssm.tasks.segmentation_metrics import SegmentationMetrics, confusion_matrix

MOST_COUNTED = 500  # label maps whose pixels are counted
MULTI_SCALE = {"ratios": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "flip": True}


class SegmentationTask(DenseTask):
    """Trains a segmenter. See `DenseTask` for the arguments."""

    score, score_name = "val_miou", "val mIoU"
    config: SegmentationConfig

    def loss(self, batch: DenseBatch) -> Tensor:
        """The sum of the losses of both heads."""
        self.note_problems(batch)
        labels = torch.stack([target["label_map"] for target in batch["targets"]]).long()
        return self.total(self.model(torch.stack(batch["images"]), labels))

    def start_validation(self) -> None:
        """No pixels yet."""
        classes = len(self.card.class_names)
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device=self.device)

    def validate(self, batch: DenseBatch) -> None:
        """Count the pixels of a batch, image by image."""
        self.note_problems(batch)
        for image, target in zip(batch["images"], batch["targets"], strict=True):
            predicted = predict_label_map(self.judged_model, image, self.config)
            self.confusion += confusion_matrix(predicted, target["label_map"], len(self.confusion))
        if not batch["images"]:
            predict_label_map(self.judged_model, self.blank_batch()["images"][0], self.config)

    def validation_row(self) -> dict[str, float | None]:
        """Mean intersection over union, mean accuracy of the classes, and accuracy of all pixels."""
        self.write_problems()
        metrics = SegmentationMetrics.of(summed(self.trainer, self.confusion))
        return {"val_loss": None, "val_miou": metrics.miou or 0.0, "val_macc": metrics.macc, "val_aacc": metrics.aacc}

    def blank_batch(self) -> Any:
        """One black image of the first class."""
        assert self.config.crop_size is not None
        height, width = self.config.crop_size
        return DenseBatch(
            images=[torch.zeros(3, height, width, device=self.device)],
            targets=[{"label_map": torch.zeros(height, width, dtype=torch.uint8, device=self.device)}],
            indices=torch.zeros(1, dtype=torch.int64),
            unreadable=[],
            problems=[],
        )


@torch.no_grad()
def start_at_class_shares(model: Any, images: LabelMapImages) -> None:
    """Set the biases of both classifiers to the logarithms of the classes' shares of the pixels.

    Where one class covers most of every image, the first steps otherwise do nothing but raise its logit. They change all
    weights in that one direction, and features as narrow as a small model's don't recover.

    Args:
        model: a `visionssm.heads.UperNet`.
        images: for training; 500 of them, evenly spaced, are counted.
    """
    counts = torch.zeros(IGNORE + 1, dtype=torch.int64)
    for index in range(0, len(images), -(-len(images) // MOST_COUNTED)):
        try:
            _, target, _ = images.load(index)
        except OSError:  # counted and listed when it is trained on
            continue
        counts += torch.bincount(target["label_map"].flatten(), minlength=IGNORE + 1)
    shares = counts[: len(images.class_names)].clamp(min=1).float()
    for head in (model.decode_head, model.auxiliary_head):
        if head is not None:
            head.classifier[-1].bias.copy_((shares / shares.sum()).log())


def predict_label_map(model: Any, image: Tensor, config: SegmentationConfig, multi_scale: bool = False) -> Tensor:
    """The most likely class of every pixel, by the test procedure of the settings.

    Args:
        model: a `visionssm.heads.UperNet` in eval mode.
        image: (3, H, W), 0 to 1.
        config: settings with nothing left open.
        multi_scale: average over six sizes, each mirrored too, as in the published multi-scale results.

    Returns:
        (H, W), int64.
    """
    from visionssm.heads import segment

    sizes: dict[str, Any] = (
        {"short_side": config.short_side, "long_side": config.long_side} if config.test_resize else {}
    )
    scales: dict[str, Any] = MULTI_SCALE if multi_scale else {}
    probabilities = segment(model, image, window=config.window, stride=config.stride, **sizes, **scales)
    return probabilities.argmax(0)
