"""What the processes of a run tell one another."""

import os
import time
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer


def is_first_process() -> bool:
    """Whether this process prints and writes: one of all machines does."""
    return getattr(rank_zero_only, "rank", 0) == 0  # Lightning sets it from the environment


def wait_for_first_process(seconds: float = 10) -> None:
    """Let the first process say what went wrong in all of them: who starts processes ends them all when one has failed."""
    parent, end = os.getppid(), time.monotonic() + seconds
    while os.getppid() == parent and time.monotonic() < end:
        time.sleep(0.1)


def any_process(trainer: Trainer, flag: bool) -> bool:
    """Whether the flag is set in any process. Every process must call this, at the same point."""
    return flag if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(flag, all=False)


def all_values(trainer: Trainer, value: Any) -> list[Any]:
    """The value of every process, in the order of their ranks. Every process must call this, at the same point."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def summed(trainer: Trainer, values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes. Every process must call this, at the same point."""
    return values if trainer.world_size == 1 else trainer.strategy.reduce(values, reduce_op="sum")
