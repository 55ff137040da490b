"""Wrong calls get an error that names the argument, what it got and what it needs."""

import pytest
import torch
from scan_cases import call, make_case

import visionssm.ops.backends as backends_module
from visionssm.ops import default_backend, explain_backend, path_scan, paths, selective_scan


def wrong(**changes):
    case = make_case(grid=(2, 3), E=4, N=2)
    tensors = {name: None if v is None else v.float() for name, v in case.tensors.items()}
    path = changes.pop("path", case.path)
    options = {key: changes.pop(key) for key in ("backend", "discretization") if key in changes}
    return call(tensors | changes, path, options.pop("backend", "auto"), **options)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x": torch.zeros(6, 4)}, r"x: got shape \(6, 4\), need \(batch, L, E\)"),
        ({"x": torch.zeros(2, 6, 5)}, r"x: got shape \(2, 6, 5\), need \(2, 6, 4\)"),
        ({"A": torch.zeros(4, 2)}, r"A: got shape \(4, 2\), need \(K, E, N\)"),
        ({"dt": torch.zeros(2, 6, 4, 3)}, r"dt: got shape .* give dt_weight \(K, E, R\) for a low-rank dt"),
        ({"B": torch.zeros(2, 6, 3, 2)}, r"B: got shape \(2, 6, 3, 2\), need \(2, 6, 4, 2\)"),
        ({"C": torch.zeros(2, 5, 4, 2)}, r"C: got shape \(2, 5, 4, 2\), need \(2, 6, 4, 2\)"),
        ({"D": torch.zeros(4)}, r"D: got shape \(4,\), need \(4, 4\)"),
        ({"dt_bias": torch.zeros(1, 4)}, r"dt_bias: got shape \(1, 4\), need \(4, 4\)"),
        ({"initial_state": torch.zeros(2, 4, 2, 4)}, r"initial_state: got shape"),
        ({"path": torch.zeros(6, dtype=torch.int32)}, r"path: got shape \(6,\), need \(K, T\)"),
        ({"path": paths.raster(2, 3)}, r"path: got shape \(1, 6\), need \(4, 6\)"),
        ({"path": paths.cross(2, 4)}, r"path: visits position 7, need 0 to 5 .*or -1 for a step over padding"),
        ({"path": paths.cross(2, 3) - 2}, r"path: visits position -2, need 0 to 5"),
        ({"path": torch.zeros(4, 6, dtype=torch.int32)}, r"path: row 0 visits position 0 more than once"),
        ({"discretization": "bilinear"}, r"discretization: got 'bilinear', choose from euler, zoh"),
        ({"backend": "cuda"}, r"backend: got 'cuda', choose from auto, triton, native, torch, reference"),
    ],
)
def test_value_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        wrong(**changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x": torch.zeros(2, 6, 4, dtype=torch.int64)}, "x: got torch.int64, need a real floating dtype"),
        ({"A": torch.zeros(4, 4, 2, dtype=torch.complex64)}, "A: got torch.complex64"),
        ({"path": paths.cross(2, 3).float()}, "path: got torch.float32, need int32"),
    ],
)
def test_type_errors(changes, message):
    with pytest.raises(TypeError, match=message):
        wrong(**changes)


def test_devices_must_agree():
    with pytest.raises(ValueError, match="D: is on meta, but x is on cpu; move it there"):
        wrong(D=torch.zeros(4, 4, device="meta"))


def test_a_table_is_checked_again_after_it_was_written_to():
    case = make_case(grid=(2, 3))
    path = case.path.clone()
    tensors = {name: None if v is None else v.float() for name, v in case.tensors.items()}
    call(tensors, path, "reference")
    path[0, 0] = 99
    with pytest.raises(ValueError, match="visits position 99"):
        call(tensors, path, "reference")


def test_a_named_back_end_refuses_with_its_reason():
    with pytest.raises(
        ValueError, match="backend='native' cannot serve this call: it runs on CPU tensors only, got meta"
    ):
        wrong_on_meta()


def wrong_on_meta():
    case = make_case(grid=(2, 3))
    tensors = {name: None if v is None else v.float().to("meta") for name, v in case.tensors.items()}
    return call(tensors, case.path.to("meta"), "native")


def test_explain_backend_gives_a_reason_or_none_for_each():
    on_cuda = explain_backend("cuda")
    assert list(on_cuda) == ["triton", "native", "torch", "reference"]
    assert on_cuda["native"] == "runs on CPU tensors only, got cuda"
    assert on_cuda["torch"] is None
    assert "float64" in explain_backend("cpu", torch.float64)["triton"] or explain_backend("cpu")["triton"] is not None


def test_auto_warns_once_when_it_ends_on_the_slow_path(monkeypatch):
    native = backends_module.kernels("native")
    monkeypatch.setattr(native, "unavailable", lambda: "was not built: no compiler")
    monkeypatch.setattr(backends_module, "_warned", set())
    monkeypatch.setattr(backends_module, "_default", "auto")
    with pytest.warns(UserWarning, match=r"slow `torch` back-end.*native was not built: no compiler.*visionssm doctor"):
        wrong()
    wrong()


def test_default_backend_is_restored_and_checked():
    with pytest.raises(ValueError, match="backend: got 'fast'"), default_backend("fast"):
        pass
    before = backends_module._default
    with default_backend("reference"):
        assert backends_module._default == "reference"
    assert backends_module._default == before


def test_selective_scan_names_what_is_wrong():
    u = torch.zeros(2, 4, 6)
    good = {"A": torch.zeros(4, 3), "B": torch.zeros(2, 3, 6), "C": torch.zeros(2, 3, 6)}
    with pytest.raises(ValueError, match=r"u: got shape \(4, 6\), need \(batch, E, L\)"):
        selective_scan(u[0], u, **good)
    with pytest.raises(ValueError, match="delta: got shape"):
        selective_scan(u, u[:, :, :5], **good)
    with pytest.raises(ValueError, match=r"B: got shape \(2, 3, 5\), need \(batch, N, L\)"):
        selective_scan(u, u, **good | {"B": torch.zeros(2, 3, 5)})
    with pytest.raises(TypeError, match="only real state spaces"):
        selective_scan(u, u, **good | {"A": torch.zeros(4, 3, dtype=torch.complex64)})


def test_positions_must_be_finite_in_number():
    with pytest.raises(ValueError, match="grid: got 0 x 4"):
        paths.cross(0, 4)
    with pytest.raises(ValueError, match="every size but batch must be at least 1"):
        path_scan(
            torch.zeros(1, 3, 0), torch.zeros(1, 3, 1, 0), torch.zeros(1, 0, 1), torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 1, 1),
            None, None, paths.raster(1, 3),
        )  # fmt: skip
