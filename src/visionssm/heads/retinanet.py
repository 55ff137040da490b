"""RetinaNet (arXiv 1708.02002) from torchvision on any backbone, with the settings of EfficientVMamba's runs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import sigmoid_focal_loss

from .backbone import DenseModel, detection_backbone
from .detectors import check_targets
from .images import DetectionImages
from .proposals import RATIOS, Anchors, BoxCoder, anchor_matcher


class FocalHead(RetinaNetHead):
    """torchvision's head; its losses are over all objects' anchors of the batch instead of image by image, and it predicts float32.

    Args:
        channels: of the levels.
        num_anchors: per position.
        num_classes: of objects.
    """

    def __init__(self, channels: int, num_anchors: int, num_classes: int) -> None:
        super().__init__(channels, num_anchors, num_classes)
        self.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0), math.log(1000 / 16))

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: value.float() for name, value in super().forward(x).items()}

    def compute_loss(
        self,
        targets: Sequence[Mapping[str, Tensor]],
        head_outputs: Mapping[str, Tensor],
        anchors: Sequence[Tensor],
        matched_idxs: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Focal loss of all anchors but those left out, and L1 of those on objects."""
        objects = torch.stack(list(matched_idxs))
        on_object = objects >= 0
        number = on_object.sum().clamp(min=1)
        logits, deltas = head_outputs["cls_logits"], head_outputs["bbox_regression"]
        goal = torch.zeros_like(logits)
        box_loss = deltas.sum() * 0
        for i, (target, boxes) in enumerate(zip(targets, anchors, strict=True)):
            mine, found = on_object[i], objects[i][on_object[i]]
            goal[i, mine, target["labels"][found]] = 1.0
            true = self.box_coder.encode_single(target["boxes"][found].float(), boxes[mine])
            box_loss = box_loss + F.l1_loss(deltas[i, mine], true, reduction="sum")
        taken = objects != -2
        classification = sigmoid_focal_loss(logits[taken], goal[taken], alpha=0.25, gamma=2.0, reduction="sum")
        return {"classification": classification / number, "bbox_regression": box_loss / number}


class RetinaNet(
    DenseModel, TorchvisionRetinaNet, PyTorchModelHubMixin, library_name="visionssm", tags=["object-detection"]
):
    """RetinaNet. See :func:`retinanet` for what it takes and gives.

    Args:
        backbone: name of a model.
        num_classes: of objects, without the background.
        channels: of the pyramid and the head.
        min_size, max_size, size_divisible: as :class:`visionssm.heads.MaskRCNN`.
        backbone_options: of the model.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        channels: int = 256,
        min_size: int | None = 800,
        max_size: int = 1333,
        size_divisible: int = 32,
        backbone_options: dict[str, Any] | None = None,
    ) -> None:
        body = detection_backbone(backbone, backbone_options or {}, channels, first=1)
        sides = tuple(4 * 2 ** (octave / 3) for octave in range(3))
        super().__init__(
            body,
            num_classes,
            anchor_generator=Anchors(body.strides, sides),
            head=FocalHead(channels, len(sides) * len(RATIOS), num_classes),
            proposal_matcher=anchor_matcher(0.5, 0.4, 0.0),
            detections_per_img=100,
        )
        self.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0), math.log(1000 / 16))
        self.transform = DetectionImages(*body.normalisation, min_size, max_size, size_divisible)
        self.num_classes = num_classes

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation; classes are 0 and on inside, 1 and on outside."""
        if self.training:
            targets = check_targets(images, targets, self.num_classes)
            found = super().forward(images, [{"boxes": t["boxes"], "labels": t["labels"] - 1} for t in targets])
            return {"loss_classifier": found["classification"], "loss_box_reg": found["bbox_regression"]}
        detections = super().forward(images)
        for detection in detections:
            detection["labels"] = detection["labels"] + 1
        return detections


def retinanet(
    backbone: str,
    num_classes: int,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    channels: int = 256,
    min_size: int | None = 800,
    max_size: int = 1333,
    size_divisible: int = 32,
    **backbone_options: Any,
) -> RetinaNet:
    """RetinaNet on a backbone in its published dense form; takes and gives what :func:`visionssm.heads.mask_rcnn` does, but for
    masks.

    Args:
        channels: of the pyramid and the head.
        others: as :func:`visionssm.heads.mask_rcnn`.

    Example:
        >>> detector = retinanet("efficient_vmamba_nano", 3, min_size=None).eval()
        >>> sorted(detector([torch.rand(3, 64, 96)])[0])
        ['boxes', 'labels', 'scores']
    """
    model = RetinaNet(
        backbone,
        num_classes,
        channels=channels,
        min_size=min_size,
        max_size=max_size,
        size_divisible=size_divisible,
        backbone_options=backbone_options,
    )
    model.load_backbone(pretrained, checkpoint)
    return model
