"""The settings that every training run has, whatever its task: typed, from YAML files and `key=value` pairs.

Each task adds its own in a subclass of `TrainConfig`.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from visionssm._messages import near_matches
from visionssm.recipes import recipe_file

# Settings that say where and how fast, and don't change what comes out.
FREE_TO_CHANGE = frozenset(
    {"out", "workers", "checkpoint_minutes", "max_unreadable", "max_skipped", "log_steps", "grad_checkpointing"}
)
DECAY_RULES = ("model", "published")
LR_SCALINGS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}  # exponent of the ratio of the batches
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}  # ours: Lightning's

Rule = tuple[Callable[[Any], bool], str]
ABOVE_ZERO: Rule = (lambda value: value > 0, "must be above 0")
NOT_NEGATIVE: Rule = (lambda value: value >= 0, "must not be negative")
SHARE: Rule = (lambda value: 0 <= value <= 1, "must lie between 0 and 1")
SIZE: Rule = (lambda pair: min(pair) > 0, "both numbers must be above 0")
RANGE: Rule = (
    lambda pair: 0 < pair[0] <= pair[1],
    "both numbers must be above 0, and the first number is the smaller one",
)


def one_of(*choices: str) -> Rule:
    """The rule that a setting is one of a few words.

    Example:
        >>> one_of("ddp", "fsdp")[1]
        'must be one of ddp, fsdp'
    """
    return (lambda value: value in choices), f"must be one of {', '.join(choices)}"


def setting(default: Any, help: str, rule: Rule | None = None) -> Any:
    """A field of a configuration: its default (`dict`: a new one), the sentence that `--help` shows, and a rule."""
    kind = "default_factory" if default is dict else "default"
    return dataclasses.field(**{kind: default}, metadata={"help": help, "rule": rule})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every task needs to be trained. `None` means: chosen from the data and the model by `with_defaults`.

    Example:
        >>> TrainConfig(epochs=10).batch_size
        64
        >>> TrainConfig(lr=-1)
        Traceback (most recent call last):
        ...
        ValueError: lr=-1: must be above 0
    """

    task: ClassVar[str] = "any"

    model: str = setting("vmamba_nano", "a model of `visionssm list`, or any timm model")
    model_kwargs: dict[str, Any] = setting(dict, "further arguments of the model, such as {drop_path_rate: 0.1}")  # noqa: RUF009
    pretrained: bool = setting(False, "start from the published weights")
    checkpoint: str | None = setting(None, "start from the weights in this file")
    data: str = setting("digits", "the data set: what is embedded, or a folder")
    workers: int | None = setting(
        None, "processes that load images; default: 0 for embedded data, else up to 8", NOT_NEGATIVE
    )
    max_unreadable: float = setting(0.05, "stop when more than this share of the images can't be read", SHARE)

    out: str | None = setting(None, "folder of the run; default: runs/DATA-MODEL")
    epochs: int | None = setting(None, "passes over the training images", ABOVE_ZERO)
    batch_size: int = setting(64, "images per batch and process", ABOVE_ZERO)
    accumulate: int = setting(1, "batches whose gradients are added before a step", ABOVE_ZERO)
    validate_every: int = setting(1, "epochs from one validation to the next", ABOVE_ZERO)
    seed: int = setting(0, "chooses initial weights, order and augmentation", NOT_NEGATIVE)
    checkpoint_minutes: float = setting(10.0, "save last.ckpt at least this often, besides every epoch", ABOVE_ZERO)
    checkpoint_steps: int | None = setting(None, "save last.ckpt every so many batches", ABOVE_ZERO)
    log_steps: int = setting(50, "steps from one point in the TensorBoard log to the next", ABOVE_ZERO)

    device: str = setting("auto", "auto, cpu, cuda or mps", one_of("auto", "cpu", "cuda", "mps"))
    devices: int | None = setting(
        None,
        "processes on each machine, one per GPU; default: those that torchrun or SLURM started, else 1",
        ABOVE_ZERO,
    )
    nodes: int | None = setting(None, "machines; default: those that torchrun or SLURM started, else 1", ABOVE_ZERO)
    strategy: str = setting(
        "ddp",
        "how several processes share a model: ddp (each holds it) or fsdp (each holds a part)",
        one_of("ddp", "fsdp"),
    )
    sync_batchnorm: bool = setting(True, "BatchNorm takes its statistics over all processes (on GPUs)")
    threads: int | None = setting(
        None, "CPU threads; default: 1 for digits, which don't gain from more, else torch's", ABOVE_ZERO
    )
    precision: str = setting(
        "float32", "float32, bfloat16 or float16 (mixed: weights stay float32)", one_of(*PRECISIONS)
    )
    grad_checkpointing: bool = setting(
        False, "less memory for more time: compute activations again in the backward pass"
    )
    compile: bool = setting(False, "compile the model with torch.compile")
    channels_last: bool = setting(False, "keep feature maps with the channels last in memory")

    freeze: int = setting(
        0, "first layer groups whose weights stay as they are: 1 is the stem, 2 the first stage too", NOT_NEGATIVE
    )
    optimizer: str = setting("adamw", "an optimizer of timm, such as adamw or lamb")
    optimizer_kwargs: dict[str, Any] = setting(dict, "further arguments of the optimizer, such as {betas: [0.9, 0.95]}")  # noqa: RUF009
    lr: float | None = setting(None, "highest learning rate", ABOVE_ZERO)
    lr_batch: int | None = setting(
        None, "the batch, over all processes and accumulated batches, that lr is for; default: any", ABOVE_ZERO
    )
    lr_scaling: str = setting(
        "linear", "how lr follows the batch, given lr_batch: linear, sqrt or none", one_of(*LR_SCALINGS)
    )
    lr_scaling_ends: bool = setting(False, "scale warmup_lr and min_lr like lr")
    min_lr: float = setting(1e-5, "learning rate at the end of the cosine", NOT_NEGATIVE)
    warmup_epochs: float | None = setting(None, "epochs of linear warm-up; default: a tenth", NOT_NEGATIVE)
    warmup_lr: float | None = setting(None, "learning rate at the start of the warm-up; default: min_lr", NOT_NEGATIVE)
    warmup_first: bool = setting(False, "the cosine starts after the warm-up, not with it")
    cooldown_epochs: int = setting(0, "last epochs that stay at min_lr", NOT_NEGATIVE)
    schedule_by_epoch: bool = setting(False, "one learning rate for all steps of an epoch")
    weight_decay: float = setting(0.05, "not applied to vectors and biases, and see decay_rule", NOT_NEGATIVE)
    decay_rule: str = setting(
        "model",
        "model: spare also what the model names (A, D, ...); published: decay these as published runs do",
        one_of(*DECAY_RULES),
    )
    layer_decay: float | None = setting(None, "factor of the learning rate from each layer to the one below", SHARE)
    clip_grad: float | None = setting(
        1.0, "longest gradient norm; null: not clipped", (ABOVE_ZERO[0], "must be above 0; null: not clipped")
    )
    max_skipped: int = setting(
        10, "stop after so many steps in a row with a loss or gradient that isn't finite", ABOVE_ZERO
    )
    ema_decay: float | None = setting(None, "average the weights with this decay, such as 0.9998; 0: off", SHARE)
    ema_warmup: bool = setting(True, "shorter average in the first steps")

    def __post_init__(self) -> None:
        for item in fields(self):
            value, rule = getattr(self, item.name), item.metadata["rule"]
            if rule is not None and value is not None and not rule[0](value):
                raise ValueError(f"{item.name}={value}: {rule[1]}")
        if self.lr is not None and self.lr < self.min_lr:
            raise ValueError(
                f"lr={self.lr}: below min_lr={self.min_lr}, where the schedule is to end; lower min_lr too"
            )
        if self.epochs is not None and (self.warmup_epochs or 0) + self.cooldown_epochs >= self.epochs:
            raise ValueError(
                f"epochs={self.epochs}: the warm-up ({self.warmup_epochs or 0:g} epochs) and the cool-down "
                f"({self.cooldown_epochs}) leave nothing for the cosine; lower warmup_epochs and cooldown_epochs too"
            )
        if self.pretrained and self.checkpoint:
            raise ValueError("pretrained and checkpoint: both name weights to start from; give one")

    def with_defaults(self) -> Self:
        """The same with nothing left open that a run needs. Tasks extend it."""
        devices, nodes = started_processes()
        return self.filled(devices=devices, nodes=nodes, lr=1e-3, ema_decay=0.0, epochs=32).filled(
            warmup_epochs=(self.epochs or 32) / 10,
            out=f"runs/{Path(self.data).expanduser().resolve().name}-{self.model.replace('/', '_')}",
        )

    def filled(self, **chosen: Any) -> Self:
        """The same, with these values for the settings that are None.

        Example:
            >>> config = TrainConfig(lr=1e-3).filled(lr=5e-4, epochs=7)
            >>> config.lr, config.epochs
            (0.001, 7)
        """
        return dataclasses.replace(self, **{name: v for name, v in chosen.items() if getattr(self, name) is None})

    @property
    def processes(self) -> int:
        """Processes over all machines."""
        return (self.devices or 1) * (self.nodes or 1)

    @property
    def global_batch(self) -> int:
        """Images per step, over all processes and accumulated batches."""
        return self.batch_size * self.accumulate * self.processes

    @classmethod
    def from_sources(
        cls, file: str | Path | None = None, pairs: Iterable[tuple[str, str]] = (), recipe: str | None = None
    ) -> Self:
        """Defaults, overwritten by a recipe, by a YAML file, and by pairs of a name and the text of a value, in this order.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: there is no such recipe, the file isn't a YAML mapping, a name is unknown (the message gives the
                near match), or a value has the wrong type or is out of range.

        Example:
            >>> TrainConfig.from_sources(pairs=[("epochs", "3"), ("lr", "1e-3")]).lr
            0.001
            >>> TrainConfig.from_sources(pairs=[("epoch", "3")])
            Traceback (most recent call last):
            ...
            ValueError: there is no setting 'epoch'; did you mean epochs?
        """
        published = {} if recipe is None else cls._read(recipe_file(recipe))
        values = {} if file is None else cls._read(file)
        for name, text in pairs:
            values[name] = _typed_value(cls, name, text)
        if values.get("checkpoint"):
            published.pop("pretrained", None)  # a file to start from takes the place of the weights that a recipe names
        return cls(**{**published, **values})

    @classmethod
    def _read(cls, file: str | Path) -> dict[str, Any]:
        """The values in a YAML file, checked against the types of their fields."""
        content = read_yaml(file)
        _check_task(cls, content.pop("task", cls.task), file)
        return {name: _typed_value(cls, str(name), value) for name, value in content.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values only: what goes into YAML and into checkpoints."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"task": self.task, **plain}

    def to_yaml(self) -> str:
        """The configuration as a YAML file that `from_sources` reads."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def started_processes() -> tuple[int, int]:
    """Processes per machine, and machines, as torchrun or SLURM started them; (1, 1) where neither did."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        local = int(environment["LOCAL_WORLD_SIZE"])
        return local, int(environment["WORLD_SIZE"]) // local
    if "SLURM_NTASKS_PER_NODE" in environment and "SLURM_PROCID" in environment:
        return int(environment["SLURM_NTASKS_PER_NODE"]), int(environment["SLURM_NNODES"])
    return 1, 1


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


def _check_task(config: type[TrainConfig], name: Any, file: str | Path) -> None:
    if name != config.task:
        raise ValueError(f"{file} holds settings of the task {name}, not of {config.task}; choose --task {name}")


def _typed_value(config: type[TrainConfig], name: str, value: Any) -> Any:
    """Check one value against the type of its field; text is read as YAML, so that "1e-3" and "[32, 32]" work."""
    import argparse

    import jsonargparse

    types = {item.name: item.type for item in fields(config)}
    if name not in types:
        hint = near_matches(name, types, limit=1) or "; `visionssm train --help` lists them all"
        raise ValueError(f"there is no setting '{name}'{hint}")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=types[name])
    try:
        parsed = (
            parser.parse_args([f"--{name}={value}"]) if isinstance(value, str) else parser.parse_object({name: value})
        )
    except argparse.ArgumentError as error:
        raise ValueError(f"{name}={value}: expected {_type_name(types[name])}") from error
    return tuple(parsed[name]) if isinstance(parsed[name], list) else parsed[name]


def _type_name(annotation: Any) -> str:
    return getattr(annotation, "__name__", str(annotation)) if isinstance(annotation, type) else str(annotation)
