"""BatchNorm over the images of all processes."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from visionssm.heads.norms import SyncBatchNorm, use_sync_batch_norm


def fresh(kind, channels=5):
    torch.manual_seed(0)
    norm = kind(channels)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    return norm


def whole_batch():
    x = torch.randn(6, 5, 3, 4, generator=torch.Generator().manual_seed(1)) * 3 + 1
    return x, torch.randn(x.shape, generator=torch.Generator().manual_seed(2))


def one_process(rank, file, results):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    x, weights = (part[(slice(0, 4), slice(4, 6))[rank]] for part in whole_batch())
    x = x.clone().requires_grad_()
    norm = fresh(SyncBatchNorm).train()
    y = norm(x)
    (y * weights).sum().backward()
    for parameter in norm.parameters():
        dist.all_reduce(parameter.grad)
    torch.save(
        [y.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var], f"{results}/{rank}"
    )
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one_with_the_whole_batch(tmp_path):
    """Outputs, gradients and running statistics, with batches of 4 and 2."""
    mp.start_processes(one_process, args=(tmp_path / "store", tmp_path), nprocs=2, start_method="spawn")
    parts = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    x, weights = whole_batch()
    x.requires_grad_()
    norm = fresh(nn.BatchNorm2d).train()
    y = norm(x)
    (y * weights).sum().backward()
    torch.testing.assert_close(torch.cat([p[0] for p in parts]), y)
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), x.grad, rtol=1e-4, atol=1e-5)
    for part in parts:
        expected = (norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var)
        for found, value in zip(part[2:], expected, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_alone_it_is_a_batch_norm(training):
    norms = [fresh(kind).train(training) for kind in (SyncBatchNorm, nn.BatchNorm2d)]
    x = whole_batch()[0]
    assert torch.equal(norms[0](x), norms[1](x))
    assert torch.equal(norms[0].running_var, norms[1].running_var)


def test_one_value_per_channel_uses_the_running_statistics():
    norm = fresh(SyncBatchNorm).train()
    norm(whole_batch()[0])
    x, statistics = torch.randn(1, 5, 1, 1), norm.running_mean.clone()
    found = norm(x)
    assert torch.equal(norm.running_mean, statistics)
    assert torch.equal(found, norm.eval()(x))
    empty = norm.train()(torch.zeros(0, 5, 3, 3, requires_grad=True))
    empty.sum().backward()
    assert empty.shape == (0, 5, 3, 3) and torch.equal(norm.running_mean, statistics)


def test_replacing_keeps_the_values():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Sequential(fresh(nn.BatchNorm2d), nn.ReLU()))
    expected = model.state_dict()
    x = torch.randn(2, 3, 8, 8)
    before = model.eval()(x)
    use_sync_batch_norm(model)
    assert isinstance(model[1][0], SyncBatchNorm) and model.state_dict().keys() == expected.keys()
    assert torch.equal(model.eval()(x), before)
