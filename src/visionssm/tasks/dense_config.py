"""The settings of `visionssm train` for detection and segmentation, beside those that every task has."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import timm

from visionssm.data.scenes import scene_size
from visionssm.tasks.config import ABOVE_ZERO, NOT_NEGATIVE, RANGE, SHARE, SIZE, TrainConfig, one_of, setting

SCHEDULES = ("cosine", "linear", "steps")
RESIZES = ("fixed", "multiscale", "lsj", "none")
# Scenes of digits are small, and so is what finds them: trained in minutes on two cores.
SCENE_DETECTOR = {
    "channels": 48, "hidden": 128, "anchor_scale": 4.0, "rpn_samples": 64, "roi_samples": 32,
    "proposals_train": [200, 100], "proposals_test": [200, 60],
}  # fmt: skip
SCENE_SEGMENTER = {"channels": 64, "auxiliary_channels": 32, "pool_scales": [1, 2], "dropout": 0.0}


@dataclass(frozen=True, kw_only=True)
class DenseConfig(TrainConfig):
    """What detection and segmentation share."""

    data: str = setting("scenes", "a folder in the task's layout, or one that `visionssm data make-scenes` has written")
    pretrained: bool | None = setting(  # type: ignore[assignment]
        None, "start from the published weights; default: for scenes, where the model's are part of this package"
    )
    batch_size: int = setting(8, "images per batch and process", ABOVE_ZERO)
    head_kwargs: dict[str, Any] = setting(dict, "further arguments of the head, such as {channels: 256}")  # noqa: RUF009
    epoch_batches: int | None = setting(
        None, "batches of an epoch, taken from an endless stream of images; default: every image once", ABOVE_ZERO
    )
    hflip: float | None = setting(None, "probability of a horizontal flip; default: 0 for scenes, else 0.5", SHARE)

    optimizer: str | None = setting(  # type: ignore[assignment]
        None, "an optimizer of timm, such as adamw or lamb; default: nmuon for segmenters of scenes, else adamw"
    )
    schedule: str = setting("cosine", f"of the learning rate: {', '.join(SCHEDULES)}", one_of(*SCHEDULES))
    milestones: tuple[float, ...] = setting((), "steps: epochs after which the learning rate is a tenth of what it was")
    warmup_steps: int | None = setting(None, "steps of linear warm-up, instead of warmup_epochs", NOT_NEGATIVE)
    no_decay: tuple[str, ...] | None = setting(
        None,
        "parameters without weight decay, by parts of their published names; default: vectors, biases, and as decay_rule says",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.schedule == "steps") != bool(self.milestones):
            raise ValueError(
                f"schedule={self.schedule}, milestones={list(self.milestones)}: steps needs milestones, others none"
            )

    def with_defaults(self) -> Self:
        """Fill what was left open. Digits aren't mirrored, and a model this small is quicker on one thread."""
        scenes = scene_size(self.data) is not None
        filled = self.filled(
            pretrained=scenes and self.checkpoint is None and not self.model_kwargs and _brings_weights(self.model),
            hflip=0.0 if scenes else 0.5,
            optimizer="adamw",
            lr=2e-3 if scenes else 1e-4,
            ema_decay=0.0,
            out=f"runs/{Path(self.data).expanduser().resolve().name}-{self.task}-{self.model.replace('/', '_')}",
        )
        return super(DenseConfig, filled).with_defaults()


def _brings_weights(model: str) -> bool:
    """Whether a model's weights are a file of this package, so that nothing is fetched."""
    import visionssm.models  # noqa: F401  # registers the models

    cfg = timm.models.get_pretrained_cfg(model, allow_unregistered=True)
    return cfg is not None and bool(cfg.file)


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(DenseConfig):
    """All settings of a detector's training.

    Example:
        >>> DetectionConfig(resize="lsj").with_defaults().epochs
        12
        >>> DetectionConfig(schedule="steps")
        Traceback (most recent call last):
        ...
        ValueError: schedule=steps, milestones=[]: steps needs milestones, others none
    """

    task: ClassVar[str] = "detection"

    head: str = setting(
        "mask_rcnn", "mask_rcnn, cascade_mask_rcnn or retinanet", one_of("mask_rcnn", "cascade_mask_rcnn", "retinanet")
    )
    preset: str | None = setting(None, "settings of the head, by the name of a published set; default: the backbone's")
    keep_empty: bool = setting(False, "train on images without objects too")
    resize: str | None = setting(
        None, f"in training: {', '.join(RESIZES)}; default: none for scenes, else fixed", one_of(*RESIZES)
    )
    short_sides: tuple[int, ...] = setting(
        (800,), "in training: pixels of the shorter side, one of these, drawn for each image"
    )
    long_side: int = setting(1333, "in training: most pixels of the longer side", ABOVE_ZERO)
    crop_size: int = setting(1024, "lsj: side of the square that comes out", ABOVE_ZERO)
    scale: tuple[float, float] = setting((0.1, 2.0), "lsj: smallest and largest factor", RANGE)
    test_size: tuple[int, int] | None = setting(
        None,
        "in evaluation: pixels of the shorter and most of the longer side; default: as they come for scenes, else [800, 1333]",
        SIZE,
    )
    size_divisible: int = setting(32, "batches are padded to multiples of this", ABOVE_ZERO)

    def with_defaults(self) -> Self:
        """Fill what was left open: small heads and images as they come for scenes, the published sizes for others."""
        filled = self.filled(epochs=12)
        if scene_size(self.data) is None:
            filled = filled.filled(resize="fixed", test_size=(800, 1333))
        else:
            filled = filled.filled(resize="none")
            if self.head != "retinanet":
                filled = filled.filled(preset="mmdetection")
            small = {"channels": 48} if self.head == "retinanet" else {"settings": SCENE_DETECTOR}
            filled = replace(filled, head_kwargs=filled.head_kwargs or small)
        return super(DetectionConfig, filled).with_defaults()


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(DenseConfig):
    """All settings of a segmenter's training.

    Example:
        >>> SegmentationConfig.from_sources(pairs=[("crop_size", "[512, 512]")]).with_defaults().short_side
        512
    """

    task: ClassVar[str] = "segmentation"

    crop_size: tuple[int, int] | None = setting(
        None, "in training: height and width; default: the scenes' size, else 512", SIZE
    )
    resize: bool | None = setting(None, "in training: scale by a random factor; default: not for scenes")
    test_resize: bool | None = setting(
        None, "in evaluation: scale to short_side and long_side; default: not for scenes"
    )
    short_side: int = setting(512, "pixels of the shorter side, before the factor and in evaluation", ABOVE_ZERO)
    long_side: int = setting(2048, "most pixels of the longer side, before the factor and in evaluation", ABOVE_ZERO)
    scale: tuple[float, float] = setting((0.5, 2.0), "in training: smallest and largest factor", RANGE)
    largest_share: float = setting(0.75, "of a crop's labelled pixels that one class may cover", SHARE)
    class_shares: bool | None = setting(
        None,
        "start the classifiers at the classes' shares of the training pixels; default: for scenes, without checkpoint",
    )
    photometric: bool | None = setting(
        None, "in training: change brightness, contrast, saturation and hue; default: not for scenes"
    )
    window: int | None = setting(None, "in evaluation: side of a sliding window; default: the whole image", ABOVE_ZERO)
    stride: int | None = setting(
        None, "in evaluation: pixels from one window to the next; default: two thirds of it", ABOVE_ZERO
    )

    def with_defaults(self) -> Self:
        """Fill what was left open: small heads and whole scenes, the published sizes for others."""
        size = scene_size(self.data)
        if size is None:
            filled = self.filled(crop_size=(512, 512), resize=True, test_resize=True, photometric=True, epochs=12)
            filled = filled.filled(class_shares=False)
        else:
            filled = self.filled(crop_size=(size, size), resize=False, test_resize=False, epochs=12)
            filled = filled.filled(class_shares=self.checkpoint is None, photometric=False, optimizer="nmuon")
            filled = filled.filled(lr=2e-2 if filled.optimizer == "nmuon" else 4e-3)
            filled = replace(filled, head_kwargs=filled.head_kwargs or SCENE_SEGMENTER)
        return super(SegmentationConfig, filled).with_defaults()
