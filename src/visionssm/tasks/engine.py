"""Run a task to the end of its last epoch with Lightning's trainer: on one process or many, with every file it leaves."""

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from visionssm.tasks.base import Task, TaskData
from visionssm.tasks.callbacks import (
    UNREADABLE,
    AtomicCheckpointIO,
    ProgressBar,
    RunFiles,
    StopSignals,
    TensorBoardLog,
    TrainingInterrupted,
    UnreadableImages,
)
from visionssm.tasks.checkpoint import LAST
from visionssm.tasks.config import PRECISIONS, TrainConfig
from visionssm.tasks.processes import is_first_process
from visionssm.tasks.run import Run


def fit(task: Task, data: TaskData, run: Run, device: str) -> None:
    """Train to the end of the last epoch; where the run was interrupted before, from its last checkpoint on.

    Args:
        task: what is trained, with its settings.
        data: its loaders.
        run: the folder, from `open_run`.
        device: "cpu", "cuda" or "mps".

    Raises:
        ValueError: too many steps or images went wrong, or memory is too small (the message says what to lower).
        OSError: a file can't be written.
        KeyboardInterrupt: Ctrl-C or SIGTERM; `last.ckpt` holds the state.
    """
    config = task.config
    assert config.epochs is not None
    if device == "cuda" and (config.devices or 1) > torch.cuda.device_count():
        raise ValueError(f"devices={config.devices}: this machine has {torch.cuda.device_count()} GPUs")
    limits = {part: max(5, int(config.max_unreadable * size)) for part, size in data.sizes.items()}
    images_per_epoch = min(task.batches_per_epoch * config.batch_size * config.processes, data.sizes["train"])
    with quiet_lightning(), StopSignals() as stop:
        files = AtomicCheckpointIO()
        trainer = Trainer(
            accelerator={"cuda": "gpu"}.get(device, device),
            devices=config.devices or 1,
            num_nodes=config.nodes or 1,
            strategy=_strategy(config),
            max_epochs=config.epochs,
            check_val_every_n_epoch=config.validate_every,
            accumulate_grad_batches=config.accumulate,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[files, *_precision(config, device), *_environment()],
            callbacks=[
                UnreadableImages(run.folder / UNREADABLE, limits),
                ProgressBar(config.epochs, images_per_epoch),
                TensorBoardLog(run.folder, config.log_steps),
                RunFiles(run.folder, config, files, stop),
            ],
        )
        try:
            trainer.fit(task, datamodule=data, ckpt_path=run.resume_from, weights_only=True)
        except (TrainingInterrupted, SystemExit) as interruption:
            # Lightning answers a second Ctrl-C with SystemExit.
            last = run.folder / LAST
            saved = f"{last} has the state: the same command continues from it"
            if is_first_process():
                print("stopped;", saved if last.is_file() else "nothing was saved yet")
            raise KeyboardInterrupt from interruption
        except RuntimeError as error:
            raise _in_words(error, task, device) from error


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch compute with so many threads inside the block; None: with as many as it does anyway."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether this is how a device says that its memory is too small."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _in_words(error: RuntimeError, task: Task, device: str) -> Exception:
    """What a user can do about an error of torch; the error itself, if that is unknown."""
    if out_of_memory(error):
        advice = memory_advice(task.config, device, task.card.preprocessing["input_size"], error)
        if not is_first_process():  # the others don't know it
            print(f"process {task.global_rank}: {advice}", file=sys.stderr, flush=True)
        return ValueError(advice)
    if task.config.processes > 1 and re.search(r"Connection (closed|reset)|Broken pipe", str(error)):
        return OSError(
            "another process of this run has stopped; what it said is above. The same command continues from the last "
            "checkpoint"
        )
    return error


def memory_advice(config: TrainConfig, device: str, input_size: tuple[int, ...], error: RuntimeError) -> str:
    """What was asked for, and which settings to lower to which numbers."""
    found = re.search(r"tried to allocate ([\d.]+) ?(MiB|GiB|bytes)", str(error), re.IGNORECASE)
    asked = ""
    if found:
        gigabytes = float(found[1]) / {"bytes": 2**30, "MiB": 2**10, "GiB": 1}[found[2]]
        asked = f", when {gigabytes:.2f} GiB more were asked for"
    height, width = input_size[-2:]
    half = max(1, config.batch_size // 2)
    advice = []
    if config.batch_size > 1:
        advice.append(f"batch_size={half} accumulate={2 * config.accumulate} (the same steps in about half the memory)")
    if not config.grad_checkpointing:
        advice.append("grad_checkpointing=true (more time)")
    if config.precision == "float32" and device != "cpu":
        advice.append("precision=bfloat16")
    advice.append(f"a smaller input, such as {round(height * 0.7)} x {round(width * 0.7)} (half the pixels)")
    return (
        f"out of memory on {device} with batch_size={config.batch_size} images of {height} x {width}{asked}. "
        f"Try {'; '.join(advice)}. The run continues from its last checkpoint; after a change of settings with --force"
    )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advertisements and hints that don't apply here off the screen."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Digits are in memory: worker processes would slow them down.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*training_step. returned .None.*")
        # Lightning's own use of an old name in torch.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        # The averaged copy of the model is meant to be in eval mode.
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        # Depthwise weights have two equal layouts in memory; the sum over processes is the same.
        warnings.filterwarnings("ignore", message=".*Grad strides do not match bucket view strides.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _strategy(config: TrainConfig) -> Strategy | str:
    if config.processes == 1:
        return "auto"
    if config.strategy == "ddp":
        return DDPStrategy()
    return ModelParallelStrategy(config.processes, tensor_parallel_size=1, save_distributed_checkpoint=False)


def _precision(config: TrainConfig, device: str) -> list[Any]:
    """Given by hand: asked for float16 on a CPU, Lightning's trainer would take bfloat16 instead."""
    if config.precision == "float32":
        return []
    return [MixedPrecision(PRECISIONS[config.precision], device)]  # type: ignore[arg-type]


def _environment() -> list[Any]:
    """Under SLURM, a job that is sent back to the queue continues by the same command: no second mechanism."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
