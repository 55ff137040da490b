"""Checkpoints of training runs: written whole or not at all, and complete, so that a file alone gives a classifier."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

import visionssm
from visionssm._files import write_atomically
from visionssm.data.transforms import Preprocessing
from visionssm.models import read_checkpoint as read_weights

if TYPE_CHECKING:
    from visionssm.tasks.config import TrainConfig
    from visionssm.tasks.run import Run

CARD = "visionssm"  # the key of what describes the model, beside Lightning's own keys
LAST, BEST = "last.ckpt", "best.ckpt"


@dataclass(frozen=True)
class ModelCard:
    """What one must know of a checkpoint, besides its tensors, to use it: plain values, stored in the file."""

    model: str
    model_kwargs: dict[str, Any]
    class_names: list[str]
    preprocessing: dict[str, Any]
    config: dict[str, Any]  # all settings of the run
    fingerprint: str  # of the data
    version: str  # of visionssm

    @property
    def task(self) -> str:
        """What was trained: "classification", "detection" or "segmentation"."""
        return str(self.config.get("task", "classification"))

    @classmethod
    def of_run(
        cls,
        config: "TrainConfig",
        run: "Run",
        model_kwargs: dict[str, Any],
        class_names: list[str],
        preprocessing: dict[str, Any],
    ) -> Self:
        """The card of what a run trains.

        Args:
            config: complete settings.
            run: its folder and data.
            model_kwargs: arguments with which `visionssm.create_model` builds the same model without weights.
            class_names: in the order of the labels.
            preprocessing: plain values; "input_size" holds (channels, height, width).
        """
        return cls(
            config.model,
            model_kwargs,
            class_names,
            preprocessing,
            config.to_dict(),
            run.fingerprint,
            visionssm.__version__,
        )


@dataclass(frozen=True)
class Classifier:
    """A trained model, ready to use, with everything that its input and its output mean."""

    model: nn.Module  # in eval mode
    class_names: list[str]
    preprocessing: Preprocessing
    config: dict[str, Any]
    source: Path
    weights: str  # "averaged" (EMA) or "trained"

    @property
    def name(self) -> str:
        """What the model is called."""
        return str(self.config["model"])


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """`torch.save`, atomically.

    Raises:
        OSError: the file can't be written; the message says where, and that earlier files are intact.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            torch.save(content, file)

    try:
        write_atomically(path, write)
    except (OSError, RuntimeError) as error:
        # torch reports a write that the system refused as a RuntimeError of its archive writer.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
        raise OSError(f"{path} could not be written ({reason}); earlier checkpoints are intact") from error


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a user means by a file, or by the folder of a run: its best, else its last one.

    Raises:
        FileNotFoundError: there is no such file, or the folder holds no checkpoint.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    for name in (BEST, LAST):
        if (path / name).is_file():
            return path / name
    if path.is_dir():
        raise FileNotFoundError(f"{path} holds neither {BEST} nor {LAST}; is it the folder of a run?")
    raise FileNotFoundError(f"{path}: no such checkpoint file or folder of a run")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of `visionssm train`; no code in the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or cut short, or isn't a checkpoint of `visionssm train`.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path} can't be read as a checkpoint ({size} bytes): it is damaged, cut short, or another kind of file"
        ) from error
    if not isinstance(content, dict) or CARD not in content:
        raise ValueError(
            f"{path} holds weights, but not the class names and preprocessing that `visionssm train` writes beside them; "
            "to start training from it: visionssm train --checkpoint FILE --model NAME"
        )
    return content


def is_run(path: str | Path) -> bool:
    """Whether a path means what `visionssm train` left, rather than bare weights: a folder, or a file with a model card.

    The suffix doesn't tell: published weights come as `.ckpt` too. A `.ckpt` that nobody can read, or that isn't there, counts
    as a run, whose reader says what is wrong.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        return path.is_dir() or path.suffix == ".ckpt"
    if _reads(read_checkpoint, path):
        return True
    return path.suffix == ".ckpt" and not _reads(read_weights, path)


def _reads(reader: Callable[[Path], object], path: Path) -> bool:
    try:
        reader(path)
    except ValueError:
        return False
    return True


def load_classifier(path: str | Path, device: torch.device | str = "cpu", averaged: bool = True) -> Classifier:
    """The classifier in a checkpoint, or in the folder of a run.

    Args:
        path: a checkpoint of `visionssm train`, or the folder of a run.
        device: where to put the model.
        averaged: take the averaged weights (EMA), if the run kept them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, isn't a classifier of `visionssm train`, or its weights don't fit the model it names.
    """
    source = find_checkpoint(path)
    content = read_checkpoint(source)
    card = ModelCard(**content[CARD])
    if card.task != "classification":
        raise ValueError(f"{source} is from the task {card.task}; a classifier is needed here")
    state, weights = model_weights(content["state_dict"], averaged)
    model = visionssm.create_model(card.model, **card.model_kwargs)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        mismatch = " ".join(str(error).split())
        raise ValueError(f"{source} doesn't fit the model {card.model} that it names: {mismatch[:300]}") from error
    return Classifier(
        model=model.eval().to(device),
        class_names=card.class_names,
        preprocessing=Preprocessing.from_dict(card.preprocessing),
        config=card.config,
        source=source,
        weights=weights,
    )


def model_weights(state: dict[str, torch.Tensor], averaged: bool = True) -> tuple[dict[str, torch.Tensor], str]:
    """The model's own entries of a task's state: the averaged ones if asked for and there, else the trained ones."""
    for prefix, weights in (("ema.module.", "averaged"), ("model.", "trained")):
        if weights == "averaged" and not averaged:
            continue
        found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if found:
            return found, weights
    raise ValueError("the checkpoint holds no weights of a model (no keys that start with 'model.')")


def pick_device(name: str = "auto") -> torch.device:
    """The device that a user asked for, or the best one that is there.

    Raises:
        ValueError: the device isn't there.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, usable in available.items() if usable)
    if not available.get(name.split(":")[0], False):
        usable_devices = ", ".join(device for device, usable in available.items() if usable)
        raise ValueError(f"device {name} isn't available here; available: auto, {usable_devices}")
    return torch.device(name)
