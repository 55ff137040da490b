"""The settings of a training run: typed, from YAML files and `key=value` pairs, saved beside the run."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

# Settings that say where and how fast, and don't change what comes out.
FREE_TO_CHANGE = frozenset({"out", "workers", "checkpoint_minutes", "max_unreadable", "max_skipped"})
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}  # ours: Lightning's


def _setting(default: Any, help: str) -> Any:
    """A field with the sentence that `--help` shows."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of `visionssm train`. `None` means: chosen from the data and the model, see `with_defaults`.

    Example:
        >>> TrainConfig(epochs=10).batch_size
        64
        >>> TrainConfig(lr=-1)
        Traceback (most recent call last):
        ...
        ValueError: lr=-1: must be above 0
    """

    model: str = _setting("vmamba_nano", "a model of `visionssm list`, or any timm model")
    model_kwargs: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "further arguments of the model, such as {drop_path_rate: 0.1}"}
    )
    pretrained: bool = _setting(False, "start from the published weights")
    checkpoint: str | None = _setting(None, "start from the weights in this file")

    data: str = _setting("digits", "'digits' (scikit-learn's, embedded), or a folder with one sub-folder per class")
    val_share: float = _setting(0.2, "share of each class held back for validation, if the folder has no val/")
    split_seed: int = _setting(0, "chooses the images that are held back")
    img_size: tuple[int, int] | None = _setting(None, "[height, width] of the input; default: the model's")
    in_chans: int | None = _setting(None, "channels of the input, 1 or 3; default: the model's")
    workers: int | None = _setting(None, "processes that load images; default: 0 for digits, else up to 8")
    max_unreadable: float = _setting(0.05, "stop when more than this share of the images can't be read")

    out: str | None = _setting(None, "folder of the run; default: runs/DATA-MODEL")
    epochs: int | None = _setting(None, "passes over the training images")
    batch_size: int = _setting(64, "images per step and process")
    accumulate: int = _setting(1, "batches whose gradients are added before a step")
    seed: int = _setting(0, "chooses initial weights, order and augmentation")
    device: str = _setting("auto", "auto, cpu, cuda or mps")
    threads: int | None = _setting(None, "CPU threads; default: 1 for digits, which don't gain from more, else torch's")
    precision: str = _setting("float32", "float32, bfloat16 or float16 (mixed: weights stay float32)")
    checkpoint_minutes: float = _setting(10.0, "save last.ckpt at least this often, besides every epoch")
    checkpoint_steps: int | None = _setting(None, "save last.ckpt every so many batches")

    optimizer: str = _setting("adamw", "an optimizer of timm, such as adamw or lamb")
    lr: float | None = _setting(None, "highest learning rate")
    min_lr: float = _setting(1e-5, "learning rate at the end of the cosine")
    warmup_epochs: float | None = _setting(None, "epochs of linear warm-up; default: a tenth")
    weight_decay: float = _setting(0.05, "not applied to 1-D parameters and those the model exempts")
    layer_decay: float | None = _setting(None, "factor of the learning rate from each layer to the one below")
    clip_grad: float | None = _setting(1.0, "longest gradient norm; null: not clipped")
    max_skipped: int = _setting(10, "stop after so many steps in a row with a loss or gradient that isn't finite")
    ema_decay: float | None = _setting(None, "average the weights with this decay, such as 0.9998; 0: off")
    ema_warmup: bool = _setting(True, "shorter average in the first steps")

    scale: tuple[float, float] | None = _setting(None, "share of the image that a random crop covers")
    ratio: tuple[float, float] = _setting((0.75, 4 / 3), "width over height of a random crop")
    hflip: float | None = _setting(None, "probability of a horizontal flip")
    color_jitter: float = _setting(0.4, "strength of colour changes (colour models without auto_augment)")
    auto_augment: str | None = _setting(None, "a policy of timm, such as rand-m9-mstd0.5-inc1")
    random_erasing: float = _setting(0.0, "probability that a rectangle is erased")
    mixup: float = _setting(0.0, "alpha of mixup; 0: off")
    cutmix: float = _setting(0.0, "alpha of cutmix; 0: off")
    label_smoothing: float = _setting(0.1, "probability that is spread over all classes")

    def __post_init__(self) -> None:
        _check_ranges(self)

    @classmethod
    def from_sources(cls, file: str | Path | None = None, pairs: Iterable[tuple[str, str]] = ()) -> "TrainConfig":
        """Defaults, overwritten by a YAML file, overwritten by pairs of a name and the text of a value.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file isn't a YAML mapping, a name is unknown (the message gives the near match), or a value
                has the wrong type or is out of range.

        Example:
            >>> TrainConfig.from_sources(pairs=[("epochs", "3"), ("img_size", "[64, 96]")]).img_size
            (64, 96)
            >>> TrainConfig.from_sources(pairs=[("epoch", "3")])
            Traceback (most recent call last):
            ...
            ValueError: there is no setting 'epoch'; did you mean 'epochs'?
        """
        values: dict[str, Any] = {}
        if file is not None:
            for name, value in read_yaml(file).items():
                values[name] = _typed_value(str(name), value)
        for name, text in pairs:
            values[name] = _typed_value(name, text)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only: what goes into YAML and into checkpoints."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def to_yaml(self) -> str:
        """The configuration as a YAML file that `from_sources` reads."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def with_defaults(config: TrainConfig) -> TrainConfig:
    """Fill what was left open, from the data and from whether training starts from trained weights.

    Digits are never mirrored and only slightly cropped, for a mirrored or cut digit is another one.

    Example:
        >>> with_defaults(TrainConfig(data="digits")).hflip, with_defaults(TrainConfig(data="photos")).hflip
        (0.0, 0.5)
    """
    digits = config.data == "digits"
    fine_tuning = config.pretrained or config.checkpoint is not None
    epochs = config.epochs if config.epochs is not None else 32
    chosen: dict[str, Any] = {
        "epochs": epochs,
        "lr": 2e-4 if fine_tuning else 3e-3 if digits else 1e-3,
        "ema_decay": 0.99 if digits else 0.0,
        "warmup_epochs": epochs / 10,
        "scale": (0.7, 1.0) if digits else (0.35, 1.0) if fine_tuning else (0.08, 1.0),
        "hflip": 0.0 if digits else 0.5,
        "threads": 1 if digits else None,
        "out": f"runs/{'digits' if digits else Path(config.data).resolve().name}-{config.model.replace('/', '_')}",
    }
    return replace(config, **{name: value for name, value in chosen.items() if getattr(config, name) is None})


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two configurations in a way that changes the result, as `name: old -> new`."""
    names = [name for name in {**before, **after} if name not in FREE_TO_CHANGE]
    changed = [name for name in names if before.get(name) != after.get(name)]
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in changed]


def read_yaml(file: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it isn't YAML, or isn't a mapping.
    """
    import yaml

    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} isn't a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold lines of the form `name: value`, but holds {type(content).__name__}")
    return content


def _typed_value(name: str, value: Any) -> Any:
    """Check one value against the type of its field; text is read as YAML, so that "1e-3" and "[32, 32]" work."""
    import argparse

    import jsonargparse

    types = {setting.name: setting.type for setting in fields(TrainConfig)}
    if name not in types:
        near = difflib.get_close_matches(name, types, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "`visionssm train --help` lists them all"
        raise ValueError(f"there is no setting '{name}'; {hint}")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig)
    try:
        parsed = (
            parser.parse_args([f"--{name}={value}"]) if isinstance(value, str) else parser.parse_object({name: value})
        )
    except argparse.ArgumentError as error:
        raise ValueError(f"{name}={value}: expected {_type_name(types[name])}") from error
    return tuple(parsed[name]) if isinstance(parsed[name], list) else parsed[name]


def _type_name(annotation: Any) -> str:
    return getattr(annotation, "__name__", str(annotation)) if isinstance(annotation, type) else str(annotation)


def _check_ranges(config: TrainConfig) -> None:
    """ValueError for a number that can't be meant."""
    above_zero = (
        "epochs",
        "batch_size",
        "accumulate",
        "lr",
        "checkpoint_minutes",
        "checkpoint_steps",
        "max_skipped",
        "threads",
    )
    at_least_zero = ("workers", "min_lr", "warmup_epochs", "weight_decay", "mixup", "cutmix", "color_jitter", "seed")
    shares = ("max_unreadable", "hflip", "random_erasing", "ema_decay", "layer_decay", "label_smoothing")
    for names, holds, rule in (
        (above_zero, lambda value: value > 0, "must be above 0"),
        (at_least_zero, lambda value: value >= 0, "must not be negative"),
        (shares, lambda value: 0 <= value <= 1, "must lie between 0 and 1"),
        (("scale", "ratio", "img_size"), lambda pair: pair[0] > 0 and pair[1] > 0, "both numbers must be above 0"),
        (("scale", "ratio"), lambda pair: pair[0] <= pair[1], "the first number is the smaller one"),
        (("device",), lambda name: name in ("auto", "cpu", "cuda", "mps"), "must be auto, cpu, cuda or mps"),
        (("precision",), lambda name: name in PRECISIONS, f"must be one of {', '.join(PRECISIONS)}"),
        (("clip_grad",), lambda value: value > 0, "must be above 0; null: not clipped"),
    ):
        for name in names:
            value = getattr(config, name)
            if value is not None and not holds(value):
                raise ValueError(f"{name}={value}: {rule}")
    if config.lr is not None and config.lr < config.min_lr:
        raise ValueError(
            f"lr={config.lr}: below min_lr={config.min_lr}, where the schedule is to end; lower min_lr too"
        )
    if (config.mixup or config.cutmix) and config.batch_size % 2:
        raise ValueError(f"batch_size={config.batch_size}: mixup and cutmix need an even number")
    if config.pretrained and config.checkpoint:
        raise ValueError("pretrained and checkpoint: both name weights to start from; give one")
