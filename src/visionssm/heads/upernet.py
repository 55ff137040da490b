"""UPerNet (arXiv 1807.10221) on any backbone: transformers' heads with what the published runs add to them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from .backbone import DenseModel, segmentation_backbone
from .norms import use_sync_batch_norm

IGNORED = 255


class UperNet(DenseModel, PyTorchModelHubMixin, library_name="visionssm", tags=["image-segmentation"]):
    """UPerNet. See :func:`upernet` for what it takes and gives.

    Args:
        backbone: name of a model.
        num_classes: K.
        channels: of the head; None for what was published with the backbone, see :func:`published_channels`.
        pool_scales: sides of the pooled maps.
        dropout: of whole channels before the classifiers.
        auxiliary_channels, auxiliary_weight: of the second head, on the third map, that helps in training; weight 0 for none.
        size_divisible: images are filled up to multiples of this.
        backbone_options: of the model.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        channels: int | None = None,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        auxiliary_channels: int = 256,
        auxiliary_weight: float = 0.4,
        size_divisible: int = 1,
        backbone_options: dict[str, Any] | None = None,
    ) -> None:
        from transformers import UperNetConfig
        from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

        super().__init__()
        self.num_classes, self.size_divisible, self.auxiliary_weight = num_classes, size_divisible, auxiliary_weight
        self.backbone = segmentation_backbone(backbone, backbone_options or {})
        if channels is None:
            channels = published_channels(backbone, self.backbone.channels[0])
        config: Any = UperNetConfig(
            hidden_size=channels, pool_scales=list(pool_scales), auxiliary_channels=auxiliary_channels
        )
        config.num_labels = num_classes
        self.decode_head = UperNetHead(config, in_channels=self.backbone.channels)
        self.auxiliary_head = UperNetFCNHead(config, in_channels=self.backbone.channels) if auxiliary_weight else None
        mean, std = self.backbone.normalisation
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        for head in (self.decode_head, self.auxiliary_head):
            if head is not None:
                _finish(head, dropout)

    def forward(
        self, images: Tensor | Sequence[Tensor], labels: Tensor | Sequence[Tensor] | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Logits (batch, K, H, W) of the images' size; with labels, the losses."""
        batch = self.batch_images(images)
        maps = self.backbone(batch)
        logits = self._resized(self.decode_head(maps), batch)
        if labels is None:
            H, W = _common_size(images)
            return logits[..., :H, :W]
        goal = self.batch_labels(labels, batch)
        losses = {"loss_decode": _cross_entropy(logits, goal)}
        if self.auxiliary_head is not None:
            auxiliary = _cross_entropy(self._resized(self.auxiliary_head(maps), batch), goal)
            losses["loss_auxiliary"] = self.auxiliary_weight * auxiliary
        return losses

    def batch_images(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Normalised images, filled up with zeros at the bottom and the right to one size."""
        H, W = _common_size(images)
        size = H + -H % self.size_divisible, W + -W % self.size_divisible
        if isinstance(images, Tensor) and size == (H, W):
            return (images - self.mean) / self.std
        return torch.stack([_filled((entry - self.mean) / self.std, size, 0.0) for entry in images])

    def batch_labels(self, labels: Tensor | Sequence[Tensor], batch: Tensor) -> Tensor:
        """Labels (batch, H, W), filled up with the value that is ignored.

        Raises:
            ValueError: a value that is neither a class nor 255.
        """
        goal = torch.stack([_filled(entry.long(), tuple(batch.shape[2:]), IGNORED) for entry in labels])
        wrong = (goal != IGNORED) & ((goal < 0) | (goal >= self.num_classes))
        if wrong.any():
            values = goal[wrong].unique().tolist()
            raise ValueError(f"labels: got {values[:5]}, need 0 to {self.num_classes - 1}, or {IGNORED} for none")
        return goal

    def _resized(self, logits: Tensor, batch: Tensor) -> Tensor:
        return F.interpolate(logits.float(), size=batch.shape[2:], mode="bilinear", align_corners=False)


def upernet(
    backbone: str,
    num_classes: int,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    channels: int | None = None,
    pool_scales: Sequence[int] = (1, 2, 3, 6),
    dropout: float = 0.1,
    auxiliary_channels: int = 256,
    auxiliary_weight: float = 0.4,
    size_divisible: int = 1,
    **backbone_options: Any,
) -> UperNet:
    """UPerNet on a backbone in its published dense form.

    `model(images)` gives logits (batch, K, H, W). `model(images, labels)` gives `loss_decode` and `loss_auxiliary`, which already
    has its weight; their sum is the loss. Images are float (batch, 3, H, W) in [0, 1], RGB, or a list of (3, H, W) of several
    sizes; they are normalised inside, then filled up with zeros. Labels are (batch, H, W), or a list, of classes from 0, with 255
    where there is none.

    Args:
        backbone: name of a model of this library, or of timm's.
        num_classes: K.
        pretrained: fetch the backbone's published weights.
        checkpoint: load the backbone from this file.
        channels, pool_scales, dropout, auxiliary_channels, auxiliary_weight, size_divisible: see :class:`UperNet`.
        backbone_options: of the model, such as drop_path_rate.

    Example:
        >>> upernet("vmamba_nano", 5, channels=32).eval()(torch.rand(1, 3, 48, 64)).shape
        torch.Size([1, 5, 48, 64])
    """
    model = UperNet(
        backbone,
        num_classes,
        channels=channels,
        pool_scales=pool_scales,
        dropout=dropout,
        auxiliary_channels=auxiliary_channels,
        auxiliary_weight=auxiliary_weight,
        size_divisible=size_divisible,
        backbone_options=backbone_options,
    )
    model.load_backbone(pretrained, checkpoint)
    return model


def published_channels(backbone: str, width: int) -> int:
    """Channels of the published heads: 512; Vim's have the backbone's `width`, EfficientVMamba-T's and -S's 256 and 384.

    These two follow from the published sizes, 14M and 29M parameters, and GFLOPs, 230 and 505.

    Example:
        >>> published_channels("vmamba_tiny", 96), published_channels("vim_small", 384)
        (512, 384)
    """
    if backbone.startswith("vim_"):
        return width
    return {"efficient_vmamba_tiny": 256, "efficient_vmamba_small": 384}.get(backbone.partition(".")[0], 512)


@torch.no_grad()
def _finish(head: nn.Module, dropout: float) -> None:
    """mmsegmentation's starting values, dropout before the classifier, and synchronised norms."""
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    classifier: nn.Conv2d = head.classifier  # type: ignore[assignment]
    nn.init.normal_(classifier.weight, std=0.01)
    assert classifier.bias is not None
    nn.init.zeros_(classifier.bias)
    head.classifier = nn.Sequential(nn.Dropout2d(dropout), classifier)
    use_sync_batch_norm(head)


def _cross_entropy(logits: Tensor, goal: Tensor) -> Tensor:
    """The mean over all pixels, ignored ones too, which give 0: as mmsegmentation averages, and never NaN."""
    return F.cross_entropy(logits, goal, ignore_index=IGNORED, reduction="sum") / goal.numel()


def _filled(x: Tensor, size: tuple[int, ...], value: float) -> Tensor:
    return F.pad(x, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2]), value=value)


def _common_size(images: Tensor | Sequence[Tensor]) -> tuple[int, int]:
    return max(entry.shape[-2] for entry in images), max(entry.shape[-1] for entry in images)
