"""Train a classifier from settings, or continue a run that was interrupted, and measure what comes out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionssm.data.images import Splits
from visionssm.data.loader import seed_everything
from visionssm.tasks.callbacks import best_row
from visionssm.tasks.checkpoint import ModelCard, load_classifier, pick_device
from visionssm.tasks.classification import ClassificationTask
from visionssm.tasks.classification_config import ClassificationConfig
from visionssm.tasks.classification_data import ClassificationData, load_splits, worker_count
from visionssm.tasks.distillation import load_teacher
from visionssm.tasks.engine import cpu_threads, fit
from visionssm.tasks.evaluation import Evaluation, evaluate, save_per_class
from visionssm.tasks.figures import save_confusion_matrix, save_learning_curve
from visionssm.tasks.initial import InitialModel, build_initial_model
from visionssm.tasks.processes import is_first_process
from visionssm.tasks.run import CONFUSION, LEARNING_CURVE, PER_CLASS, RESULTS, open_run, say_what_runs, write_text


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    folder: Path
    history: list[dict[str, Any]]  # one row per epoch
    final: Evaluation  # of the best weights on the test images, or on the validation images if there are none
    final_part: str  # "test" or "val"


def train(config: ClassificationConfig, force: bool = False) -> TrainResult | None:
    """Train, keep the best weights by validation accuracy, and evaluate them on images that training didn't use.

    Started again with the same settings, an interrupted run continues where its last checkpoint was taken, and ends
    with the same weights, bit by bit, as one that was never interrupted.

    Args:
        config: the settings; what is left open is chosen by `with_defaults`.
        force: continue a run although its settings or data have changed.

    Returns:
        What came out; None in every process but the first, where there are several.

    Raises:
        ValueError, FileNotFoundError: settings, data or checkpoints that can't be used.
        OSError: the output can't be written.
        KeyboardInterrupt: Ctrl-C; `last.ckpt` holds the state.
    """
    config = config.with_defaults()
    with cpu_threads(config.threads):
        return _train(config, force)


def _train(config: ClassificationConfig, force: bool) -> TrainResult | None:
    splits = load_splits(config)
    device = pick_device(config.device).type
    run = open_run(config, splits.fingerprint(), force)

    seed_everything(config.seed)
    initial = build_initial_model(config, splits.class_names)
    card = ModelCard.of_run(config, run, initial.arguments, splits.class_names, initial.preprocessing.to_dict())
    data = ClassificationData(splits, initial.preprocessing, config, pin_memory=device == "cuda")
    teacher = load_teacher(config, splits.class_names, initial.preprocessing)
    task = ClassificationTask(initial.model, config, card, data.batches_per_epoch(), teacher)
    say_what_runs(config, run, initial.model, f"{splits.name}: {splits.counts()}", device)
    if is_first_process() and run.resume_from is None:
        print(how_it_learns(config, initial))
    fit(task, data, run, device)
    return finish(run.folder, splits, config, task.history, device) if is_first_process() else None


def how_it_learns(config: ClassificationConfig, initial: InitialModel) -> str:
    """Where the weights come from, what the model sees, and what keeps it from learning by heart; in words."""
    channels, height, width = initial.preprocessing.input_size
    low, high = config.scale or (1.0, 1.0)
    changes = [f"crops of {100 * low:g} to {100 * high:g} % of the area"]
    changes += [f"mirrored in {100 * config.hflip:g} %"] if config.hflip else []
    changes += [f"{config.auto_augment}"] if config.auto_augment else []
    rules = {
        "weight decay": config.weight_decay, "label smoothing": config.label_smoothing, "mixup": config.mixup,
        "cutmix": config.cutmix, "random erasing": config.random_erasing, "layer decay": config.layer_decay,
        "averaged weights": config.ema_decay, "frozen groups": config.freeze,
    }  # fmt: skip
    return (
        f"weights   {initial.origin}\n"
        f"input     {height} x {width}, {channels} channels; {', '.join(changes)}\n"
        f"rules     {', '.join(f'{name} {value:g}' for name, value in rules.items() if value)}"
        " (--print-config shows every setting)"
    )


def finish(
    folder: Path, splits: Splits, config: ClassificationConfig, history: list[dict[str, Any]], device: str
) -> TrainResult:
    """Evaluate the best weights, and write `results.json` and the figures."""
    classifier = load_classifier(folder, device)
    evaluation = evaluate(classifier, splits.final, config.batch_size, worker_count(config))
    part = "test" if splits.test is not None else "val"
    best = best_row(history, ClassificationTask.score)
    results = {
        "model": config.model,
        "best_epoch": best["epoch"],
        "val_top1": best["val_top1"],
        part: evaluation.to_dict(),
    }
    write_text(folder / RESULTS, json.dumps(results, indent=1))
    save_learning_curve(history, folder / LEARNING_CURVE, ClassificationTask.score, ClassificationTask.score_name)
    save_confusion_matrix(evaluation, folder / CONFUSION)
    save_per_class(evaluation, folder / PER_CLASS)
    return TrainResult(folder, history, evaluation, part)
