"""Region proposals: torchvision's network with what the published detectors do differently."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder as TorchvisionBoxCoder
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from .settings import DetectorSettings

RATIOS = (0.5, 1.0, 2.0)


class Anchors(AnchorGenerator):
    """Anchors centred on every cell of every level; float32 whatever the maps' type.

    torchvision's rounds their corners to pixels, and takes the image size over the map size, rounded down, for their spacing:
    61 instead of 64 on the coarsest level of an image of 800 pixels.

    Args:
        strides: pixels between the cells of each level.
        sides: of a square anchor of each level, in strides.
        ratios: height over width.
        rounded: do as torchvision does.

    Example:
        >>> Anchors((4, 8), sides=(8.0,)).cell_anchors[0][0].tolist()
        [-22.62..., -11.31..., 22.62..., 11.31...]
    """

    def __init__(
        self,
        strides: Sequence[int],
        sides: Sequence[float],
        ratios: Sequence[float] = RATIOS,
        rounded: bool = False,
    ) -> None:
        self.strides = tuple(strides)
        self.rounded = rounded
        sizes = tuple(tuple(side * stride for side in sides) for stride in strides)
        super().__init__(sizes, (tuple(ratios),) * len(sizes))

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008  torchvision's signature
    ) -> Tensor:
        """Corners (sizes * ratios, 4) of one cell's anchors around zero."""
        if self.rounded:
            return super().generate_anchors(scales, aspect_ratios, dtype, device)
        sides = torch.as_tensor(scales, dtype=dtype, device=device)
        heights = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        w, h = (sides / heights[:, None]).flatten(), (sides * heights[:, None]).flatten()
        return torch.stack([-w, -h, w, h], dim=1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors (positions * anchors per position, 4) for each image, all levels one after the other."""
        if self.rounded:
            return super().forward(image_list, [entry.float() for entry in feature_maps])
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        grids = [list(entry.shape[-2:]) for entry in feature_maps]
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors] * len(image_list.image_sizes)


class BoxCoder(TorchvisionBoxCoder):
    """torchvision's, in float32, with a bound on how much a box may shrink as well as on how much it may grow.

    A factor of 1000 / 16 either way.
    """

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (n, 4 m) from targets (n, 4 m) and the boxes (n, 4) that they belong to."""
        lowest = [-math.inf, -math.inf, *(-self.bbox_xform_clip * weight for weight in self.weights[2:])]
        codes = rel_codes.float()
        floor = codes.new_tensor(lowest).repeat(codes.shape[1] // 4)
        return super().decode_single(codes.maximum(floor), boxes)


class LowQualityMatcher(Matcher):
    """mmdetection's assignment: objects also take the boxes that overlap them most.

    Args:
        high, low: a box with at least `high` overlap belongs to the object that it overlaps most, one below `low` to none; those
            between are left out.
        least: an object also takes the boxes that overlap it most of all, from this overlap on, even if they overlap another
            more. torchvision has no least overlap, and leaves such boxes to the object that they overlap most.

    Example:
        >>> overlaps = torch.tensor([[0.8, 0.4, 0.0], [0.7, 0.1, 0.2]])  # 2 objects, 3 boxes
        >>> LowQualityMatcher(0.7, 0.3, least=0.3)(overlaps).tolist()
        [1, -2, -1]
    """

    def __init__(self, high: float, low: float, least: float) -> None:
        super().__init__(high, low, allow_low_quality_matches=False)
        self.least = least

    def __call__(self, match_quality_matrix: Tensor) -> Tensor:
        """Object of each box, -1 for none, -2 for left out, from overlaps (objects, boxes)."""
        matches = super().__call__(match_quality_matrix)
        best = match_quality_matrix.amax(1, keepdim=True)
        taken = (match_quality_matrix == best) & (best >= self.least) & (best > 0)
        order = torch.arange(1, len(best) + 1, device=matches.device)[:, None]
        last = (taken * order).amax(0)
        return torch.where(last > 0, last - 1, matches)


def anchor_matcher(high: float, low: float, least: float | None) -> Matcher:
    """The assignment of anchors to objects; `least` None for torchvision's."""
    if least is None:
        return Matcher(high, low, allow_low_quality_matches=True)
    return LowQualityMatcher(high, low, least)


class ProposalHead(RPNHead):
    """torchvision's; what it predicts is float32, since boxes in half precision would be pixels off."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness and box targets of each level."""
        logits, deltas = super().forward(x)
        return [entry.float() for entry in logits], [entry.float() for entry in deltas]


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's region proposal network with published settings.

    Args:
        strides: of the levels.
        channels: of the levels.
        settings: the fields that start with `rpn_` or `proposals_`, `anchor_scale` and `round_anchors`.
    """

    def __init__(self, strides: Sequence[int], channels: int, settings: DetectorSettings) -> None:
        anchors = Anchors(strides, sides=(settings.anchor_scale,), rounded=settings.round_anchors)
        (train_before, train_after), (test_before, test_after) = settings.proposals_train, settings.proposals_test
        super().__init__(
            anchors,
            ProposalHead(channels, len(RATIOS), conv_depth=settings.rpn_convs),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=settings.rpn_samples,
            positive_fraction=0.5,
            pre_nms_top_n={"training": train_before, "testing": test_before},
            post_nms_top_n={"training": train_after, "testing": test_after},
            nms_thresh=0.7,
        )
        self.proposal_matcher = anchor_matcher(0.7, 0.3, settings.rpn_low_quality_iou)
        self.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0), math.log(1000 / 16))
        self.beta = settings.rpn_beta
        self.inside_only = settings.rpn_inside_only

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals (n, 4) of each image, the best first; and the losses in training."""
        if targets is not None and self.inside_only:
            sizes = images.image_sizes
            targets = [{**t, "size": torch.tensor(size)} for t, size in zip(targets, sizes, strict=True)]
        return super().forward(images, features, targets)

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """1 for each anchor on an object, 0 off objects, -1 for left out; and its object's box."""
        if not self.inside_only:
            return super().assign_targets_to_anchors(anchors, targets)
        labels, matched = [], []
        for boxes, target in zip(anchors, targets, strict=True):
            H, W = target["size"].tolist()
            inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2] < W) & (boxes[:, 3] < H)
            label, match = boxes.new_full((len(boxes),), -1.0), boxes.clone()
            if inside.any():
                found = super().assign_targets_to_anchors([boxes[inside]], [target])
                label[inside], match[inside] = found[0][0], found[1][0]
            labels.append(label)
            matched.append(match)
        return labels, matched

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Binary cross entropy of the sampled anchors, and smooth L1 of those on objects, both over all that were sampled."""
        positive, negative = (torch.cat(masks).bool() for masks in self.fg_bg_sampler(labels))
        sampled = positive | negative
        number = max(int(sampled.sum()), 1)
        box_loss = F.smooth_l1_loss(
            pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], beta=self.beta, reduction="sum"
        )
        objectness_loss = F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], torch.cat(labels)[sampled], reduction="sum"
        )
        return objectness_loss / number, box_loss / number
