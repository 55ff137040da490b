"""The folder of a training run: what is in it, and whether a run may start or continue there."""

import json
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from visionssm._files import write_atomically
from visionssm.tasks.checkpoint import CARD, LAST, read_checkpoint
from visionssm.tasks.config import TrainConfig, changed_settings
from visionssm.tasks.optimizer import scaling_in_words
from visionssm.tasks.processes import is_first_process

CONFIG, ENVIRONMENT, RESULTS = "config.yaml", "environment.json", "results.json"
LEARNING_CURVE, CONFUSION, PER_CLASS = "learning_curve.png", "confusion_matrix.png", "per_class.csv"


@dataclass(frozen=True)
class Run:
    """A folder that is ready to train in."""

    folder: Path
    fingerprint: str  # of the data
    resume_from: Path | None
    epochs_done: int


def open_run(config: TrainConfig, fingerprint: str, force: bool = False) -> Run:
    """Create the folder of a run, or find the run that was interrupted in it.

    Args:
        config: complete settings.
        fingerprint: of the data.
        force: continue although settings or data have changed.

    Raises:
        ValueError: another run is in the folder (the message says what differs), or its last checkpoint is damaged.
        OSError: the folder can't be created or written.
    """
    assert config.out is not None
    folder = Path(config.out).expanduser()
    last = folder / LAST
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if last.is_file():
            _refuse_another_run(folder, config, fingerprint, force)
        if is_first_process():
            write_text(folder / CONFIG, config.to_yaml())
            write_text(folder / ENVIRONMENT, json.dumps(environment(fingerprint), indent=1))
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"the output folder {folder} can't be written ({reason}); choose another one with out=DIR"
        ) from error
    if not last.is_file():
        return Run(folder, fingerprint, None, 0)
    return Run(folder, fingerprint, last, len(read_checkpoint(last)["history"]["epochs"]))


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def say_what_runs(config: TrainConfig, run: Run, model: nn.Module, data: str, device: str) -> None:
    """Print model, data, settings and folder, in the first process."""
    if not is_first_process():
        return
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    frozen = f" ({trained:,} of them trained)" if trained < parameters else ""
    place = device if config.processes == 1 else f"{config.processes} processes ({config.strategy}, {device})"
    images = config.batch_size * config.accumulate * config.processes
    batch = f"batch {images}"
    if images != config.batch_size:
        batch += f" ({config.batch_size} images x {config.accumulate} batches x {config.processes} processes)"
    print(f"model     {config.model}, {parameters:,} parameters{frozen}, on {place}")
    print(f"data      {data}")
    print(f"settings  {config.epochs} epochs, {batch}, {config.optimizer}, lr {config.lr}, {config.precision}")
    if (scaled := scaling_in_words(config)) is not None:
        print(f"          {scaled}")
    print(f"run       {run.folder}", flush=True)
    if run.resume_from is not None:
        print(f"continues the run in this folder: {run.epochs_done} of {config.epochs} epochs are done", flush=True)


def environment(fingerprint: str) -> dict[str, Any]:
    """What a run depended on besides its settings: versions, machine, the state of the source, and the data."""
    versions = {}
    for package in ("visionssm", "torch", "torchvision", "timm", "lightning", "numpy", "pillow"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "git": _git_state(),
        "data_fingerprint": fingerprint,
    }


def _refuse_another_run(folder: Path, config: TrainConfig, fingerprint: str, force: bool) -> None:
    card = read_checkpoint(folder / LAST)[CARD]
    changes = changed_settings(card["config"], config.to_dict())
    if card["fingerprint"] != fingerprint:
        changes.append("the images or labels of the data set")
    if changes and not force:
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(changes)}. Choose another folder with out=DIR, or "
            "continue that run with the new settings with --force"
        )


def _git_state() -> str | None:
    """Commit of the source tree, with a mark for uncommitted changes; None outside of a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + (" with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
