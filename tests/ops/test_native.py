"""What only the native back-end has: instruction sets, threads, views read in place, and a table that it checks itself."""

import pytest
import torch
from scan_cases import NAMES, cast, make_case

from visionssm.ops import native, path_scan, paths
from visionssm.ops.tensors import ScanTensors

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=f"the native back-end {native.unavailable()}")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


CASES = {
    "vmamba": {"N": 1, "E": 100, "rank": 6},
    "vmamba_dense": {"N": 1, "E": 64},
    "vim": {"N": 16, "E": 33, "rank": 3, "path": paths.forward_backward(5, 7), "input_per_path": True},
    "one_path": {"N": 8, "E": 20, "path": paths.raster(5, 7), "batch": 3},
    "sub_grids": {"N": 7, "E": 48, "path": paths.atrous(5, 7), "initial_state": True},
    "padding": {"N": 2, "E": 16, "path": paths.windows(5, 7, 4), "rank": 2},
    "not_merged": {"N": 4, "E": 17, "merge": False},
    "zoh": {"N": 3, "E": 40, "discretization": "zoh", "initial_state": True},
    "many_states": {"N": 21, "E": 5},
}


def distance(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))


@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set_gives_what_the_reference_gives(instruction_set, name):
    case = make_case(**CASES[name])
    expected = case.gradients("reference")
    bounds = {torch.float64: 1e-12, torch.float32: 2e-6}
    for dtype, bound in bounds.items():
        found = case.gradients("native", dtype)
        assert {
            key: distance(found[key], expected[key]) for key in expected if distance(found[key], expected[key]) > bound
        } == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_every_instruction_set_rounds_to_the_nearest(instruction_set, dtype):
    """The output in 16 bits is the output in float32, rounded as torch rounds: to nearest, ties to even."""
    case = make_case(N=1, E=37, rank=3)
    case.tensors["x"][0, :4] = torch.tensor([1e-7, 3e-6, 6.1e-5, 300.0], dtype=torch.float64)[:, None]
    exact, _ = case.run("native", dtype, out_dtype=torch.float32)
    found, _ = case.run("native", dtype)
    assert torch.equal(found, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_every_instruction_set_reads_and_writes_all_numbers(instruction_set, dtype):
    """With B = 0 and D = 1 the operator copies x: every finite bit pattern must survive, and infinities and NaN too."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(16, 1, 4096)
    zero = torch.zeros(16, 1, 1, 1, dtype=dtype)
    ones = torch.ones(1, 4096)
    skip_only = (torch.zeros_like(ones)[..., None], zero, zero, ones, None, paths.raster(1, 1))
    options = {"dt_weight": torch.zeros(1, 4096, 1, dtype=dtype), "softplus": False, "backend": "native"}
    y = path_scan(torch.where(x.isfinite(), x, 0), zero, *skip_only, **options)
    assert torch.equal(y, torch.where(x.isfinite(), x, 0))
    y = path_scan(x, zero, *skip_only, **options)
    assert torch.equal(y.isnan(), ~x.isfinite())  # 0 * infinity in the state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_results_do_not_depend_on_the_number_of_threads(threads, name, batch, dtype):
    case = make_case(**{**CASES[name], "batch": batch, "grid": (5, 7)})
    results = []
    for count in (1, 2, 3, 7, 2):
        threads(count)
        results.append(case.gradients("native", dtype))
    for result in results[1:]:
        assert all(torch.equal(result[key], value) for key, value in results[0].items())


def test_results_do_not_depend_on_the_number_of_threads_at_size(threads):
    """Large enough that all threads work: one image, whose paths are then spread, and several."""
    for batch in (1, 5):
        case = make_case(batch=batch, grid=(24, 20), E=80, N=1, rank=4)
        results = []
        for count in (1, 2, 5):
            threads(count)
            results.append(case.gradients("native", torch.float32))
        for result in results[1:]:
            assert all(torch.equal(result[key], value) for key, value in results[0].items())


def test_instruction_set_that_does_not_exist():
    with pytest.raises(ValueError, match="'sse9', which this processor does not have"):
        native.use_instruction_set("sse9")


@pytest.mark.parametrize("position", [20, -2, 2**31 - 1])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_path_out_of_range_is_refused_by_the_library(position, index_dtype):
    """path_scan checks a table before; under torch.compile it cannot, and then this is what is left."""
    case = make_case(grid=(4, 5), N=1)
    tensors = cast(case.tensors, torch.float32)
    path = case.path.to(index_dtype).clone()
    path[2, 7] = position
    inputs = ScanTensors(*(tensors[name] for name in NAMES[:8]), path, None)
    options = {"softplus": True, "zoh": False, "merge": True, "complete": False}
    with pytest.raises(ValueError, match=rf"path: entry \[2, 7\] visits position {position}, need 0 to 19"):
        native.forward(inputs, **options, out_dtype=torch.float32, save=True)
    good = native.forward(inputs._replace(path=case.path), **options, out_dtype=torch.float32, save=True)
    with pytest.raises(ValueError, match=rf"path: entry \[2, 7\] visits position {position}"):
        native.backward(good[0], good[1], inputs, good[2], **options)


def test_int64_positions_beyond_32_bits_are_refused():
    case = make_case(grid=(4, 5), N=1)
    tensors = cast(case.tensors, torch.float32)
    path = case.path.long()
    path[0, 0] += 2**32
    inputs = ScanTensors(*(tensors[name] for name in NAMES[:8]), path, None)
    with pytest.raises(ValueError, match=r"path: entry \[0, 0\]"):
        native.forward(
            inputs, softplus=True, zoh=False, merge=True, complete=False, out_dtype=torch.float32, save=False
        )


@pytest.mark.parametrize("empty", ["E", "N", "L", "K"])
def test_sizes_of_zero_are_refused_by_the_library(empty):
    """path_scan refuses them before; a direct call of the registered operator ends here."""
    K, E, N, L = (0 if name == empty else 4 for name in "KENL")
    path = torch.zeros(K, L, dtype=torch.int32)
    x, dt, B = torch.zeros(1, L, E), torch.zeros(1, L, K, E), torch.zeros(1, L, K, N)
    inputs = ScanTensors(x, dt, torch.zeros(K, E, N), B, B, None, None, None, path, None)
    options = {"softplus": True, "zoh": False, "merge": True, "complete": False}
    with pytest.raises(ValueError, match="every size but batch must be at least 1"):
        native.forward(inputs, **options, out_dtype=torch.float32, save=False)


def test_states_kept_for_backward_are_few():
    """With one state and four paths they take less than 15 % of x's memory, in 16 bits too."""
    for dtype in (torch.float32, torch.bfloat16):
        case = make_case(grid=(16, 16), N=1, E=32)
        tensors = cast(case.tensors, dtype)
        inputs = ScanTensors(*(tensors[name] for name in NAMES[:8]), case.path, None)
        options = {"softplus": True, "zoh": False, "merge": True, "complete": True}
        kept = native.forward(inputs, **options, out_dtype=dtype, save=True)[2]
        assert kept.nbytes < 0.15 * tensors["x"].nbytes


def test_slices_of_one_projection_are_read_in_place():
    """dt, B and C as models have them: neighbours in one tensor; and x as part of a wider one."""
    batch, H, W, E, N, R, K = 2, 5, 7, 32, 4, 3, 4
    projected = torch.randn(batch, H * W, K, R + 2 * N)
    wide = torch.randn(batch, H * W, 2 * E)
    A, weight, path = -torch.rand(K, E, N), torch.randn(K, E, R), paths.cross(H, W)
    dt, B, C = projected.split([R, N, N], dim=3)
    inputs = (wide[..., E:], dt, A, B, C)
    copies = [value.contiguous() for value in inputs]
    options = {"dt_weight": weight, "backend": "native"}
    assert torch.equal(path_scan(*inputs, None, None, path, **options), path_scan(*copies, None, None, path, **options))
    channels_first = wide[..., E:].transpose(1, 2).contiguous().transpose(1, 2)
    y = path_scan(channels_first, *inputs[1:], None, None, path, **options)
    assert torch.equal(y, path_scan(*copies, None, None, path, **options))


def test_backward_without_kept_states():
    """Where forward was told to keep nothing, backward makes the states again."""
    case = make_case(grid=(9, 9), N=4)
    tensors = cast(case.tensors, torch.float32)
    inputs = ScanTensors(*(tensors[name] for name in NAMES[:8]), case.path, None)
    options = {"softplus": True, "zoh": False, "merge": True, "complete": True}
    y, last, kept = native.forward(inputs, **options, out_dtype=torch.float32, save=True)
    _, _, nothing = native.forward(inputs, **options, out_dtype=torch.float32, save=False)
    assert nothing.numel() == 0
    both = [native.backward(y, last, inputs, states, **options) for states in (kept, nothing)]
    assert all(a is b or torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_a_slow_decay_is_as_accurate_as_the_reference():
    """States that remember thousands of steps add up the error of every exponential between."""
    T, E = 6000, 32
    generator = torch.Generator().manual_seed(0)
    dt = torch.rand(1, T, 1, E, generator=generator) * 1e-2
    A = -torch.logspace(-3, 1, E)[None, :, None]
    ones = torch.ones(1, T, 1, 1)
    inputs = (torch.ones(1, T, E), dt, A, ones, ones, None, None)
    options = {"path": paths.raster(1, T), "softplus": False}
    exact = path_scan(*(None if v is None else v.double() for v in inputs), **options, backend="reference")
    rounded = path_scan(*inputs, **options, backend="reference")
    found = path_scan(*inputs, **options, backend="native")
    assert distance(found, exact) < 1.5 * distance(rounded, exact)
