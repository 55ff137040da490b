"""What must hold whatever the numbers are, on every back-end."""

import pytest
import torch
from scan_cases import Case, call, cast, make_case

from visionssm.ops import explain_backend, paths

BACKENDS = ("reference", "torch", "native")
pytestmark = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def _served(backend):
    reason = explain_backend("cpu")[backend]
    if reason is not None:
        pytest.skip(f"{backend} {reason}")


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 3e-6) -> bool:
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def tensors_of(case: Case) -> dict[str, torch.Tensor | None]:
    return cast(case.tensors, torch.float32)


def test_scan_without_state_is_merge_after_scan(backend):
    """With C = 0 only D x is left: x times the sum over paths of D, at every visited position."""
    case = make_case(N=1)
    tensors = tensors_of(case) | {"C": torch.zeros_like(case.tensors["C"], dtype=torch.float32)}
    y, _ = call(tensors, case.path, backend)
    assert close(y, tensors["x"] * tensors["D"].sum(0))


def test_merge_is_the_adjoint_of_reading_along_the_paths(backend):
    """<scan(x), y> = <x, merge(y)> for the linear map x -> unmerged output: its gradient is the transposed map."""
    case = make_case(grid=(3, 4), N=2, E=3)
    tensors = tensors_of(case)
    x = tensors["x"].clone().requires_grad_()
    y, _ = call(tensors | {"x": x}, case.path, backend, merge=False)
    cotangent = torch.randn(y.shape)
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    probe = torch.randn(x.shape)
    image, _ = call(tensors | {"x": probe}, case.path, backend, merge=False)
    assert abs(float((image * cotangent).sum() - (probe * gradient).sum())) < 1e-4 * float(
        image.norm() * cotangent.norm()
    )


def test_permuting_the_rows_of_the_table_permutes_the_outputs(backend):
    case = make_case(grid=(4, 3), N=2)
    order = torch.tensor([2, 0, 3, 1])
    tensors = tensors_of(case)
    y, last = call(tensors, case.path, backend, merge=False)
    turned = {name: v if v is None or name == "x" else v[:, :, order] if name in ("dt", "B", "C") else v[order]
              for name, v in tensors.items()}  # fmt: skip
    y_turned, last_turned = call(turned, case.path[order], backend, merge=False)
    assert close(y_turned, y[:, :, order])
    assert close(last_turned, last[:, order])


def test_renaming_the_positions_renames_the_outputs(backend):
    case = make_case(grid=(4, 3), N=2)
    shuffle = torch.randperm(12)
    tensors = tensors_of(case)
    y, _ = call(tensors, case.path, backend)
    moved = {
        name: v[:, shuffle] if name in ("x", "dt", "B", "C") and v is not None else v for name, v in tensors.items()
    }
    new_position = torch.argsort(shuffle).int()
    y_moved, _ = call(moved, new_position[case.path.long()], backend)
    assert close(y_moved, y[:, shuffle])


def test_reversing_a_path_is_flipping_the_image(backend):
    case = make_case(path=paths.raster(3, 5), grid=(3, 5), N=2)
    tensors = tensors_of(case)
    y, _ = call(tensors, paths.reverse(case.path), backend)
    flipped = {name: v.flip(1) if name in ("x", "dt", "B", "C") and v is not None else v for name, v in tensors.items()}
    y_flipped, _ = call(flipped, case.path, backend)
    assert close(y, y_flipped.flip(1))


def test_two_halves_with_the_state_carried_are_the_whole(backend):
    case = make_case(path=paths.raster(1, 30), grid=(1, 30), N=3, E=5)
    tensors = tensors_of(case)
    y, last = call(tensors, case.path, backend)
    halves = [paths.raster(1, 30)[:, :13], paths.raster(1, 30)[:, 13:]]
    first, state = call(tensors, halves[0], backend)
    second, state = call(tensors | {"initial_state": state}, halves[1], backend)
    assert close(first + second, y)
    assert close(state, last)
    assert first[:, 13:].abs().max() == 0


def test_a_batch_is_its_images(backend):
    case = make_case(batch=3, grid=(3, 4), N=2)
    tensors = tensors_of(case)
    y, _ = call(tensors, case.path, backend)
    for b in range(3):
        single = {
            name: v[b : b + 1] if name in ("x", "dt", "B", "C") and v is not None else v for name, v in tensors.items()
        }
        assert torch.equal(call(single, case.path, backend)[0][0], y[b])


def test_padding_after_the_last_step_changes_the_last_state_only(backend):
    case = make_case(path=paths.raster(2, 4), grid=(2, 4), N=2)
    tensors = tensors_of(case)
    y, last = call(tensors, case.path, backend)
    y_padded, last_padded = call(tensors, paths.pad(case.path, 11), backend)
    assert close(y_padded, y)
    delta = torch.nn.functional.softplus(tensors["dt_bias"])
    assert close(last_padded, last * torch.exp(3 * delta[:, :, None] * tensors["A"]))


def test_unvisited_positions_are_zero(backend):
    path = torch.tensor([[0, 2, 4], [1, -1, 2]], dtype=torch.int32)
    case = make_case(path=path, grid=(2, 3), N=2)
    y, _ = call(tensors_of(case), path, backend, merge=False)
    assert y[:, [1, 3, 5], 0].abs().max() == 0
    assert y[:, [0, 3, 4, 5], 1].abs().max() == 0
    assert y[:, [0, 2, 4], 0].abs().min() > 0


def test_time_invariant_scan_is_a_convolution(backend):
    """With constant dt, B and C the scan is the causal convolution with the kernel of the discretised state space
    (S4).
    """
    from visionssm.ops import ssm_convolution_kernel, zero_order_hold

    L, N = 24, 4
    case = make_case(batch=1, path=paths.raster(1, L), grid=(1, L), E=1, N=N, skip=False, bias=False, softplus=False)
    tensors = tensors_of(case)
    B, C, delta = torch.randn(N), torch.randn(N), torch.tensor(0.3)
    tensors |= {"dt": delta.expand(1, L, 1, 1), "B": B.expand(1, L, 1, N), "C": C.expand(1, L, 1, N)}
    y, _ = call(tensors, case.path, backend, softplus=False, discretization="zoh")
    A_bar, B_bar = zero_order_hold(tensors["A"][0, 0], B, delta)
    kernel = ssm_convolution_kernel(A_bar, B_bar, C, L)
    signal = tensors["x"][0, :, 0]
    expected = torch.stack([(kernel[: t + 1].flip(0) * signal[: t + 1]).sum() for t in range(L)])
    assert close(y[0, :, 0], expected, 1e-5)


@pytest.mark.parametrize("options", [{}, {"discretization": "zoh"}], ids=["euler", "zoh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_log_A_is_A(backend, dtype, options):
    """With and without gradients, which are those of -exp(log_A), for whole vectors of channels and parts of one."""
    case = make_case(grid=(3, 4), N=3, E=21)
    tensors = cast(case.tensors, dtype)
    log_A = tensors["A"].abs().log()
    with torch.no_grad():
        wanted, found = (
            call(tensors | {"A": A}, case.path, backend, log_A=given, **options)
            for A, given in ((-log_A.exp(), False), (log_A, True))
        )
    assert all(close(a, b, 2e-6) for a, b in zip(found, wanted, strict=True))
    log_A.requires_grad_()
    y, _ = call(tensors | {"A": log_A}, case.path, backend, log_A=True, **options)
    assert close(y.detach(), wanted[0], 2e-6)
    (by_log,) = torch.autograd.grad(y.square().sum(), log_A)
    A = (-log_A.detach().exp()).requires_grad_()
    y, _ = call(tensors | {"A": A}, case.path, backend, **options)
    (by_A,) = torch.autograd.grad(y.square().sum(), A)
    assert close(by_log, by_A * A.detach())
