"""Train a classifier from settings, or continue a run that was interrupted, and measure what comes out."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from visionssm.data.images import Splits
from visionssm.data.loader import seed_everything
from visionssm.tasks.callbacks import (
    UNREADABLE,
    AtomicCheckpointIO,
    CtrlC,
    ProgressBar,
    RunFiles,
    TrainingInterrupted,
    UnreadableImages,
    best_row,
)
from visionssm.tasks.checkpoint import LAST, ModelCard, load_classifier, pick_device
from visionssm.tasks.classification import ClassificationTask
from visionssm.tasks.classification_data import ClassificationData, load_splits, worker_count
from visionssm.tasks.config import PRECISIONS, TrainConfig, with_defaults
from visionssm.tasks.evaluation import Evaluation, evaluate
from visionssm.tasks.figures import save_confusion_matrix, save_learning_curve
from visionssm.tasks.initial import build_initial_model
from visionssm.tasks.run import CONFUSION, LEARNING_CURVE, RESULTS, Run, open_run, write_text


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    folder: Path
    history: list[dict[str, Any]]  # one row per epoch
    final: Evaluation  # of the best weights on the test images, or on the validation images if there are none
    final_part: str  # "test" or "val"


def train(config: TrainConfig, force: bool = False) -> TrainResult:
    """Train, keep the best weights by validation accuracy, and evaluate them on images that training didn't use.

    Started again with the same settings, an interrupted run continues where its last checkpoint was taken, and ends
    with the same weights, bit by bit, as one that was never interrupted.

    Args:
        config: the settings; what is left open is chosen by `with_defaults`.
        force: continue a run although its settings or data have changed.

    Raises:
        ValueError, FileNotFoundError: settings, data or checkpoints that can't be used.
        OSError: the output can't be written.
        KeyboardInterrupt: Ctrl-C; `last.ckpt` holds the state.
    """
    config = with_defaults(config)
    with cpu_threads(config.threads):
        return _train(config, force)


def _train(config: TrainConfig, force: bool) -> TrainResult:
    splits = load_splits(config)
    device = pick_device(config.device)
    fingerprint = splits.fingerprint()
    run = open_run(config, fingerprint, force)

    seed_everything(config.seed)
    initial = build_initial_model(config, splits.class_names)
    card = ModelCard(
        model=config.model,
        model_kwargs=initial.arguments,
        class_names=splits.class_names,
        preprocessing=initial.preprocessing.to_dict(),
        config=config.to_dict(),
        fingerprint=fingerprint,
        version=_version(),
    )
    data = ClassificationData(splits, initial.preprocessing, config, pin_memory=device.type == "cuda")
    task = ClassificationTask(initial.model, config, card, batches_per_epoch=data.batches_per_epoch())
    _say_what_runs(config, splits, initial.model, run, device.type)
    fit(task, data, config, run, device.type)
    return finish(run.folder, splits, config, task.history, device.type)


def fit(task: ClassificationTask, data: ClassificationData, config: TrainConfig, run: Run, device: str) -> None:
    """Run Lightning's trainer to the end of the last epoch."""
    assert config.epochs is not None
    batches = task.batches_per_epoch * config.batch_size
    images_per_epoch = min(batches, len(data.splits.train.labels))
    parts = {"train": data.splits.train, "val": data.splits.val}
    limits = {part: max(5, int(config.max_unreadable * len(images.labels))) for part, images in parts.items()}
    with quiet_lightning(), CtrlC() as ctrl_c:
        trainer = Trainer(
            accelerator={"cuda": "gpu"}.get(device, device),
            devices=1,
            max_epochs=config.epochs,
            precision=PRECISIONS[config.precision],  # type: ignore[arg-type]
            accumulate_grad_batches=config.accumulate,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[AtomicCheckpointIO()],
            callbacks=[
                UnreadableImages(run.folder / UNREADABLE, limits),
                ProgressBar(config.epochs, images_per_epoch),
                RunFiles(run.folder, config.checkpoint_minutes, config.checkpoint_steps, ctrl_c),
            ],
        )
        try:
            trainer.fit(task, datamodule=data, ckpt_path=run.resume_from, weights_only=True)
        except (TrainingInterrupted, SystemExit) as interruption:
            # Lightning answers a second Ctrl-C with SystemExit.
            last = run.folder / LAST
            saved = f"{last} has the state: the same command continues from it"
            print("stopped;", saved if last.is_file() else "nothing was saved yet")
            raise KeyboardInterrupt from interruption
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            raise ValueError(
                f"out of memory on {device} with batch_size={config.batch_size}: half of it with accumulate="
                f"{2 * config.accumulate} gives the same steps in less memory; a smaller img_size helps too"
            ) from error


def finish(
    folder: Path, splits: Splits, config: TrainConfig, history: list[dict[str, Any]], device: str
) -> TrainResult:
    """Evaluate the best weights, and write `results.json` and the figures."""
    classifier = load_classifier(folder, device)
    evaluation = evaluate(classifier, splits.final, config.batch_size, worker_count(config))
    part = "test" if splits.test is not None else "val"
    best = best_row(history)
    results = {
        "model": config.model,
        "best_epoch": best["epoch"],
        "val_top1": best["val_top1"],
        part: evaluation.to_dict(),
    }
    write_text(folder / RESULTS, json.dumps(results, indent=1))
    save_learning_curve(history, folder / LEARNING_CURVE)
    save_confusion_matrix(evaluation, folder / CONFUSION)
    return TrainResult(folder, history, evaluation, part)


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch compute with so many threads inside the block; None: with as many as it does anyway."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advertisements and hints that don't apply here off the screen."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Digits are in memory: worker processes would slow them down.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*training_step. returned .None.*")
        # Lightning's own use of an old name in torch.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        # The averaged copy of the model is meant to be in eval mode.
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        try:
            yield
        finally:
            logger.setLevel(level)


def _say_what_runs(config: TrainConfig, splits: Splits, model: Any, run: Run, device: str) -> None:
    counts = [("training", splits.train), ("validation", splits.val), ("test", splits.test)]
    images = ", ".join(f"{len(part.labels)} {name}" for name, part in counts if part is not None)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"model     {config.model}, {parameters:,} parameters, on {device}")
    print(f"data      {splits.name}: {len(splits.class_names)} classes, {images} images")
    print(f"settings  {config.epochs} epochs, batch {config.batch_size}, {config.optimizer}, lr {config.lr}")
    print(f"run       {run.folder}")
    if run.resume_from is not None:
        print(f"continues the run in this folder: {run.epochs_done} of {config.epochs} epochs are done")


def _version() -> str:
    try:
        return metadata.version("visionssm")
    except metadata.PackageNotFoundError:
        return "not installed"
