"""The settings of `visionssm train` for classification, beside those that every task has."""

from dataclasses import dataclass
from typing import ClassVar, Self

from visionssm.tasks.config import ABOVE_ZERO, NOT_NEGATIVE, RANGE, SHARE, SIZE, TrainConfig, one_of, setting

KINDS = ("none", "hard", "soft")  # of distillation


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(TrainConfig):
    """All settings of a classifier's training.

    Example:
        >>> ClassificationConfig.from_sources(pairs=[("img_size", "[64, 96]")]).img_size
        (64, 96)
        >>> ClassificationConfig(hflip=2)
        Traceback (most recent call last):
        ...
        ValueError: hflip=2: must lie between 0 and 1
    """

    task: ClassVar[str] = "classification"

    data: str = setting(
        "digits", "digits (scikit-learn's, embedded), a folder with one sub-folder per class, a .tar of one, webdataset shards, "
        "a saved Hugging Face data set, or a .csv"
    )  # fmt: skip
    val_share: float = setting(0.2, "share of each class held back for validation, if the data has no such part")
    split_seed: int = setting(0, "chooses the images that are held back")
    img_size: tuple[int, int] | None = setting(None, "[height, width] of the input; default: the model's", SIZE)
    weights_of: str | None = setting(None, "the model that pretrained or checkpoint has weights of; default: model")
    in_chans: int | None = setting(None, "channels of the input, 1 or 3; default: the model's")

    scale: tuple[float, float] | None = setting(None, "share of the image that a random crop covers", RANGE)
    ratio: tuple[float, float] = setting((0.75, 4 / 3), "width over height of a random crop", RANGE)
    hflip: float | None = setting(None, "probability of a horizontal flip", SHARE)
    color_jitter: float = setting(0.4, "strength of colour changes (colour models without auto_augment)", NOT_NEGATIVE)
    auto_augment: str | None = setting(None, "a policy of timm, such as rand-m9-mstd0.5-inc1")
    random_erasing: float = setting(0.0, "probability that a rectangle is erased", SHARE)
    mixup: float = setting(0.0, "alpha of mixup; 0: off", NOT_NEGATIVE)
    cutmix: float = setting(0.0, "alpha of cutmix; 0: off", NOT_NEGATIVE)
    label_smoothing: float = setting(0.1, "probability that is spread over all classes", SHARE)
    interpolation: str | None = setting(
        None,
        "of random crops: bicubic, bilinear, or random for either; default: the model's",
        one_of("bicubic", "bilinear", "random"),
    )
    repeated_augmentation: int = setting(
        1, "versions of every image in an epoch, of as many times fewer images", ABOVE_ZERO
    )

    distillation: str = setting(
        "none", "learn from a teacher: none, hard (its classes) or soft (its shares)", one_of(*KINDS)
    )
    distillation_alpha: float = setting(
        0.5, "weight of the teacher's part of the loss; the labels have the rest", SHARE
    )
    distillation_temperature: float = setting(1.0, "of soft distillation", ABOVE_ZERO)
    teacher: str = setting("regnety_160.deit_in1k", "a model of timm or of `visionssm list`, with published weights")
    teacher_checkpoint: str | None = setting(None, "the teacher's weights in a file, or the folder of its run")
    mesa: float = setting(0.0, "weight of self-distillation from the averaged weights (MESA); 0: off", NOT_NEGATIVE)
    mesa_start: float = setting(0.25, "share of the schedule before MESA begins", SHARE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f"batch_size={self.batch_size}: mixup and cutmix need an even number")
        if self.mesa and self.ema_decay == 0:
            raise ValueError(f"mesa={self.mesa}: needs averaged weights; set ema_decay, such as 0.9998")

    def with_defaults(self) -> Self:
        """Fill what was left open, from the data and from whether training starts from trained weights.

        Digits are never mirrored and only slightly cropped, for a mirrored or cut digit is another one.

        Example:
            >>> ClassificationConfig().with_defaults().hflip, ClassificationConfig(data="photos").with_defaults().hflip
            (0.0, 0.5)
        """
        from visionssm.data.source import data_name

        digits = self.data == "digits"
        fine_tuning = self.pretrained or self.checkpoint is not None
        filled = self.filled(
            lr=2e-4 if fine_tuning else 3e-3 if digits else 1e-3,
            ema_decay=0.99 if digits else 0.9998 if self.mesa else 0.0,
            scale=(0.7, 1.0) if digits else (0.35, 1.0) if fine_tuning else (0.08, 1.0),
            hflip=0.0 if digits else 0.5,
            threads=1 if digits else None,
            out=f"runs/{data_name(self.data)}-{self.model.replace('/', '_')}",
        )
        return super(ClassificationConfig, filled).with_defaults()
