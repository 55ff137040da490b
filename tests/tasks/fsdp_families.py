"""Run by `test_processes.py` under torchrun: a step of every family, shared out over the processes, against a whole one."""

import copy

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh

import visionssm
from visionssm.tasks.parallel import shard


def main() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rank, processes = dist.get_rank(), dist.get_world_size()
    for name in visionssm.list_models("*_nano"):
        torch.manual_seed(0)
        # In eval mode BatchNorm doesn't depend on how the images are shared out.
        whole = visionssm.create_model(name).eval()
        parts = copy.deepcopy(whole)
        shard(parts, mesh)
        images, labels = torch.randn(4, *whole.pretrained_cfg["input_size"]), torch.randint(10, (4,))
        for model, own in ((whole, slice(None)), (parts, slice(rank, None, processes))):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            torch.nn.functional.cross_entropy(model(images[own]), labels[own]).backward()
            optimizer.step()
        state = get_model_state_dict(parts, options=StateDictOptions(full_state_dict=True))
        if rank == 0:
            for key, value in whole.state_dict().items():
                torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5, msg=f"{name}: {key}")
            elements = sum(p.to_local().numel() for p in parts.parameters())
            total = sum(p.numel() for p in whole.parameters())
            print(f"{name} {elements / total:.2f} of the parameters here", flush=True)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
