"""Box and mask heads on proposals: one stage is Mask R-CNN (arXiv 1703.06870), three are Cascade Mask R-CNN (arXiv 1712.00726).

Inside, classes are 0 .. K-1 and K is the background, which has a score but no box and no mask, as in published checkpoints.
Targets and detections count from 1, as torchvision's.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, generalized_box_iou_loss

from ..layers.norm import LayerNorm2d
from .norms import SyncBatchNorm
from .pooling import RoIPool, mask_targets
from .proposals import BoxCoder, LowQualityMatcher
from .settings import DetectorSettings, StageSettings

Target = Mapping[str, Tensor]


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return SyncBatchNorm(channels)
    return LayerNorm2d(channels, eps=1e-6) if kind == "layer" else nn.Identity()


class ConvNorm(nn.Sequential):
    """3x3 convolution, norm, ReLU; the convolution has a bias where there is no norm."""

    def __init__(self, in_channels: int, channels: int, norm: str) -> None:
        conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=norm == "none")
        super().__init__(OrderedDict(conv=conv, norm=_norm(norm, channels), activation=nn.ReLU()))


class BoxHead(nn.Module):
    """Class logits and box targets of pooled features.

    Args:
        channels: of the features, (n, channels, 7, 7).
        num_classes: K.
        settings: `box_head`, `box_norm`, `hidden`, `class_agnostic`.

    Returns:
        (n, K + 1), the background last, and (n, 1 or K, 4); float32.
    """

    def __init__(self, channels: int, num_classes: int, settings: DetectorSettings) -> None:
        super().__init__()
        convolutions, linears = (0, 2) if settings.box_head == "2fc" else (4, 1)
        self.convs = nn.Sequential(*(ConvNorm(channels, channels, settings.box_norm) for _ in range(convolutions)))
        widths = [channels * 49, *(settings.hidden,) * linears]
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.cls_score = nn.Linear(settings.hidden, num_classes + 1)
        self.box_pred = nn.Linear(settings.hidden, 4 if settings.class_agnostic else 4 * num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.convs(x).flatten(1)
        for fc in self.fcs:
            x = F.relu(fc(x))
        return self.cls_score(x).float(), self.box_pred(x).float().unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """Mask logits (n, K, 28, 28) of pooled features (n, channels, 14, 14), in float32."""

    def __init__(self, channels: int, num_classes: int, norm: str) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(ConvNorm(channels, channels, norm) for _ in range(4)))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(F.relu(self.upsample(self.convs(x)))).float()


@dataclass
class Samples:
    """Boxes (n, 4) of one image that a stage learns from; class and object of each; which of them are the true boxes."""

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    true: Tensor


class RoIHeads(nn.Module):
    """All stages, in place of torchvision's module of the same name.

    Args:
        strides: of the levels; boxes are pooled from the first four.
        channels: of the levels.
        num_classes: K.
        settings: see :class:`DetectorSettings`.

    Attributes:
        score_threshold, nms_threshold, detections_per_image: what is left out in evaluation.
    """

    def __init__(self, strides: Sequence[int], channels: int, num_classes: int, settings: DetectorSettings) -> None:
        super().__init__()
        self.num_classes, self.settings = num_classes, settings
        pooling = (strides[:4], settings.sampling_ratio, settings.aligned)
        self.box_pool, self.mask_pool = RoIPool(7, *pooling), RoIPool(14, *pooling)
        self.box_heads = nn.ModuleList(BoxHead(channels, num_classes, settings) for _ in settings.stages)
        masks = (MaskHead(channels, num_classes, settings.mask_norm) for _ in range(settings.mask_heads))
        self.mask_heads = nn.ModuleList(masks)
        self.coders = [BoxCoder(stage.box_weights, math.log(1000 / 16)) for stage in settings.stages]
        self.matchers = [_proposal_matcher(stage, settings.roi_low_quality) for stage in settings.stages]
        self.sampler = BalancedPositiveNegativeSampler(settings.roi_samples, 0.25)
        self.score_threshold, self.nms_threshold, self.detections_per_image = 0.05, 0.5, 100

    def forward(
        self,
        features: Mapping[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Sequence[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections in evaluation, losses in training; the other is empty. As torchvision's detectors call it."""
        maps = list(features.values())[:4]
        if not self.training:
            return self.detect(maps, proposals, image_shapes), {}
        assert targets is not None
        return [], self.losses(maps, proposals, image_shapes, targets)

    # Training.

    def losses(
        self,
        maps: list[Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """`loss_classifier`, `loss_box_reg` and `loss_mask`; in a cascade one of each per stage, `..._0` and on, weighted."""
        losses: dict[str, Tensor] = {}
        boxes = proposals
        for index, stage in enumerate(self.settings.stages):
            anew = index == 0 or self.settings.resample
            samples = [self.sample(index, *pair, anew) for pair in zip(boxes, targets, strict=True)]
            logits, deltas = self._run_box_head(index, maps, [s.boxes for s in samples])
            classification, regression = self._box_losses(index, logits, deltas, samples, targets)
            found = {"classifier": classification, "box_reg": regression}
            if index < len(self.mask_heads):
                found["mask"] = self._mask_loss(index, maps, samples, targets)
            suffix = f"_{index}" if len(self.settings.stages) > 1 else ""
            losses |= {f"loss_{name}{suffix}": stage.loss_weight * loss for name, loss in found.items()}
            if index + 1 < len(self.settings.stages):
                boxes = self._refined_samples(index, logits, deltas, samples, image_shapes)
        return losses

    @torch.no_grad()
    def sample(self, index: int, boxes: Tensor, target: Target, anew: bool = True) -> Samples:
        """Assigns an image's proposals to its objects; `anew` adds the true boxes, and draws `roi_samples` of all."""
        true, classes = target["boxes"].float(), target["labels"] - 1
        if len(true) and len(boxes):
            objects = self.matchers[index](box_iou(true, boxes))
        else:
            objects = torch.full((len(boxes),), -1, device=boxes.device)
        is_true = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        if anew:
            boxes = torch.cat([boxes, true])
            objects = torch.cat([objects, torch.arange(len(true), device=boxes.device)])
            is_true = F.pad(is_true, (0, len(true)), value=True)
            positive, negative = self.sampler([(objects >= 0).long()])
            kept = torch.where((positive[0] | negative[0]).bool())[0]
            boxes, objects, is_true = boxes[kept], objects[kept], is_true[kept]
        labels = torch.full_like(objects, self.num_classes)
        labels[objects >= 0] = classes[objects[objects >= 0]]
        return Samples(boxes, labels, objects, is_true)

    def _run_box_head(self, index: int, maps: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        pooled = self.box_pool(maps, boxes)
        if self.settings.shared_gradient and self.training:
            share = 1 / len(self.settings.stages)
            pooled = pooled * share + pooled.detach() * (1 - share)
        return self.box_heads[index](pooled)

    def _box_losses(
        self, index: int, logits: Tensor, deltas: Tensor, samples: list[Samples], targets: Sequence[Target]
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy of all samples, and the box loss of those on objects, both over the number of samples."""
        labels = torch.cat([s.labels for s in samples])
        number = max(len(labels), 1)
        classification = F.cross_entropy(logits, labels, reduction="sum") / number
        on_object = labels < self.num_classes
        boxes = torch.cat([s.boxes for s in samples])[on_object]
        true = torch.cat([_rows(t["boxes"].float(), s.objects) for s, t in zip(samples, targets, strict=True)])
        chosen = _of_class(deltas[on_object], labels[on_object])
        coder = self.coders[index]
        if self.settings.box_loss == "giou":
            loss = generalized_box_iou_loss(coder.decode_single(chosen, boxes), true, reduction="sum")
        else:
            goal = coder.encode_single(true, boxes)
            loss = F.smooth_l1_loss(chosen, goal, beta=self.settings.box_beta, reduction="sum")
        return classification, self.settings.box_loss_weight * loss / number

    def _mask_loss(self, index: int, maps: list[Tensor], samples: list[Samples], targets: Sequence[Target]) -> Tensor:
        """Binary cross entropy of the samples on objects, over all their pixels; 0 without any."""
        boxes = [s.boxes[s.objects >= 0] for s in samples]
        logits = self.mask_heads[index](self.mask_pool(maps, boxes))
        labels = torch.cat([s.labels[s.objects >= 0] for s in samples])
        goal = torch.cat(
            [
                mask_targets(t["masks"], b, s.objects[s.objects >= 0], logits.shape[-1], self.settings.binary_masks)
                for t, b, s in zip(targets, boxes, samples, strict=True)
            ]
        )
        chosen = logits[torch.arange(len(labels), device=labels.device), labels]
        return F.binary_cross_entropy_with_logits(chosen, goal, reduction="sum") / max(goal.numel(), 1)

    @torch.no_grad()
    def _refined_samples(
        self,
        index: int,
        logits: Tensor,
        deltas: Tensor,
        samples: list[Samples],
        image_shapes: list[tuple[int, int]],
    ) -> list[Tensor]:
        """The next stage's proposals: the samples' refined boxes, without those that were true boxes if these are added again."""
        labels = torch.cat([s.labels for s in samples])
        labels = torch.where(labels < self.num_classes, labels, logits[:, :-1].argmax(1))
        refined = self._refine(index, deltas, labels, [s.boxes for s in samples], image_shapes)
        if self.settings.resample:
            return [boxes[~s.true] for boxes, s in zip(refined, samples, strict=True)]
        return [boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)] for boxes in refined]

    def _refine(
        self,
        index: int,
        deltas: Tensor,
        labels: Tensor,
        boxes: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[Tensor]:
        """Each box moved as the stage predicts for that class, cut at the image's edges."""
        moved = self.coders[index].decode_single(_of_class(deltas, labels), torch.cat(boxes))
        parts = moved.split([len(b) for b in boxes])
        return [clip_boxes_to_image(part, shape) for part, shape in zip(parts, image_shapes, strict=True)]

    # Evaluation.

    def detect(
        self, maps: list[Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """`boxes` (n, 4), `labels` from 1, `scores`, and `masks` (n, 1, 28, 28), the box's content, of each image."""
        boxes, all_logits = proposals, []
        for index in range(len(self.box_heads)):
            logits, deltas = self._run_box_head(index, maps, boxes)
            all_logits.append(logits)
            if index + 1 < len(self.box_heads):
                boxes = self._refine(index, deltas, logits[:, :-1].argmax(1), boxes, image_shapes)
        scores = self._mean_scores(all_logits)
        moved = self.coders[-1].decode_single(deltas.flatten(1), torch.cat(boxes)).unflatten(1, (-1, 4))
        numbers = [len(b) for b in boxes]
        detections = [
            self._suppress(*entry)
            for entry in zip(moved.split(numbers), scores.split(numbers), image_shapes, strict=True)
        ]
        self._add_masks(maps, detections)
        return detections

    def _mean_scores(self, logits: list[Tensor]) -> Tensor:
        """Probabilities (n, K) over the stages, without the background's."""
        if self.settings.average == "logits":
            return torch.stack(logits).mean(0).softmax(1)[:, :-1]
        return torch.stack([entry.softmax(1) for entry in logits]).mean(0)[:, :-1]

    def _suppress(self, boxes: Tensor, scores: Tensor, image_shape: tuple[int, int]) -> dict[str, Tensor]:
        """The best detections of one image, from boxes (n, 1 or K, 4) and scores (n, K)."""
        boxes = clip_boxes_to_image(boxes, image_shape).expand(-1, self.num_classes, 4)
        proposals, labels = torch.where(scores > self.score_threshold)
        boxes, scores = boxes[proposals, labels], scores[proposals, labels]
        kept = batched_nms(boxes, scores, labels, self.nms_threshold)[: self.detections_per_image]
        return {"boxes": boxes[kept], "labels": labels[kept] + 1, "scores": scores[kept]}

    def _add_masks(self, maps: list[Tensor], detections: list[dict[str, Tensor]]) -> None:
        boxes, labels = [d["boxes"] for d in detections], torch.cat([d["labels"] for d in detections]) - 1
        pooled = self.mask_pool(maps, boxes)
        masks = torch.stack([head(pooled).sigmoid() for head in self.mask_heads]).mean(0)
        chosen = masks[torch.arange(len(labels), device=labels.device), labels][:, None]
        for detection, part in zip(detections, chosen.split([len(b) for b in boxes]), strict=True):
            detection["masks"] = part


def _proposal_matcher(stage: StageSettings, low_quality: bool) -> Matcher:
    if low_quality:
        return LowQualityMatcher(stage.iou, stage.iou, stage.iou)
    return Matcher(stage.iou, stage.iou, allow_low_quality_matches=False)


def _of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """(n, 4) from (n, 1 or K, 4): the row of each label, or the only one."""
    if deltas.shape[1] == 1:
        return deltas[:, 0]
    return deltas[torch.arange(len(labels), device=labels.device), labels]


def _rows(boxes: Tensor, objects: Tensor) -> Tensor:
    return boxes[objects[objects >= 0]]
