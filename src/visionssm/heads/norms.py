"""BatchNorm over the images of all processes, on every device."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose training statistics are those of all processes' images together, on any device.

    torch's own refuses CPUs, and DistributedDataParallel refuses there whatever is derived from it. Without a process group it
    is a plain BatchNorm. Where there is a single value per channel, or none, which have no variance, it uses the running
    statistics and leaves them alone: one image pooled to one pixel.

    Shapes: (batch, C, H, W) to the same.

    Example:
        >>> SyncBatchNorm(8)(torch.randn(1, 8, 1, 1)).shape
        torch.Size([1, 8, 1, 1])
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        number = input.numel() // input.shape[1]
        if together:
            number = _total(number, input.device)
        if number <= 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        if not together:
            return super().forward(input)
        mean, variance = _statistics(input.float(), number)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (number / (number - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (input.float() * scale[:, None, None] + shift[:, None, None]).to(input.dtype)


def _total(number: int, device: torch.device) -> int:
    """The sum of a number over all processes."""
    total = torch.tensor(number, device=device)
    dist.all_reduce(total)
    return int(total)


def _statistics(x: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel over all processes, with gradients through them."""
    mean: Tensor = _SumOverProcesses.apply(x.sum((0, 2, 3))) / number
    deviations = (x - mean[:, None, None]).square().sum((0, 2, 3))
    return mean, _SumOverProcesses.apply(deviations) / number


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes, whose gradient is the sum of the gradients."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def use_sync_batch_norm(module: nn.Module) -> None:
    """Replaces every BatchNorm2d inside a module by :class:`SyncBatchNorm`; values are kept."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            replacement = SyncBatchNorm(child.num_features, child.eps, child.momentum)
            replacement.load_state_dict(child.state_dict())
            setattr(module, name, replacement)
        else:
            use_sync_batch_norm(child)
