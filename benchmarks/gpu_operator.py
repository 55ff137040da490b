"""The operator on a GPU: times against what the device could do at best, and against the sequence of the published codes."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from gpu_correctness import cut
from torch import Tensor

from visionssm.ops import path_scan, paths, triton_launch
from visionssm.ops.tensors import ScanTensors
from visionssm.ops.triton_plan import Blocks

INPUT_SETS = 3  # so that small maps don't stay in the cache from call to call
INSTRUCTIONS = {1: 35, 8: 88, 16: 133}  # per step of a channel, by N, as disassembled for sm_90


@dataclass(frozen=True)
class Shape:
    """One call of the operator; with `per_path`, every path has an input and an output of its own."""

    name: str
    batch: int
    H: int
    W: int
    E: int
    N: int
    R: int
    K: int
    per_path: bool = False

    @property
    def L(self) -> int:
        return self.H * self.W

    @property
    def steps(self) -> int:
        return self.batch * self.L * self.K * self.E


SHAPES = (
    Shape("VMamba-T stage 1", 128, 56, 56, 96, 1, 6, 4),
    Shape("VMamba-T stage 2", 128, 28, 28, 192, 1, 12, 4),
    Shape("VMamba-T stage 3", 128, 14, 14, 384, 1, 24, 4),
    Shape("VMamba-T stage 4", 128, 7, 7, 768, 1, 48, 4),
    Shape("Vim-Ti 224", 128, 1, 197, 384, 16, 12, 2, per_path=True),
    Shape("Vim-S 224", 128, 1, 197, 768, 16, 24, 2, per_path=True),
    Shape("Vim-Ti 1248", 8, 1, 6085, 384, 16, 12, 2, per_path=True),
    Shape("MambaVision-T stage 3", 128, 14, 14, 160, 8, 20, 1),
    Shape("MambaVision-T stage 4", 128, 7, 7, 320, 8, 40, 1),
    Shape("GroupMamba-T stage 1", 128, 56, 56, 16, 1, 1, 4, per_path=True),
    Shape("GroupMamba-T stage 3", 128, 14, 14, 87, 1, 6, 4, per_path=True),
    Shape("VMamba-T detection stage 1", 2, 200, 320, 96, 1, 6, 4),
    Shape("VMamba-T v0 stage 1", 128, 56, 56, 192, 16, 6, 4),
)
TINY = (Shape("VMamba-T stage 1", 1, 1, 3, 2, 1, 1, 4), Shape("Vim-Ti 224", 1, 1, 2, 2, 8, 1, 2, per_path=True))


class Device(NamedTuple):
    """What the floors are made of; the processors' clock in Hz, copied bytes per second."""

    kind: str
    processors: int
    clock: float
    copy: float


def make_inputs(shape: Shape, device: str, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> ScanTensors:
    """As models give them: dt, B and C are slices of one projection."""
    generator = torch.Generator(device).manual_seed(seed)
    batch, L, E, N, R, K = shape.batch, shape.L, shape.E, shape.N, shape.R, shape.K

    def normal(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(size, generator=generator, device=device, dtype=dtype)

    dt, B, C = normal(batch, L, K, R + 2 * N).split([R, N, N], dim=3)
    walk = {1: paths.raster, 2: paths.forward_backward, 4: paths.cross}[K]
    exact = torch.float32
    return ScanTensors(
        x=normal(batch, L, K, E) if shape.per_path else normal(batch, L, E), dt=dt,
        A=-torch.rand(K, E, N, generator=generator, device=device) * N - 0.1, B=B, C=C, D=normal(K, E, dtype=exact),
        dt_bias=normal(K, E, dtype=exact) - 3, dt_weight=normal(K, E, R) / R**0.5,
        path=walk(shape.H, shape.W, device=device), initial_state=None,
    )  # fmt: skip


def input_sets(shape: Shape, device: Device) -> list[ScanTensors]:
    return [
        make_inputs(shape, device.kind, seed) for seed in range(INPUT_SETS if device.kind.startswith("cuda") else 1)
    ]


def forward(inputs: ScanTensors) -> Tensor:
    with torch.no_grad():
        y = path_scan(**inputs._asdict(), merge=inputs.x.dim() == 3, backend="triton")
    assert isinstance(y, Tensor)
    return y


def prepare_backward(inputs: ScanTensors) -> Callable[[], Any]:
    """The backward of one call, without autograd, so that a graph can hold it alone."""
    options = (True, False, inputs.x.dim() == 3, True, False, "triton")
    y, last, checkpoints = torch.ops.visionssm.path_scan(*inputs, *options, inputs.x.dtype, True)
    grad_y, grad_last = torch.randn_like(y), torch.zeros_like(last)
    return lambda: torch.ops.visionssm.path_scan_backward(grad_y, grad_last, *inputs, checkpoints, *options)


def prepare_unfused(inputs: ScanTensors) -> Callable[[], Tensor]:
    """The same as the published codes do it: each path's copy of x, dense dt, a scan of sequences, copies back, their sum.

    The scan is our own kernel, which here walks every sequence straight on; so what differs is the copies.
    """
    x, dt, A, B, C, D, dt_bias, dt_weight, path, _ = inputs
    K, L = path.shape
    merge = x.dim() == 3
    straight, back = paths.raster(1, L, device=x.device).expand(K, L), paths.inverse(path, L)

    def read(values: Tensor, table: Tensor) -> Tensor:
        return torch.stack([values[:, :, k].index_select(1, table[k]) for k in range(K)], 2)

    def run() -> Tensor:
        walked = torch.stack([x.index_select(1, row) for row in path], 2) if merge else read(x, path)
        delta = torch.einsum("blkr,ker->blke", read(dt, path), dt_weight)
        y = path_scan(
            walked, delta, A, read(B, path), read(C, path), D, dt_bias, straight, merge=False, backend="triton",
            out_dtype=torch.float32 if merge else x.dtype,
        )  # fmt: skip
        assert isinstance(y, Tensor)
        y = read(y, back)
        return y.sum(2).to(x.dtype) if merge else y

    return run


def with_mamba_ssm(inputs: ScanTensors, scan: Callable[..., Tensor]) -> Callable[[], Tensor]:
    """The same with `selective_scan_fn` of mamba_ssm, in its own layout: channels first, one group of channels per path."""
    x, dt, A, B, C, D, dt_bias, dt_weight, path, _ = inputs
    batch, (K, L), E = x.shape[0], path.shape, A.shape[1]
    back = paths.inverse(path, L)
    weight, bias = dt_weight, dt_bias
    assert weight is not None and bias is not None and D is not None
    maps = x.expand(K, *x.shape).permute(1, 0, 3, 2) if x.dim() == 3 else x.permute(0, 2, 3, 1)
    maps = maps.contiguous()  # (batch, K, E, L), as models in this layout have them

    def run() -> Tensor:
        def walked(values: Tensor) -> Tensor:
            return torch.stack([values[:, k].index_select(-1, path[k]) for k in range(K)], 1)

        delta = torch.einsum("blkr,ker->bkel", dt, weight)
        y = scan(
            walked(maps).flatten(1, 2), walked(delta).flatten(1, 2), A.flatten(0, 1), walked(B.permute(0, 2, 3, 1)).contiguous(),
            walked(C.permute(0, 2, 3, 1)).contiguous(), D.flatten(), None, bias.flatten(), True,
        ).view(batch, K, E, L)  # fmt: skip
        y = torch.stack([y[:, k].index_select(-1, back[k]) for k in range(K)], 1)
        return y.sum(1) if x.dim() == 3 else y

    return run


def microseconds(calls: Sequence[Callable[[], Any]], device: str, budget: float = 0.3) -> dict[str, Any]:
    """Median, 20th and 80th percentile of a call's time. On a GPU all calls are captured in one graph, whose replays are timed, so
    that the time of launching from Python stays out; this also shows that the call can be captured.
    """
    for call in calls:
        call()
    if not device.startswith("cuda"):
        return _summary([_clock(call) for call in calls])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    graph.replay()
    torch.cuda.synchronize()
    times: list[float] = []
    stop = time.perf_counter() + budget
    while len(times) < 5 or (time.perf_counter() < stop and len(times) < 300):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    del kept
    return _summary(times)


def _clock(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e6


def _summary(times: list[float]) -> dict[str, Any]:
    ordered = sorted(times)
    return {
        "us": statistics.median(ordered), "p20_us": ordered[len(ordered) // 5], "p80_us": ordered[len(ordered) * 4 // 5],
        "runs": len(ordered),
    }  # fmt: skip


def floors(shape: Shape, device: Device) -> dict[str, float]:
    """Microseconds that one call takes at 100 % of each resource."""
    E, K, N, R = shape.E, shape.K, shape.N, shape.R
    maps = 2 * (K if shape.per_path else 1) * E  # x and y
    lanes = device.processors * 128 * device.clock
    return {
        "bytes_us": shape.batch * shape.L * 2 * (maps + K * (R + 2 * N)) / device.copy * 1e6,
        "exponentials_us": shape.steps * (N + 1) / (device.processors * 16 * device.clock) * 1e6,
        "issue_us": shape.steps * INSTRUCTIONS[N] / lanes * 1e6,
    }


def measure(shape: Shape, device: Device) -> dict[str, Any]:
    """Times of forward and backward, of the unfused sequence, and of the other ways to add up the paths."""
    sets = input_sets(shape, device)
    result: dict[str, Any] = {"shape": asdict(shape), "floors": floors(shape, device)}
    expected, found = prepare_unfused(sets[0])().double(), forward(sets[0]).double()
    result["error"] = float((found - expected).norm() / expected.norm())
    if not result["error"] < 2e-2:
        return {**result, "failed": "forward and the unfused sequence differ; nothing was timed"}
    start = time.perf_counter()
    forward(sets[0])
    result["host_us"] = (time.perf_counter() - start) * 1e6  # until the call returns; on a GPU the kernels may run on
    result["forward"] = microseconds([lambda s=s: forward(s) for s in sets], device.kind)
    result["unfused"] = microseconds([prepare_unfused(s) for s in sets], device.kind)
    result["backward"] = microseconds([prepare_backward(s) for s in sets], device.kind)
    if shape.K == 4 and shape.N == 1 and not shape.per_path:
        for way in ("serial", "parts", "pairs, serial", "pairs, parts"):
            with cut(way):
                result[way] = microseconds([lambda s=s: forward(s) for s in sets], device.kind)
    return result


def measure_mamba_ssm(shape: Shape, device: Device) -> dict[str, Any] | None:
    """The published codes' sequence with mamba_ssm's kernel, where that is installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    sets = input_sets(shape, device)
    return microseconds([with_mamba_ssm(s, selective_scan_fn) for s in sets], device.kind)


def try_blocks(shape: Shape, device: Device) -> list[dict[str, Any]]:
    """Forward and backward with other blocks than the shipped ones, for the table in `triton_plan`."""
    sets = input_sets(shape, device)
    if shape.N == 1:
        candidates = {"forward_blocks": [Blocks(32, 32, 1), Blocks(32, 16, 1), Blocks(64, 16, 2)]}
    else:
        candidates = {"forward_blocks": [Blocks(32, 1, 1), Blocks(32, 2, 1), Blocks(32, 4, 1)]}
    candidates["backward_blocks"] = [Blocks(64, 8, 2), Blocks(32, 8, 1), Blocks(32, 16, 1)]
    found = []
    for function, choices in candidates.items():
        for blocks in choices:
            with patch.object(triton_launch, function, lambda *_, blocks=blocks: blocks):
                backward = function == "backward_blocks"
                calls = [prepare_backward(s) if backward else (lambda s=s: forward(s)) for s in sets]
                found.append(
                    {"shape": shape.name, "choice": function, **blocks._asdict(), **microseconds(calls, device.kind)}
                )
    return found
