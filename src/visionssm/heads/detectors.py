"""Mask R-CNN (arXiv 1703.06870) and Cascade Mask R-CNN (arXiv 1712.00726) on any backbone, with the published settings.

torchvision's detector, feature pyramid and proposal network; box and mask heads are in roi_heads.py, and what differs from
torchvision's defaults in settings.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from .backbone import DenseModel, detection_backbone, init_convolutions
from .images import DetectionImages
from .proposals import ProposalNetwork
from .roi_heads import BoxHead, RoIHeads
from .settings import CASCADE_MASK_RCNN, MASK_RCNN, DetectorSettings, detector_settings, published_cascade


class MaskRCNN(DenseModel, GeneralizedRCNN, PyTorchModelHubMixin, library_name="visionssm", tags=["object-detection"]):
    """Mask R-CNN. See :func:`mask_rcnn` for what it takes and gives.

    Args:
        backbone: name of a model.
        num_classes: of objects, without the background.
        preset: "mmdetection", the published settings; or "torchvision".
        settings: changes to the preset, see :class:`DetectorSettings`.
        min_size, max_size: of the shorter and the longer side of images in evaluation; `min_size` None for images as they come.
        size_divisible: batches are filled up to multiples of this.
        backbone_options: of the model.
    """

    presets: Mapping[str, DetectorSettings] = MASK_RCNN
    roi_heads: RoIHeads

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        preset: str = "mmdetection",
        settings: dict[str, Any] | None = None,
        min_size: int | None = 800,
        max_size: int = 1333,
        size_divisible: int = 32,
        backbone_options: dict[str, Any] | None = None,
    ) -> None:
        chosen = detector_settings(self.presets, preset, settings)
        body = detection_backbone(backbone, backbone_options or {}, chosen.channels, init=chosen.init)
        channels = body.channels[0]
        super().__init__(
            body,
            ProposalNetwork(body.strides, channels, chosen),
            RoIHeads(body.strides, channels, num_classes, chosen),
            DetectionImages(*body.normalisation, min_size, max_size, size_divisible),
        )
        self.num_classes, self.settings = num_classes, chosen
        init_roi_heads(self.roi_heads, chosen.init)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation."""
        return super().forward(images, check_targets(images, targets, self.num_classes) if self.training else None)


class CascadeMaskRCNN(MaskRCNN, library_name="visionssm", tags=["object-detection"]):
    """Cascade Mask R-CNN: three box heads, each on the boxes that the one before it refined. See :func:`cascade_mask_rcnn`.

    Args:
        preset: "mambavision", "vim" or "mmdetection".
        others: as :class:`MaskRCNN`.
    """

    presets = CASCADE_MASK_RCNN

    def __init__(self, backbone: str, num_classes: int, *, preset: str = "mambavision", **others: Any) -> None:
        super().__init__(backbone, num_classes, preset=preset, **others)


def mask_rcnn(
    backbone: str,
    num_classes: int,
    *,
    preset: str = "mmdetection",
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    settings: dict[str, Any] | None = None,
    min_size: int | None = 800,
    max_size: int = 1333,
    size_divisible: int = 32,
    **backbone_options: Any,
) -> MaskRCNN:
    """Mask R-CNN on a backbone in its published dense form, with torchvision's interface.

    Training: `model(images, targets)` gives a dictionary of losses, whose sum is the loss. Images are float (3, H, W) in [0, 1],
    RGB, each of its own size; they are normalised and batched inside. Targets are dictionaries: `boxes` (n, 4) as x1, y1, x2, y2,
    `labels` (n,) from 1 to num_classes, `masks` (n, H, W) of zeros and ones; n may be 0.

    Evaluation: `model(images)` gives for each image `boxes`, `labels`, `scores`, and `masks` (n, 1, H, W) in [0, 1], in the
    coordinates of the image as it came.

    Args:
        backbone: name of a model of this library, or of timm's.
        num_classes: of objects, without the background.
        preset: "mmdetection", the settings of the published runs; or "torchvision".
        pretrained: fetch the backbone's published weights.
        checkpoint: load the backbone from this file.
        settings: changes to the preset, see :class:`visionssm.heads.DetectorSettings`.
        min_size, max_size: of the shorter and the longer side of images in evaluation; `min_size` None for images as they come.
            Training images are never resized.
        size_divisible: batches are filled up with zeros to multiples of this.
        backbone_options: of the model, such as drop_path_rate, or window_size="map" for MambaVision.

    Example:
        >>> detector = mask_rcnn("vmamba_nano", 3, min_size=None).eval()
        >>> sorted(detector([torch.rand(3, 64, 96)])[0])
        ['boxes', 'labels', 'masks', 'scores']
    """
    model = MaskRCNN(
        backbone,
        num_classes,
        preset=preset,
        settings=settings,
        min_size=min_size,
        max_size=max_size,
        size_divisible=size_divisible,
        backbone_options=backbone_options,
    )
    model.load_backbone(pretrained, checkpoint)
    return model


def cascade_mask_rcnn(
    backbone: str,
    num_classes: int,
    *,
    preset: str | None = None,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    settings: dict[str, Any] | None = None,
    min_size: int | None = 800,
    max_size: int = 1333,
    size_divisible: int = 32,
    **backbone_options: Any,
) -> CascadeMaskRCNN:
    """Cascade Mask R-CNN on a backbone in its published dense form; takes and gives what :func:`mask_rcnn` does.

    Args:
        preset: "mambavision": heads of four convolutions with synchronised BatchNorm and one linear layer, boxes per class, GIoU
            loss, a mask head per stage. "vim": ViTDet's, LayerNorm, one box for all classes, L1 loss, one mask head.
            "mmdetection": heads of two linear layers, one box for all classes, smooth L1 loss, a mask head per stage. By default
            that of the backbone's paper.
        others: as :func:`mask_rcnn`. Vim's detectors see squares: min_size=1024, max_size=1024, size_divisible=1024.

    Example:
        >>> detector = cascade_mask_rcnn("vim_nano", 3, min_size=None).eval()
        >>> detector.settings.class_agnostic
        True
    """
    model = CascadeMaskRCNN(
        backbone,
        num_classes,
        preset=preset or published_cascade(backbone),
        settings=settings,
        min_size=min_size,
        max_size=max_size,
        size_divisible=size_divisible,
        backbone_options=backbone_options,
    )
    model.load_backbone(pretrained, checkpoint)
    return model


def check_targets(
    images: list[Tensor], targets: list[dict[str, Tensor]] | None, num_classes: int
) -> list[dict[str, Tensor]]:
    """Refuses targets that would end in wrong or infinite losses, and says which.

    Raises:
        ValueError: no targets, boxes without area or not numbers, or labels that are no class.
    """
    if targets is None or len(targets) != len(images):
        found = "none" if targets is None else len(targets)
        raise ValueError(f"targets: got {found}, need one for each of {len(images)} images in training")
    for i, target in enumerate(targets):
        boxes, labels = target["boxes"], target["labels"]
        if boxes.dim() != 2 or boxes.shape[1] != 4 or len(boxes) != len(labels):
            raise ValueError(
                f"targets[{i}]: got boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)}, need (n, 4) and (n,)"
            )
        wrong = ~(boxes[:, 2:] > boxes[:, :2]).all(1) | ~boxes.isfinite().all(1)
        if wrong.any():
            raise ValueError(
                f"targets[{i}]: box {boxes[wrong][0].tolist()} has no area; need x1 < x2 and y1 < y2, {int(wrong.sum())} fail"
            )
        if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) <= num_classes:
            span = f"{int(labels.min())} to {int(labels.max())}"
            raise ValueError(f"targets[{i}]: got labels from {span}, need 1 to {num_classes}; 0 is the background")
        size = tuple(images[i].shape[-2:])
        if "masks" in target and tuple(target["masks"].shape) != (len(boxes), *size):
            raise ValueError(
                f"targets[{i}]: got masks {tuple(target['masks'].shape)}, need {(len(boxes), *size)}: "
                "one per box, of the image's size"
            )
    return targets


@torch.no_grad()
def init_roi_heads(heads: RoIHeads, init: str) -> None:
    """Starting values of the published frameworks; "torchvision" is what it gives layers, and its mask head's.

    Both draw class scores with a deviation of 0.01, boxes with 0.001, and convolutions from Kaiming's normal distribution. For
    linear layers mmdetection takes Xavier's uniform distribution, detectron2 Kaiming's.
    """
    for head in heads.mask_heads:
        init_convolutions(head, lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"))
    for head in heads.box_heads:
        assert isinstance(head, BoxHead)
        if init == "torchvision":
            continue
        init_convolutions(head, lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"))
        for fc in head.fcs:
            assert isinstance(fc, nn.Linear)
            if init == "mmdetection":
                nn.init.xavier_uniform_(fc.weight)
            else:
                nn.init.kaiming_uniform_(fc.weight, a=1)
        for layer, std in ((head.cls_score, 0.01), (head.box_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
        for linear in (*head.fcs, head.cls_score, head.box_pred):
            nn.init.zeros_(linear.bias)
    if init == "detectron2":
        for head in heads.mask_heads:
            nn.init.normal_(head.logits.weight, std=0.001)  # type: ignore[arg-type, union-attr]
