"""Train a detector or a segmenter from settings, or continue a run that was interrupted, and measure what comes out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionssm.data.ade20k import load_ade20k
from visionssm.data.coco import CocoImages, load_coco
from visionssm.data.dense_transforms import DenseTransform, detection_train_transform, segmentation_train_transform
from visionssm.data.images import hash_lines, write_lines
from visionssm.data.loader import seed_everything
from visionssm.data.problems import problem_lines
from visionssm.tasks.callbacks import best_row
from visionssm.tasks.checkpoint import ModelCard, pick_device
from visionssm.tasks.dense import PROBLEMS, DenseData, DenseTask, dense_workers, problem_report
from visionssm.tasks.dense_config import DenseConfig, DetectionConfig, SegmentationConfig
from visionssm.tasks.dense_evaluation import (
    DetectionEvaluation,
    SegmentationEvaluation,
    evaluate_detector,
    evaluate_segmenter,
)
from visionssm.tasks.dense_model import build_dense_model, load_dense_model
from visionssm.tasks.detection import DetectionTask, masks_of
from visionssm.tasks.engine import cpu_threads, fit
from visionssm.tasks.figures import save_learning_curve
from visionssm.tasks.processes import is_first_process
from visionssm.tasks.run import LEARNING_CURVE, RESULTS, Run, open_run, say_what_runs, write_text
from visionssm.tasks.segmentation import SegmentationTask, start_at_class_shares


@dataclass(frozen=True)
class DenseTrainResult:
    """A finished run."""

    folder: Path
    history: list[dict[str, Any]]  # one row per epoch
    final: DetectionEvaluation | SegmentationEvaluation  # of the best weights on the validation images


def train_detector(config: DetectionConfig, force: bool = False) -> DenseTrainResult | None:
    """Train a detector, and keep the best weights by box AP. See `visionssm.tasks.train.train` for what holds of runs.

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
    train, val = load_coco(config.data, with_masks=masks_of(config), keep_empty=config.keep_empty)
    transform = detection_train_transform(
        config.resize or "none",
        short_sides=config.short_sides,
        long_side=config.long_side,
        crop_size=config.crop_size,
        scale=config.scale,
        hflip=config.hflip or 0.0,
    )
    with cpu_threads(config.threads):
        run, task = _train(config, train, val, transform, force)
        return _finish(run, config, task, evaluate_detector, val)


def train_segmenter(config: SegmentationConfig, force: bool = False) -> DenseTrainResult | None:
    """Train a segmenter, and keep the best weights by mIoU. See `train_detector`."""
    config = config.with_defaults()
    assert config.crop_size is not None
    train, val = load_ade20k(config.data)
    transform = segmentation_train_transform(
        config.crop_size,
        short_side=config.short_side if config.resize else None,
        long_side=config.long_side,
        ratios=config.scale,
        largest_share=config.largest_share,
        hflip=config.hflip or 0.0,
        photometric=bool(config.photometric),
    )
    with cpu_threads(config.threads):
        run, task = _train(config, train, val, transform, force)
        return _finish(run, config, task, evaluate_segmenter, val)


def _train(config: Any, train: Any, val: Any, transform: DenseTransform, force: bool) -> tuple[Run, DenseTask]:
    device = pick_device(config.device).type
    run = open_run(config, hash_lines([train.fingerprint(), val.fingerprint()]), force)
    problems = [*train.problems, *val.problems]
    if problems and is_first_process():
        write_lines(run.folder / PROBLEMS, problem_lines(problems))
        print(*problem_report(problems, run.folder / PROBLEMS), sep="\n")

    seed_everything(config.seed)
    model, arguments = build_dense_model(config, len(train.class_names))
    if isinstance(config, SegmentationConfig) and config.class_shares:
        start_at_class_shares(model, train)
    facts = {"input_size": [3, *_input_size(config)], "category_ids": getattr(train, "category_ids", None)}
    card = ModelCard.of_run(config, run, arguments, train.class_names, facts)
    wide = None
    if isinstance(train, CocoImages) and config.epoch_batches is None:
        wide = [width > height for height, width in map(train.size, range(len(train)))]
    data = DenseData(train, val, transform, config, pin_memory=device == "cuda", wide=wide)
    parts = (model, config, card, data.batches_per_epoch(), run.folder / PROBLEMS, problems)
    task: DenseTask = (
        DetectionTask(*parts, val_images=val) if isinstance(train, CocoImages) else SegmentationTask(*parts)
    )
    classes = f"{len(train.class_names)} classes, {len(train)} training, {len(val)} validation images"
    say_what_runs(config, run, model, f"{Path(config.data).name}: {classes}", device)
    fit(task, data, run, device)
    return run, task


def _finish(run: Run, config: DenseConfig, task: DenseTask, evaluate: Any, val: Any) -> DenseTrainResult | None:
    """Evaluate the best weights, and write `results.json` and the learning curve, in the first process."""
    if not is_first_process():
        return None
    trained = load_dense_model(run.folder, pick_device(config.device).type)
    evaluation = evaluate(trained, val, workers=dense_workers(config))
    results = {
        "task": config.task,
        "model": config.model,
        "best_epoch": best_row(task.history, task.score)["epoch"],
        "val": evaluation.to_dict(),
    }
    write_text(run.folder / RESULTS, json.dumps(results, indent=1))
    save_learning_curve(task.history, run.folder / LEARNING_CURVE, task.score, task.score_name)
    return DenseTrainResult(run.folder, task.history, evaluation)


def _input_size(config: DenseConfig) -> Sequence[int]:
    """About the size of a training image, for messages."""
    if isinstance(config, SegmentationConfig):
        return config.crop_size or (512, 512)
    assert isinstance(config, DetectionConfig)
    return (
        (config.crop_size, config.crop_size) if config.resize == "lsj" else (max(config.short_sides), config.long_side)
    )
