"""The `triton` back-end in Triton's interpreter: every kernel, and every way to cut a call, against the definition in float64.

The interpreter knows the kernels' arithmetic and addresses, not the layouts, speed and rounding of a GPU.
"""

import pytest
import torch
from scan_cases import make_case
from triton_cases import CASES, LARGER, PAIRS

from visionssm.ops import explain_backend, path_scan, paths, selective_scan, triton_launch, triton_plan
from visionssm.ops.tensors import ScanTensors

REFUSAL = explain_backend("cpu")["triton"]
pytestmark = pytest.mark.skipif(REFUSAL is not None, reason=f"triton {REFUSAL}")


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Fills what torch.empty gives with NaN, so that no result can come from memory that no kernel wrote."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def all_paths_in_one_program(monkeypatch):
    """What a batch is given that keeps the whole device busy."""
    monkeypatch.setattr(triton_plan, "WARPS_PER_PROCESSOR", 0)


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(triton_plan, "CHUNK_STEPS", 16)


def check(case, dtype=torch.float32, tolerance=1e-6):
    found, expected = case.gradients("triton", dtype), case.gradients("reference")
    assert found.keys() == expected.keys()
    errors = {key: relative_error(found[key], expected[key]) for key in expected}
    assert {key: value for key, value in errors.items() if not value < tolerance} == {}


def relative_error(value, expected):
    assert value.shape == expected.shape
    return float((value.double() - expected).norm() / max(float(expected.norm()), 1e-30))


@pytest.mark.parametrize("name", CASES)
def test_float32_is_near_float64(name):
    check(CASES[name]())


def test_softplus_off():
    case = make_case(batch=1, path=paths.raster(2, 4), grid=(2, 4), N=1, bias=False, softplus=False)
    case.tensors["dt"] = case.tensors["dt"].abs() / 2
    check(case)


@pytest.mark.usefixtures("all_paths_in_one_program")
@pytest.mark.parametrize("name", ["four_paths", "incomplete", "eight_states", "unmerged"])
def test_paths_summed_in_one_program(name):
    check(CASES[name]())


@pytest.mark.parametrize("serial", [False, True], ids=["parts", "serial"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_path_and_its_reversal_on_one_tile(name, serial, monkeypatch):
    monkeypatch.setattr(
        triton_plan, "choose_merge", lambda warps, enough, mirrored: triton_plan.Merge(mirrored, serial)
    )
    launched = launches(monkeypatch)
    check(PAIRS[name]())
    assert {"pair_forward", "tile_forward"} < launched


def launches(monkeypatch):
    """The names of the kernels that are launched from here on."""
    names, launch = set(), triton_launch._launch

    def remember(call, name, *args, **arguments):
        names.add(name)
        launch(call, name, *args, **arguments)

    monkeypatch.setattr(triton_launch, "_launch", remember)
    return names


def test_how_paths_are_added_up():
    choose = triton_plan.choose_merge
    assert choose(warps=1056, enough=1056, mirrored=True) == (False, True)
    assert choose(warps=768, enough=1056, mirrored=True) == (True, True)
    assert choose(warps=768, enough=1056, mirrored=False) == (False, False)
    assert choose(warps=384, enough=1056, mirrored=True) == (False, False)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("N", [1, 8])
def test_chunks(N):
    """Steps in chunks of 16, the last of them short."""
    path = paths.pad(paths.reverse(paths.raster(5, 13)), 66)
    case = make_case(batch=1, path=path, grid=(5, 13), E=3, N=N, initial_state=True)
    check(case)


def test_chunks_begin_only_where_they_pay(monkeypatch):
    cut = triton_plan._chunks
    assert cut(warps=24, enough=1056, T=64_000) == (91, 704)
    assert cut(warps=2000, enough=1056, T=64_000) == (1, 64_000)
    assert cut(warps=24, enough=1056, T=255) == (1, 255)
    for warps in (1, 7, 24, 640, 1055):
        for T in (256, 257, 6085):
            chunks, steps = cut(warps, 1056, T)
            assert (chunks - 1) * steps < T <= chunks * steps
            assert chunks == 1 or steps % 64 == 0


@pytest.mark.parametrize("name", ["four_paths", "eight_states"])
def test_addresses_above_2_to_the_31(name, monkeypatch):
    monkeypatch.setattr(triton_plan, "INT32_LIMIT", 0)
    check(CASES[name]())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["low_rank", "eight_states"])
def test_low_precision_rounds_inputs_and_results_only(name, dtype):
    """Inputs hold bfloat16 numbers, the state and all sums are float32: what is left is the rounding of results and of dy."""
    check(CASES[name](), dtype, tolerance=2 * torch.finfo(dtype).eps)


def test_same_bits_every_time():
    case = make_case(batch=2, grid=(3, 4), E=40, N=1, rank=3)
    first, second = case.gradients("triton", torch.float32), case.gradients("triton", torch.float32)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_slices_of_one_projection_are_read_in_place():
    """dt, B and C as models pass them; a copy would show in the strides that the kernels get."""
    batch, L, K, E, N, R = 1, 12, 4, 6, 1, 3
    projected = torch.randn(batch, L, K, R + 2 * N)
    dt, B, C = projected.split([R, N, N], dim=-1)
    x, A, weight = torch.randn(batch, L, E), -torch.rand(K, E, N), torch.randn(K, E, R)
    path = paths.cross(3, 4)
    call = triton_plan.prepare(
        ScanTensors(x, dt, A, B, C, None, None, weight, path, None), softplus=True, zoh=False, complete=True
    )
    for name in ("dt", "B", "C"):
        assert call.arguments[name].untyped_storage().data_ptr() == projected.untyped_storage().data_ptr()
    y = path_scan(x, dt, A, B, C, None, None, path, dt_weight=weight, backend="triton")
    copies = (value.contiguous() for value in (dt, B, C))
    dt, B, C = copies
    assert torch.equal(y, path_scan(x, dt, A, B, C, None, None, path, dt_weight=weight, backend="triton"))


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGER)
def test_larger_cases(name):
    check(LARGER[name]())


def test_extreme_steps_are_what_float64_gives():
    """Steps exp(-60) to 60, A from almost nothing to -10 000, a channel for each pair."""
    raw, A = torch.meshgrid(torch.tensor([-60.0, -20.0, 20.0, 60.0]), torch.tensor([-1e-6, -0.5, -1e4]), indexing="ij")
    T, E = 6, raw.numel()
    inputs = {"x": torch.ones(1, T, E), "dt": raw.reshape(1, 1, 1, E).expand(1, T, 1, E), "A": A.reshape(1, E, 1)}
    inputs |= {"B": torch.ones(1, T, 1, 1), "C": torch.ones(1, T, 1, 1)}
    found = {}
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = [value.to(dtype).clone().requires_grad_() for value in inputs.values()]
        y = path_scan(*leaves, None, None, paths.raster(1, T), backend=backend)
        found[backend] = [y, *torch.autograd.grad(y.sum(), leaves)]
    torch.testing.assert_close(found["triton"][0].double(), found["reference"][0], rtol=3e-6, atol=1e-30)
    for name, value, exact in zip(inputs, found["triton"][1:], found["reference"][1:], strict=True):
        assert value.isfinite().all()
        torch.testing.assert_close(value.double(), exact, rtol=2e-5, atol=1e-6 * float(exact.abs().max()), msg=name)


def test_selective_scan_reads_sequences_channels_first():
    u, delta, z = torch.randn(3, 1, 6, 9).unbind()
    A, B, C = -torch.rand(6, 2), torch.randn(1, 3, 2, 9), torch.randn(1, 3, 2, 9)
    found, expected = (
        selective_scan(
            u, delta, A, B, C, torch.ones(6), z, delta_softplus=True, return_last_state=True, backend=backend
        )
        for backend in ("triton", "reference")
    )
    for value, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-6)


def test_empty_batch():
    case = make_case(batch=0, N=2, rank=3)
    found = case.gradients("triton", torch.float32)
    assert found["y"].shape == (0, 35, 6)
    assert found["dA"].abs().max() == 0


def test_cpu_tensors_need_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "TRITON_INTERPRET=1" in explain_backend("cpu")["triton"]
    assert explain_backend("cuda")["triton"] is None
    assert explain_backend("mps")["triton"] == "runs on NVIDIA, AMD and Intel GPUs, got mps"
