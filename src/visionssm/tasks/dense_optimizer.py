"""Optimizer and learning rate of detectors and segmenters, as their published training has them."""

import math
from bisect import bisect_right
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

from visionssm.tasks.dense_config import DenseConfig
from visionssm.tasks.optimizer import learning_rates, parameter_groups

BACKBONE = "backbone.body.model."


def make_dense_optimizer(model: nn.Module, config: DenseConfig) -> torch.optim.Optimizer:
    """timm's optimizer of the settings."""
    assert config.optimizer is not None
    if config.no_decay is None:
        groups = parameter_groups(model, config.weight_decay, config.layer_decay, config.decay_rule)
    else:
        groups = named_groups(model, config.weight_decay, config.layer_decay, config.no_decay)
    return create_optimizer_v2(groups, opt=config.optimizer, lr=learning_rates(config).lr, **config.optimizer_kwargs)


def named_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None, no_decay: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Parameter groups where weight decay spares what is called so in the published code, and nothing else.

    mmdetection's and mmsegmentation's runs spare names that contain "norm": biases, and norms that are known by a number
    or as "bn", decay. The heads' norms are such, so only the backbone is searched, by its published names.

    Args:
        model: of `visionssm.heads`.
        weight_decay: of the groups that decay.
        layer_decay: factor of the learning rate from each layer of the backbone to the one below it; None: one rate.
        no_decay: parts of names.

    Returns:
        Dictionaries with `params`, `weight_decay` and `lr_scale`. Frozen parameters are in none.
    """
    table: Any = getattr(model.get_submodule(BACKBONE.rstrip(".")), "key_table", None)
    scales = _layer_scales(model, layer_decay)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if _is_named(name, parameter, table, no_decay) else weight_decay
        empty = {"params": [], "weight_decay": decay, "lr_scale": scales[name]}
        groups.setdefault((decay, scales[name]), empty)["params"].append(parameter)
    return list(groups.values())


class DenseSchedule:
    """The learning rate as a function of the step: a linear warm-up times the schedule, as in the published code.

    Args:
        optimizer: whose groups are set, each times its `lr_scale`.
        config: settings with nothing left open.
        steps_per_epoch: optimizer steps.

    Example:
        >>> config = DenseConfig(lr=1.0, epochs=12, schedule="steps", milestones=(8, 11), warmup_steps=4, warmup_lr=0.0)
        >>> schedule = DenseSchedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), config, steps_per_epoch=10)
        >>> [round(schedule.rate(step), 4) for step in (0, 1, 4, 79, 80, 110)]
        [0.0, 0.25, 1.0, 1.0, 0.1, 0.01]
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: DenseConfig, steps_per_epoch: int):
        assert config.epochs is not None
        self.optimizer = optimizer
        self.kind = config.schedule
        self.milestones = [milestone * steps_per_epoch for milestone in config.milestones]
        self.steps = config.epochs * steps_per_epoch
        self.warmup_steps = config.warmup_steps
        if self.warmup_steps is None:
            self.warmup_steps = round((config.warmup_epochs or 0) * steps_per_epoch)
        self.lr, self.warmup_lr, self.min_lr = learning_rates(config)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0 over the whole run."""
        done = min(step / self.steps, 1.0)
        if self.kind == "steps":
            rate = self.lr * 0.1 ** bisect_right(self.milestones, step)
        elif self.kind == "linear":
            rate = self.min_lr + (self.lr - self.min_lr) * (1 - done)
        else:
            rate = self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * done)) / 2
        if self.warmup_steps and step < self.warmup_steps:
            start = self.warmup_lr / self.lr
            rate *= start + (1 - start) * step / self.warmup_steps
        return rate

    def set(self, epoch: int, step: int) -> None:
        """Set the learning rates of a step."""
        rate = self.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)


def _layer_scales(model: nn.Module, layer_decay: float | None) -> dict[str, float]:
    names = [name for name, _ in model.named_parameters()]
    if layer_decay is None:
        return dict.fromkeys(names, 1.0)
    layers: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    last = max(layers.values())
    return {name: layer_decay ** (last - layers.get(name, last)) for name in names}


def _is_named(name: str, parameter: nn.Parameter, table: Any, parts: tuple[str, ...]) -> bool:
    """Whether a tensor of the backbone has one of these parts in its published name."""
    if not name.startswith(BACKBONE):
        return False
    own = name.removeprefix(BACKBONE)
    published = [own]
    if table is not None:
        published = list(table.to_published({own: torch.empty(parameter.shape, device="meta")}))
    return any(part in key for key in published for part in parts)
