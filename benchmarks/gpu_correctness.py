"""The Triton kernels on a real compiler against the definition in float64: the calls of the tests, cut in every way."""

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from triton_cases import CASES, LARGER, PAIRS

from visionssm.ops import path_scan, paths, triton_plan
from visionssm.ops.triton_plan import Merge

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Inputs are rounded before both sides see them: what is left is rounding of results, and of float32 arithmetic.
LIMITS = {
    "float32": 5e-6,
    "bfloat16": 2 * torch.finfo(torch.bfloat16).eps,
    "float16": 2 * torch.finfo(torch.float16).eps,
}

# Ways to cut a call that small inputs would not take by themselves.
CUTS: dict[str, dict[str, Any]] = {
    "as planned": {},
    "serial": {"choose_merge": lambda warps, enough, mirrored: Merge(pair=False, serial=True)},
    "parts": {"choose_merge": lambda warps, enough, mirrored: Merge(pair=False, serial=False)},
    "pairs, serial": {"choose_merge": lambda warps, enough, mirrored: Merge(pair=mirrored, serial=True)},
    "pairs, parts": {"choose_merge": lambda warps, enough, mirrored: Merge(pair=mirrored, serial=False)},
    "chunks": {"CHUNK_STEPS": 16},
    "64-bit addresses": {"INT32_LIMIT": 0},
}


class Task(NamedTuple):
    """One call to check."""

    case: str
    cut: str
    dtype: str
    device: str


@contextmanager
def cut(name: str) -> Iterator[None]:
    """Inside the block calls are cut in this way."""
    with ExitStack() as stack:
        for attribute, value in CUTS[name].items():
            stack.enter_context(patch.object(triton_plan, attribute, value))
        yield


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside the block, what torch.empty gives is full of NaN, so that no result can come from memory that no kernel wrote."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def find_case(name: str) -> Any:
    kind, _, key = name.partition("/")
    return {"case": CASES, "pair": PAIRS, "larger": LARGER}[kind][key]()


def tasks(device: str, tiny: bool) -> list[Task]:
    """Every call in float32; low precision and other cuts where they meet other code."""
    if tiny:
        names = [("case/four_unlike_paths", "as planned", "float32"), ("pair/one_pair", "pairs, serial", "bfloat16")]
        return [Task(*name, device) for name in names]
    found = [Task(f"case/{name}", "as planned", dtype, device) for name in CASES for dtype in DTYPES]
    found += [
        Task(f"larger/{name}", "as planned", dtype, device) for name in LARGER for dtype in ("float32", "bfloat16")
    ]
    found += [
        Task(f"pair/{name}", way, "float32", device) for name in PAIRS for way in ("pairs, serial", "pairs, parts")
    ]
    found += [Task("larger/vmamba", way, "bfloat16", device) for way in CUTS if way not in ("as planned", "chunks")]
    for name in ("case/four_paths", "case/incomplete", "case/eight_states", "case/four_unlike_paths"):
        found += [Task(name, way, "float32", device) for way in ("serial", "parts", "64-bit addresses")]
    return [*found, *(Task("larger/long", "chunks", dtype, device) for dtype in DTYPES)]


def run(task: Task) -> dict[str, Any]:
    """Relative errors of y, the last state and all gradients, and whether a second run gives the same bits."""
    case, dtype = find_case(task.case), DTYPES[task.dtype]
    expected = case.gradients("reference")
    with poisoned_memory(), cut(task.cut):
        here = case.to(task.device)
        found, again = here.gradients("triton", dtype), here.gradients("triton", dtype)
    errors = {
        key: float((found[key].cpu().double() - value).norm() / max(float(value.norm()), 1e-30))
        for key, value in expected.items()
    }
    same = all(torch.equal(found[key], again[key]) for key in found)
    right = all(error < LIMITS[task.dtype] for error in errors.values())  # not so for NaN
    return {
        **task._asdict(),
        "errors": errors,
        "worst": max(errors.values()),
        "same_bits": same,
        "passed": right and same,
    }


def run_or_tell(task: Task) -> dict[str, Any]:
    try:
        return run(task)
    except Exception as error:  # one kernel that doesn't compile must not hide what the others do
        return {**task._asdict(), "passed": False, "error": f"{type(error).__name__}: {error}"[:2000]}


def run_all(device: str, tiny: bool, workers: int) -> list[dict[str, Any]]:
    """All tasks, in several processes, for most of the time goes into compiling."""
    wanted = tasks(device, tiny)
    if workers < 2:
        return [run_or_tell(task) for task in wanted]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(run_or_tell, wanted))


def above_2_to_the_31(device: str, tiny: bool) -> list[dict[str, Any]]:
    """Maps of more elements than 32 bits can count, within one image and over a batch, against the same channels or image alone."""
    side, images, cells = (3, 2, 2) if tiny else (4096, 70, 512)
    E = 33 if tiny else 136
    results = []
    with cut("64-bit addresses" if tiny else "as planned"):
        results.append(one_large_image(device, side, E))
    results.append(one_large_batch(device, images, cells, E))
    return results


def draw(device: str, batch: int, side: int, E: int) -> dict[str, Any]:
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    L, R = side * side, 4
    return {
        "x": normal(batch, L, E), "dt": normal(batch, L, 1, R), "A": -normal(1, E, 1, dtype=torch.float32).abs() - 0.1,
        "B": normal(batch, L, 1, 1), "C": normal(batch, L, 1, 1), "D": normal(1, E, dtype=torch.float32),
        "dt_bias": normal(1, E, dtype=torch.float32), "path": paths.raster(side, side, device=device),
        "dt_weight": normal(1, E, R) / 2,
    }  # fmt: skip


def scan_and_gradient(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """y, and the gradient of the sum of its squares by x."""
    x = inputs["x"].detach().requires_grad_()
    y = path_scan(**{**inputs, "x": x}, backend="triton")
    assert isinstance(y, torch.Tensor)
    return y.detach(), torch.autograd.grad(y, x, y.detach())[0]


def compare(name: str, elements: int, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, Any]:
    errors = [float((found.float() - expected.float()).norm() / expected.float().norm()) for found, expected in pairs]
    return {
        "case": name,
        "elements": elements,
        "worst": max(errors),
        "passed": all(e < LIMITS["bfloat16"] for e in errors),
    }


def one_large_image(device: str, side: int, E: int) -> dict[str, Any]:
    inputs = draw(device, 1, side, E)
    y, dx = scan_and_gradient(inputs)
    pairs = []
    for some in (slice(0, 8), slice(E - 8, E)):
        alone = {key: inputs[key][:, some].contiguous() for key in ("A", "D", "dt_bias", "dt_weight")}
        y_alone, dx_alone = scan_and_gradient({**inputs, **alone, "x": inputs["x"][:, :, some].contiguous()})
        pairs += [(y[:, :, some], y_alone), (dx[:, :, some], dx_alone)]
    return compare("one image", y.numel(), pairs)


def one_large_batch(device: str, images: int, side: int, E: int) -> dict[str, Any]:
    inputs = draw(device, images, side, E)
    y, dx = scan_and_gradient(inputs)
    last = {key: inputs[key][-1:].contiguous() for key in ("x", "dt", "B", "C")}
    y_last, dx_last = scan_and_gradient({**inputs, **last})
    return compare("a batch", y.numel(), [(y[-1:], y_last), (dx[-1:], dx_last)])
