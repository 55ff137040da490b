"""What published detectors differ in, by name: one field for each difference, one preset for each published set-up."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from .._messages import choose


@dataclass(frozen=True)
class StageSettings:
    """One box head of a cascade.

    Args:
        iou: a proposal with this overlap or more belongs to an object.
        box_weights: factors of (x, y, width, height) in the regression targets.
        loss_weight: of the stage.
    """

    iou: float = 0.5
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    loss_weight: float = 1.0


@dataclass(frozen=True)
class DetectorSettings:
    """Everything that presets of Mask R-CNN and Cascade Mask R-CNN differ in. The defaults are mmdetection's Mask R-CNN, which
    the papers of VMamba, LocalMamba, GroupMamba, EfficientVMamba and SiMBA train as Swin did.

    Args:
        channels: of the pyramid and the heads' convolutions.
        hidden: width of the box heads' linear layers.
        rpn_samples, roi_samples: anchors and proposals per image that the losses are over; at most half of the anchors and a
            quarter of the proposals lie on objects.
        anchor_scale: side of the anchors of each level, in its strides.
        round_anchors: anchors' corners are rounded to pixels, and their spacing is the image size over the map size, rounded
            down, as in torchvision; otherwise exact corners, and the level's stride.
        rpn_convs: 3x3 convolutions of the proposal head.
        rpn_beta: where smooth L1 of the proposals' boxes turns linear; 0 is L1.
        rpn_inside_only: the proposals' losses leave anchors out that reach beyond the image.
        rpn_low_quality_iou: an object takes the anchors that overlap it most even below 0.7, if by this much; None for
            torchvision's rule, which has no least overlap and leaves such anchors to the object that they overlap most.
        proposals_train, proposals_test: kept per level before suppression, and per image after it.
        aligned: RoIAlign samples half a pixel up and left, and boxes smaller than a cell stay small.
        sampling_ratio: samples per side of a cell; 0 for as many as the cell has pixels.
        roi_low_quality: the rule of rpn_low_quality_iou for proposals, from the stage's IoU on.
        stages: the box heads; one for Mask R-CNN.
        box_head: "2fc", two linear layers; or "4conv1fc", four convolutions and a linear layer.
        box_norm, mask_norm: after the convolutions of the heads: "none", "batch" (synchronised) or "layer".
        class_agnostic: one box per proposal instead of one per class.
        box_loss: "smooth_l1" on the regression targets, or "giou" on decoded boxes.
        box_beta: as rpn_beta, for the box heads.
        box_loss_weight: factor of the box loss.
        resample: later stages add the true boxes to the refined ones and sample anew; otherwise they take all of them.
        shared_gradient: each stage passes its share of the gradient, one over the number of stages, to the features.
        average: over the stages in evaluation: "logits" or "probabilities".
        mask_heads: 1, on the first stage's samples; or one per stage, whose masks are averaged.
        binary_masks: mask targets are cut out of the true masks exactly, and are 0 or 1; otherwise grey, as in torchvision.
        init: starting values: "mmdetection", "detectron2" or "torchvision".
    """

    channels: int = 256
    hidden: int = 1024
    rpn_samples: int = 256
    roi_samples: int = 512
    anchor_scale: float = 8.0
    round_anchors: bool = False
    rpn_convs: int = 1
    rpn_beta: float = 0.0
    rpn_inside_only: bool = False
    rpn_low_quality_iou: float | None = 0.3
    proposals_train: tuple[int, int] = (2000, 1000)
    proposals_test: tuple[int, int] = (1000, 1000)
    aligned: bool = True
    sampling_ratio: int = 0
    roi_low_quality: bool = True
    stages: tuple[StageSettings, ...] = (StageSettings(),)
    box_head: str = "2fc"
    box_norm: str = "none"
    mask_norm: str = "none"
    class_agnostic: bool = False
    box_loss: str = "smooth_l1"
    box_beta: float = 0.0
    box_loss_weight: float = 1.0
    resample: bool = True
    shared_gradient: bool = False
    average: str = "logits"
    mask_heads: int = 1
    binary_masks: bool = True
    init: str = "mmdetection"

    def __post_init__(self) -> None:
        choose("box_head", self.box_head, ("2fc", "4conv1fc"))
        choose("box_norm", self.box_norm, ("none", "batch", "layer"))
        choose("mask_norm", self.mask_norm, ("none", "batch", "layer"))
        choose("box_loss", self.box_loss, ("smooth_l1", "giou"))
        choose("average", self.average, ("logits", "probabilities"))
        choose("init", self.init, ("mmdetection", "detectron2", "torchvision"))
        if self.mask_heads not in (1, len(self.stages)):
            raise ValueError(f"mask_heads: got {self.mask_heads}, need 1 or one for each of {len(self.stages)} stages")


def _three_stages(loss_weights: tuple[float, float, float]) -> tuple[StageSettings, ...]:
    scales = ((10.0, 5.0), (20.0, 10.0), (30.0, 15.0))
    return tuple(
        StageSettings(iou, (place, place, size, size), weight)
        for iou, (place, size), weight in zip((0.5, 0.6, 0.7), scales, loss_weights, strict=True)
    )


# mmdetection's cascade gives the targets' deviations, of which torchvision's weights are the inverse.
_DEVIATIONS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
_MMDETECTION_STAGES = tuple(
    StageSettings(iou, (1 / x, 1 / y, 1 / w, 1 / h), weight)
    for iou, (x, y, w, h), weight in zip((0.5, 0.6, 0.7), _DEVIATIONS, (1.0, 0.5, 0.25), strict=True)
)

MASK_RCNN = {
    "mmdetection": DetectorSettings(),
    "torchvision": DetectorSettings(
        round_anchors=True,
        rpn_beta=1 / 9,
        rpn_low_quality_iou=None,
        proposals_train=(2000, 2000),
        aligned=False,
        sampling_ratio=2,
        roi_low_quality=False,
        box_beta=1 / 9,
        binary_masks=False,
        init="torchvision",
    ),
}

_CASCADE = DetectorSettings(
    rpn_beta=1 / 9,
    rpn_inside_only=True,
    proposals_train=(2000, 2000),
    roi_low_quality=False,
    stages=_MMDETECTION_STAGES,
    mask_heads=3,
)
CASCADE_MASK_RCNN = {
    "mmdetection": replace(_CASCADE, class_agnostic=True, box_beta=1.0),
    "mambavision": replace(_CASCADE, box_head="4conv1fc", box_norm="batch", box_loss="giou", box_loss_weight=10.0),
    "vim": DetectorSettings(
        rpn_convs=2,
        rpn_low_quality_iou=0.0,
        roi_low_quality=False,
        stages=_three_stages((1.0, 1.0, 1.0)),
        box_head="4conv1fc",
        box_norm="layer",
        mask_norm="layer",
        class_agnostic=True,
        resample=False,
        shared_gradient=True,
        average="probabilities",
        init="detectron2",
    ),
}


def detector_settings(
    presets: Mapping[str, DetectorSettings], preset: str, changes: Mapping[str, Any] | None
) -> DetectorSettings:
    """The preset of that name, with some fields changed.

    Args:
        presets: MASK_RCNN or CASCADE_MASK_RCNN.
        preset: one of its names.
        changes: fields of :class:`DetectorSettings`; stages may be dictionaries, and lists stand for tuples.

    Raises:
        ValueError: an unknown preset, field or value.

    Example:
        >>> detector_settings(MASK_RCNN, "mmdetection", {"box_beta": 0.5}).box_beta
        0.5
    """
    settings: DetectorSettings = choose("preset", preset, presets)
    known = [field.name for field in fields(settings)]
    values: dict[str, Any] = {}
    for name, value in (changes or {}).items():
        choose("settings", name, known)
        if name == "stages":
            value = tuple(stage if isinstance(stage, StageSettings) else _stage(stage) for stage in value)
        values[name] = tuple(value) if isinstance(value, list) else value
    return replace(settings, **values)


def published_cascade(backbone: str) -> str:
    """Which of CASCADE_MASK_RCNN a backbone was published with, by the backbone's name.

    Example:
        >>> published_cascade("local_vim_tiny"), published_cascade("mambavision_tiny")
        ('vim', 'mambavision')
    """
    return "vim" if backbone.startswith(("vim_", "local_vim_")) else "mambavision"


def _stage(values: Mapping[str, Any]) -> StageSettings:
    options: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
    return StageSettings(**options)
