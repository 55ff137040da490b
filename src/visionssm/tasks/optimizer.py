"""Optimizer and learning rate of a run: which tensors decay, and what the rate is at every step."""

from typing import Any, NamedTuple

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from torch import nn

from visionssm.tasks.config import LR_SCALINGS, TrainConfig

_POSITIONS_AND_TOKENS = ("pos_embed", "cls_token", "cls_token_head", "cls_token_tail")


class LearningRates(NamedTuple):
    """Of a run: at the top, at the start of the warm-up, and at the end."""

    lr: float
    warmup_lr: float
    min_lr: float


def learning_rates(config: TrainConfig) -> LearningRates:
    """The learning rates for the batch of a run, scaled by the rule of the settings where they are for another one.

    Example:
        >>> learning_rates(TrainConfig(batch_size=128, accumulate=2, lr=1e-3, lr_batch=1024, lr_scaling="linear"))
        LearningRates(lr=0.00025, warmup_lr=1e-05, min_lr=1e-05)
    """
    assert config.lr is not None
    factor = (config.global_batch / config.lr_batch) ** LR_SCALINGS[config.lr_scaling] if config.lr_batch else 1.0
    ends = factor if config.lr_scaling_ends else 1.0
    lr = config.lr * factor
    warmup_lr = config.min_lr if config.warmup_lr is None else config.warmup_lr
    return LearningRates(lr, min(warmup_lr * ends, lr), min(config.min_lr * ends, lr))


def scaling_in_words(config: TrainConfig) -> str | None:
    """What scaling does to the learning rate, for the screen; None where the batch is the one that it is for.

    Example:
        >>> scaling_in_words(TrainConfig(batch_size=256, lr=1e-3, lr_batch=1024, lr_scaling="linear"))
        'lr 0.001 is for a global batch of 1024; this one has 256: scaled (linear) to 0.00025'
    """
    if config.lr_batch in (None, config.global_batch):
        return None
    facts = f"lr {config.lr:g} is for a global batch of {config.lr_batch}; this one has {config.global_batch}"
    if config.lr_scaling == "none":
        return f"{facts}: not scaled (lr_scaling: none)"
    return f"{facts}: scaled ({config.lr_scaling}) to {learning_rates(config).lr:g}"


def exempt_from_decay(model: nn.Module, rule: str = "model") -> set[str]:
    """Names of the parameters that weight decay leaves alone.

    Vectors and biases in any case. This library stacks the vectors of several scan paths into one tensor; what counts is
    the shape in which a tensor is published.

    Args:
        model: one of this library or of timm.
        rule: "model" adds what the model's `no_weight_decay` names: of our models the tensors of the recurrence, and
            position and class tokens. "published" adds position and class tokens only: the published training scripts
            decay A, and VMamba's also the bias of dt, which their marks on these tensors were to prevent.

    Example:
        >>> import visionssm
        >>> with torch.device("meta"):
        ...     model = visionssm.create_model("vim_nano")
        >>> "blocks.0.mixer.scan.A_log" in exempt_from_decay(model)
        True
        >>> sorted(exempt_from_decay(model) - exempt_from_decay(model, "published"))
        ['blocks.0.mixer.scan.A_log', ...]
    """
    exempt = {name for name, parameter in model.named_parameters() if _is_vector(model, name, parameter)}
    if rule == "published":
        return exempt | {name for name, _ in model.named_parameters() if name in _POSITIONS_AND_TOKENS}
    kept: Any = getattr(model, "no_weight_decay", set)
    return exempt | set(kept())


def _is_vector(model: nn.Module, name: str, parameter: torch.Tensor) -> bool:
    """Whether the published form of a parameter is a vector or a bias, or each of the tensors that it is made of."""
    table: Any = getattr(model, "key_table", None)
    shape = torch.empty(parameter.shape, device="meta")
    published = {name: shape} if table is None else table.to_published({name: shape})
    return all(value.ndim <= 1 or key.endswith(".bias") for key, value in published.items())


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None = None, rule: str = "model"
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, by weight decay and, with `layer_decay`, by depth.

    Args:
        model: one of this library or of timm.
        weight_decay: of the groups that decay.
        layer_decay: factor of the learning rate from each layer to the one below it; None: one rate for all.
        rule: see :func:`exempt_from_decay`.

    Returns:
        Dictionaries with `params`, `weight_decay` and, with `layer_decay`, `lr_scale`. Frozen parameters are in none.
    """
    exempt = exempt_from_decay(model, rule)
    # timm spares vectors by itself, and compares every parameter with every name in this list.
    exempt = {name for name, parameter in model.named_parameters() if name in exempt and parameter.ndim > 1}
    if layer_decay is None:
        return param_groups_weight_decay(model, weight_decay, no_weight_decay_list=exempt)
    return param_groups_layer_decay(model, weight_decay, no_weight_decay_list=exempt, layer_decay=layer_decay)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """timm's optimizer of the settings, over the groups of :func:`parameter_groups`."""
    groups = parameter_groups(model, config.weight_decay, config.layer_decay, config.decay_rule)
    lr = learning_rates(config).lr
    return create_optimizer_v2(groups, opt=config.optimizer, lr=lr, **config.optimizer_kwargs)


class Schedule:
    """Warm-up, cosine and cool-down: the learning rate is a function of the position in training, without a state.

    Args:
        optimizer: whose groups are set.
        config: settings with nothing left open.
        steps_per_epoch: optimizer steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int):
        assert config.epochs is not None
        assert config.warmup_epochs is not None
        rates = learning_rates(config)
        self.by_epoch = config.schedule_by_epoch
        span = config.epochs - config.cooldown_epochs - (config.warmup_epochs if config.warmup_first else 0)
        self.schedule, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            num_epochs=span,  # type: ignore[arg-type]  # a fraction is fine: steps are counted
            min_lr=rates.min_lr,
            warmup_lr=rates.warmup_lr,
            warmup_epochs=config.warmup_epochs,  # type: ignore[arg-type]
            warmup_prefix=config.warmup_first,
            step_on_epochs=self.by_epoch,
            updates_per_epoch=steps_per_epoch,
        )

    def set(self, epoch: int, step: int) -> None:
        """Set the learning rates for a step, both counted from 0 over the whole run."""
        if self.by_epoch:
            self.schedule.step(epoch)
        else:
            self.schedule.step_update(step)
