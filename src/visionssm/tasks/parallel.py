"""What is done to a model before it is trained: freezing its first layers, and sharing it out over processes."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def freeze_groups(model: nn.Module, groups: int) -> None:
    """Keep the weights of the first layer groups of a model as they are, running statistics included.

    Args:
        model: a model with timm's `group_matcher`.
        groups: how many coarse groups, from the input on: 1 is the stem, 2 the stem and the first stage.

    Raises:
        ValueError: the model has no more groups than these, or doesn't say what they are.

    Example:
        >>> import visionssm
        >>> model = visionssm.create_model("vmamba_nano")
        >>> freeze_groups(model, 1)
        >>> sorted({name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad})
        ['stem']
    """
    if not groups:
        return
    from timm.models import group_parameters

    if not hasattr(model, "group_matcher"):
        raise ValueError(f"freeze={groups}: the model doesn't say what its layer groups are (group_matcher)")
    members = group_parameters(model, model.group_matcher(coarse=True))  # type: ignore[operator]
    numbers = sorted(members)
    if groups >= len(numbers):
        raise ValueError(
            f"freeze={groups}: the model has {len(numbers)} layer groups, and the last one must be trained"
        )
    frozen = {name for number in numbers[:groups] for name in members[number]}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in frozen)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
            module.eval()


def shard(model: nn.Module, mesh: "DeviceMesh") -> None:
    """Split every parameter over the processes (FSDP2), gathered block by block when it is needed.

    Args:
        model: the items of its `nn.Sequential`s and `nn.ModuleList`s named `blocks`, `stages` or `layers` are gathered
            one at a time, everything else at once.
        mesh: the processes.
    """
    from torch.distributed.fsdp import fully_shard

    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("blocks", "layers") and isinstance(module, nn.Sequential | nn.ModuleList):
            for block in module:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def has_unsynchronized_batchnorm(model: nn.Module) -> bool:
    """Whether there is a BatchNorm whose statistics are those of one process."""
    return any(
        isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm) for module in model.modules()
    )


def share_statistics(model: nn.Module) -> None:
    """Give all processes the running statistics of the first, so that they average and judge the same model."""
    for buffer in _statistics(model):
        torch.distributed.broadcast(buffer, 0)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Copies of the running mean and variance of every BatchNorm, which a forward pass changes in place."""
    return [buffer.clone() for buffer in _statistics(model)]


@torch.no_grad()
def restore(model: nn.Module, statistics: list[Tensor]) -> None:
    """Put back what `running_statistics` returned."""
    for buffer, value in zip(_statistics(model), statistics, strict=True):
        buffer.copy_(value)


def _statistics(model: nn.Module) -> list[Tensor]:
    return [buffer for module in model.modules() if isinstance(module, _BatchNorm) for buffer in module.buffers()]
