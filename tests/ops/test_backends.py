"""Every back-end is the reference: outputs, last state and all gradients; the reference is the recurrence as
defined.
"""

import pytest
import torch
from scan_cases import loop, make_case

from visionssm.ops import explain_backend, paths

FAST = ("torch", "native")  # `triton` has a file of its own


def case_of(name: str):
    """Named calls that together reach every option."""
    grid = (5, 7)
    builders = {
        "vmamba": lambda: make_case(N=1, rank=3),
        "vanilla_vmamba": lambda: make_case(N=16, rank=2, grid=(3, 5)),
        "vim": lambda: make_case(path=paths.forward_backward(1, 13), grid=(1, 13), N=16, input_per_path=True),
        "mambavision": lambda: make_case(batch=3, path=paths.raster(4, 4), grid=(4, 4), N=8, rank=5),
        "groupmamba": lambda: make_case(N=1, input_per_path=True, merge=False, rank=1),
        "localmamba": lambda: make_case(path=local_paths(5, 7), N=4, merge=False),
        "efficientvmamba": lambda: make_case(path=paths.atrous(*grid), N=4, rank=2),
        "simba": lambda: make_case(path=paths.raster(1, 9), grid=(1, 9), N=64, E=3),
        "zoh": lambda: make_case(N=4, discretization="zoh"),
        "state_carried": lambda: make_case(N=3, initial_state=True, path=paths.raster(*grid)),
        "no_softplus": lambda: positive_dt(make_case(N=4, softplus=False, bias=False)),
        "no_skip": lambda: make_case(N=1, skip=False, bias=False),
        "one_pixel": lambda: make_case(grid=(1, 1), N=8),
        "one_channel": lambda: make_case(grid=(3, 3), E=1, N=1),
        "wide": lambda: make_case(batch=1, grid=(2, 3), E=37, N=1),
        "empty_batch": lambda: make_case(batch=0),
    }
    return builders[name]()


def local_paths(H: int, W: int) -> torch.Tensor:
    rows = [paths.raster(H, W), paths.reverse(paths.transposed(H, W)), paths.windows(H, W, 2)]
    rows.append(paths.reverse(paths.windows(H, W, 2)))
    longest = max(row.shape[1] for row in rows)
    return torch.cat([paths.pad(row, longest) for row in rows])


def positive_dt(case):
    case.tensors["dt"] = case.tensors["dt"].abs() / 2
    return case


NAMES = (
    "vmamba", "vanilla_vmamba", "vim", "mambavision", "groupmamba", "localmamba", "efficientvmamba", "simba", "zoh",
    "state_carried", "no_softplus", "no_skip", "one_pixel", "one_channel", "wide", "empty_batch",
)  # fmt: skip


def require(backend: str, dtype: torch.dtype) -> None:
    reason = explain_backend("cpu", dtype)[backend]
    if reason is not None:
        pytest.skip(f"{backend} {reason}")


def error(value: torch.Tensor, expected: torch.Tensor) -> float:
    if expected.numel() == 0:
        assert value.shape == expected.shape
        return 0.0
    scale = max(float(expected.double().abs().max()), 1e-30)
    return float((value.double() - expected.double()).abs().max()) / scale


@pytest.mark.parametrize("name", NAMES)
def test_reference_is_the_recurrence(name):
    case = case_of(name)
    y, last = case.run("reference", merge=False)
    expected, expected_last = (torch.from_numpy(value) for value in loop(case))
    assert error(y, expected) < 1e-13
    assert error(last, expected_last) < 1e-13
    if case.options.get("merge", True):
        assert error(case.run("reference")[0], expected.sum(2)) < 1e-13


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", NAMES)
def test_float64_equals_reference(name, backend):
    require(backend, torch.float64)
    case = case_of(name)
    found, expected = case.gradients(backend), case.gradients("reference")
    assert found.keys() == expected.keys()
    assert {key: error(found[key], expected[key]) for key in expected if error(found[key], expected[key]) > 1e-10} == {}


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", NAMES)
def test_float32_is_near_float64(name, backend):
    """Within 2e-6 of the largest value: the reference in float32 itself is up to 7e-7 away, a vectorised exponential
    adds 1e-6.
    """
    require(backend, torch.float32)
    case = case_of(name)
    found, expected = case.gradients(backend, torch.float32), case.gradients("reference")
    errors = {key: error(found[key], expected[key]) for key in expected}
    assert {key: value for key, value in errors.items() if value > 2e-6} == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", ["vmamba", "vanilla_vmamba", "vim", "localmamba", "wide"])
def test_low_precision_is_as_good_as_the_reference(name, backend, dtype):
    """At most twice the error of the reference in the same precision, plus one rounding."""
    require(backend, dtype)
    case = case_of(name)
    exact = case.gradients("reference")
    found, reference = case.gradients(backend, dtype), case.gradients("reference", dtype)
    rounding = torch.finfo(dtype).eps
    for key, value in exact.items():
        budget = 2 * error(reference[key], value) + rounding
        assert error(found[key], value) <= budget, f"{key}: {error(found[key], value):.1e} of {budget:.1e}"
        assert found[key].dtype == reference[key].dtype


@pytest.mark.parametrize("backend", FAST)
def test_strided_inputs_need_no_copy_to_be_right(backend):
    """dt, B and C are slices of one projection, x a transposed map: what the models pass."""
    require(backend, torch.float32)
    case = make_case(N=4, E=6, rank=3)
    parts = [case.tensors[name].float() for name in ("dt", "B", "C")]
    fused = torch.cat(parts, dim=-1)
    strided = dict(case.tensors)
    strided["dt"], strided["B"], strided["C"] = fused.split([p.shape[-1] for p in parts], dim=-1)
    strided["x"] = case.tensors["x"].float().transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided["x"].is_contiguous()
    tensors = {name: None if v is None else v.float() for name, v in strided.items()}
    found = type(case)(tensors=tensors, path=case.path).gradients(backend, torch.float32)
    expected = case.gradients(backend, torch.float32)
    assert {
        key: error(found[key], expected[key]) for key in expected if not torch.equal(found[key], expected[key])
    } == {}


@pytest.mark.parametrize("backend", FAST)
def test_same_bits_every_time(backend):
    require(backend, torch.float32)
    case = make_case(batch=2, grid=(6, 5), E=20, N=4, rank=3)
    first, second = case.gradients(backend, torch.float32), case.gradients(backend, torch.float32)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("backend", FAST)
def test_float32_output_of_low_precision_input(backend):
    require(backend, torch.bfloat16)
    case = make_case(N=1, grid=(3, 4))
    wide, narrow = (case.run(backend, torch.bfloat16, out_dtype=d)[0] for d in (torch.float32, torch.bfloat16))
    assert wide.dtype == torch.float32
    assert torch.equal(wide.bfloat16(), narrow)
