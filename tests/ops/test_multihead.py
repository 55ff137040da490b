"""The recurrence with one decay per head, against a loop over its definition and against path_scan."""

import pytest
import torch
import torch.nn.functional as F

from visionssm.layers import MultiheadScan
from visionssm.ops import default_backend, explain_backend, multihead_scan, paths
from visionssm.ops.reorder import reorder

GRID, HEADS, SHARE, N = (5, 7), 3, 4, 6
PATHS = {
    "cross": paths.cross(*GRID),
    "windows": paths.windows(*GRID, 2),
    "one row only": paths.raster(*GRID)[:, 7:14].contiguous(),
    "rows out of order, with a gap": torch.tensor([[3, -1, 0, 34, 12, -1], [1, 2, -1, 5, 4, 33]], dtype=torch.int32),
}


def inputs(path: torch.Tensor, dtype=torch.float64, per_path: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    K, L, E = path.shape[0], GRID[0] * GRID[1], HEADS * SHARE

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = {
        "x": draw(2, L, K, E) if per_path else draw(2, L, E),
        "dt": draw(2, L, K, HEADS),
        "A": -draw(K, HEADS).exp(),
        "B": draw(2, L, K, N),
        "C": draw(2, L, K, N),
        "D": draw(K, E),
        "dt_bias": draw(K, HEADS),
    }
    return {name: value.to(dtype).requires_grad_() for name, value in tensors.items()}


def loop(x, dt, A, B, C, D, dt_bias, path, softplus=True):
    """Unmerged outputs (batch, L, K, E), one step and one head after the other."""
    batch, L, K = dt.shape[:3]
    E = x.shape[-1]
    maps = []
    for k in range(K):
        state = x.new_zeros(batch, HEADS, N, SHARE)
        outputs = {}
        for p in path[k].tolist():
            raw = (dt[:, p, k] if p >= 0 else 0 * dt[:, 0, k]) + (0 if dt_bias is None else dt_bias[k])
            delta = F.softplus(raw) if softplus else raw
            state = torch.exp(delta * A[k])[..., None, None] * state
            if p < 0:
                continue
            u = (x[:, p] if x.dim() == 3 else x[:, p, k]).view(batch, HEADS, 1, SHARE)
            state = state + delta[..., None, None] * B[:, p, k, None, :, None] * u
            y = (C[:, p, k, None, :, None] * state).sum(2).reshape(batch, E)
            outputs[p] = y if D is None else y + D[k] * u.reshape(batch, E)
        zero = x.new_zeros(batch, E)
        maps.append(torch.stack([outputs.get(p, zero) for p in range(L)], dim=1))
    return torch.stack(maps, dim=2)


@pytest.mark.parametrize("per_path", [False, True])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("chunk", [1, 4, 32])
def test_values_and_gradients_follow_the_definition(path, chunk, per_path):
    tensors = inputs(path, per_path=per_path)
    expected = loop(**tensors, path=path)
    separate = multihead_scan(**tensors, path=path, merge=False, chunk=chunk, backend="matrix")
    torch.testing.assert_close(separate, expected, rtol=1e-11, atol=1e-12)
    merged = multihead_scan(**tensors, path=path, chunk=chunk, backend="matrix")
    torch.testing.assert_close(merged, expected.sum(2), rtol=1e-11, atol=1e-12)
    cotangent = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(y, tuple(tensors.values()), cotangent) for y in (separate, expected))
    for name, a, b in zip(tensors, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("options", [{"D": None}, {"dt_bias": None}, {"softplus": False}])
def test_optional_parts(options):
    path = PATHS["cross"]
    arguments = {**inputs(path), "path": path, **options}
    if "softplus" in options:
        arguments["dt"], arguments["dt_bias"] = arguments["dt"].abs(), None
    expected = loop(**arguments).sum(2)
    for backend in ("matrix", "reference"):
        torch.testing.assert_close(multihead_scan(**arguments, backend=backend), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "torch", "native"])
def test_it_is_path_scan_with_equal_channels(backend):
    reason = explain_backend("cpu")[backend]
    if reason is not None:
        pytest.skip(f"{backend} {reason}")
    path = PATHS["windows"]
    tensors = inputs(path)
    results = {}
    for name in ("matrix", backend):
        y = multihead_scan(**tensors, path=path, merge=False, backend=name)
        results[name] = (y, *torch.autograd.grad(y.square().sum(), tuple(tensors.values())))
    for a, b in zip(results["matrix"], results[backend], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_a_named_default_serves_here_too():
    path = PATHS["cross"]
    tensors = inputs(path, torch.float32)
    with default_backend("reference"):
        chosen = multihead_scan(**tensors, path=path)
    assert torch.equal(chosen, multihead_scan(**tensors, path=path, backend="reference"))
    with pytest.raises(ValueError, match="backend"):
        multihead_scan(**tensors, path=path, backend="matrices")


@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e4])
def test_float32_is_exact_for_weak_and_strong_decays(strength):
    """Strong decays are where a difference of running sums would lose its digits."""
    path = PATHS["cross"]
    tensors = inputs(path, torch.float32)
    with torch.no_grad():
        tensors["A"] *= strength
        tensors["dt"] -= 4
    y = multihead_scan(**tensors, path=path, backend="matrix")
    exact = multihead_scan(**{name: value.double() for name, value in tensors.items()}, path=path, backend="matrix")
    assert (y - exact).abs().max() < 2e-6 * exact.abs().max()
    assert y.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype):
    path = PATHS["cross"]
    low = {
        name: value.detach().to(dtype) if name in ("x", "dt", "B", "C") else value
        for name, value in inputs(path, torch.float32).items()
    }
    high = {name: value.float() for name, value in low.items()}
    expected = multihead_scan(**high, path=path, backend="matrix")
    with torch.autocast("cpu", dtype):
        assert torch.equal(multihead_scan(**high, path=path, backend="matrix"), expected)
        kept = multihead_scan(**low, path=path, out_dtype=torch.float32, backend="matrix")
    assert torch.equal(kept, expected)
    rounded = multihead_scan(**low, path=path, backend="matrix")
    assert rounded.dtype == dtype and torch.equal(rounded, expected.to(dtype))


def test_two_runs_give_the_same_bits():
    path = PATHS["cross"]
    tensors = inputs(path, torch.float32)
    runs = []
    for _ in range(2):
        y = multihead_scan(**tensors, path=path, backend="matrix")
        runs.append((y, *torch.autograd.grad(y.square().sum(), tuple(tensors.values()))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_compiles_as_one_graph():
    path = PATHS["cross"]
    tensors = inputs(path, torch.float32)
    run = torch.compile(
        lambda t: multihead_scan(**t, path=path, chunk=8, backend="matrix"), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(run(tensors), multihead_scan(**tensors, path=path, chunk=8, backend="matrix"))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "shape"),
    [("x", (2, 35, 13)), ("dt", (2, 35, 4, 2)), ("B", (2, 35, 3, 6)), ("C", (2, 34, 4, 6)), ("D", (4, 3)), ("A", (4,))],
)
def test_wrong_shapes_are_named(name, shape):
    path = PATHS["cross"]
    with pytest.raises(ValueError, match=name):
        multihead_scan(**{**inputs(path), name: torch.zeros(shape, dtype=torch.float64)}, path=path)


def test_wrong_options_are_named():
    path = PATHS["cross"]
    with pytest.raises(ValueError, match="chunk"):
        multihead_scan(**inputs(path), path=path, chunk=0)
    with pytest.raises(ValueError, match="position 35"):
        multihead_scan(**inputs(path), path=path + 1, backend="matrix")


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("shared", [False, True])
def test_reordering_undoes_itself_and_its_gradient_is_its_adjoint(path, shared):
    K, L = path.shape[0], GRID[0] * GRID[1]
    inverse = paths.inverse(path, L)
    visited = torch.zeros(L, K)
    for k in range(K):
        visited[path[k][path[k] >= 0].long(), k] = 1
    values = torch.randn(2, L, 3) if shared else torch.randn(2, L, K, 3)
    complete = bool(visited.all())
    walked = reorder(values, path, inverse, complete)
    per_path = values.unsqueeze(2).expand(-1, -1, K, -1) if shared else values
    for k, row in enumerate(path.tolist()):
        for t, p in enumerate(row):
            assert torch.equal(walked[:, t, k], per_path[:, p, k] if p >= 0 else torch.zeros(2, 3))
    assert torch.equal(reorder(walked, inverse, path, complete), per_path * visited[..., None])
    doubles = values.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: reorder(v, path, inverse, complete), doubles)


@pytest.mark.parametrize(("init", "low", "high"), [("mamba", 1, 16), ("uniform", 1, 1), ("normal", 0, 100)])
def test_initial_values_of_the_layer(init, low, high):
    scan = MultiheadScan(channels=240, paths=4, state=8, heads=60, dt_init=init)
    A = scan.A_log.exp()
    assert A.min() >= low - 1e-5 and A.max() <= high + 1e-4
    assert torch.equal(scan.D, torch.ones(4, 60, 4))
    assert scan.x_proj_weight.abs().max() <= 240**-0.5
    if init == "mamba":
        delta = F.softplus(scan.dt_bias)
        assert 9e-4 < delta.min() < 2e-3 and 0.05 < delta.max() < 0.101
        assert A.max() > 14
    elif init == "uniform":
        assert 0 <= scan.dt_bias.min() < 0.01 and 0.09 < scan.dt_bias.max() <= 0.1
    else:
        assert scan.A_log.std().item() == pytest.approx(1, rel=0.15)
        assert scan.dt_bias.std().item() == pytest.approx(0.1, rel=0.15)
    with pytest.raises(ValueError, match="heads"):
        MultiheadScan(channels=10, paths=4, state=8, heads=3)
    with pytest.raises(ValueError, match="dt_init"):
        MultiheadScan(channels=10, paths=4, state=8, heads=5, dt_init="linear")
