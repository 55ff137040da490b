"""The operator inside torch's machinery: gradcheck, opcheck, compile, export, autocast, FLOP counting."""

from functools import partial

import pytest
import torch
from scan_cases import call, make_case
from torch.utils.flop_counter import FlopCounterMode

from visionssm.ops import default_backend, explain_backend, path_scan, paths
from visionssm.ops.schema import scan_flops

BACKENDS = ("torch", "native")


@pytest.fixture(params=BACKENDS)
def backend(request):
    reason = explain_backend("cpu")[request.param]
    if reason is not None:
        pytest.skip(f"{request.param} {reason}")
    return request.param


def small(**options):
    return make_case(batch=1, grid=(2, 3), E=2, N=2, rank=1, initial_state=True, **options)


@pytest.mark.parametrize("options", [{}, {"discretization": "zoh"}, {"merge": False}], ids=["euler", "zoh", "unmerged"])
def test_gradcheck(backend, options):
    case = small(**options)
    names = [name for name, value in case.tensors.items() if value is not None]
    leaves = [case.tensors[name].clone().requires_grad_() for name in names]

    def function(*values):
        return call(case.tensors | dict(zip(names, values, strict=True)), case.path, backend, **options)

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(backend, grad):
    case = small()
    tensors = [
        None if case.tensors[name] is None else case.tensors[name].clone().requires_grad_(grad)
        for name in ("x", "dt", "A", "B", "C", "D", "dt_bias", "dt_weight")
    ]
    state = case.tensors["initial_state"].clone().requires_grad_(grad)
    options = (True, False, True, True, False, backend, torch.float64, grad)
    torch.library.opcheck(torch.ops.visionssm.path_scan, (*tensors, case.path, state, *options))


def scan_of_image(x, dt, A, B, C, D, bias, walk=paths.cross):
    H, W = x.shape[1:3]
    path = walk(H, W, device=x.device)
    return path_scan(x.flatten(1, 2), dt.flatten(1, 2), A, B.flatten(1, 2), C.flatten(1, 2), D, bias, path)


def image_inputs(batch, H, W):
    case = make_case(batch=batch, grid=(H, W), E=4, N=2)
    tensors = {name: None if v is None else v.float() for name, v in case.tensors.items()}
    for name in ("x", "dt", "B", "C"):
        tensors[name] = tensors[name].unflatten(1, (H, W))
    return [tensors[name] for name in ("x", "dt", "A", "B", "C", "D", "dt_bias")]


def test_compile_of_the_full_graph_forward_and_backward(backend):
    compiled = torch.compile(scan_of_image, fullgraph=True, backend="aot_eager", dynamic=True)
    with default_backend(backend):
        for H, W in ((3, 4), (5, 2)):
            eager, traced = ([v.clone().requires_grad_() for v in image_inputs(2, H, W)] for _ in range(2))
            expected, found = scan_of_image(*eager), compiled(*traced)
            torch.testing.assert_close(found, expected)
            expected.square().sum().backward()
            found.square().sum().backward()
            for a, b in zip(traced, eager, strict=True):
                torch.testing.assert_close(a.grad, b.grad)


class Scan(torch.nn.Module):
    def forward(self, x, dt, A, B, C, D, bias):
        return scan_of_image(x, dt, A, B, C, D, bias)


def test_export_with_dynamic_batch_and_grid(backend):
    batch, H, W = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "H", "W"))
    moving = {0: batch, 1: H, 2: W}
    shapes = {"x": moving, "dt": moving, "A": None, "B": moving, "C": moving, "D": None, "bias": None}
    with default_backend(backend):
        program = torch.export.export(Scan(), tuple(image_inputs(2, 3, 4)), dynamic_shapes=shapes)
    (node,) = (node for node in program.graph.nodes if node.target is torch.ops.visionssm.path_scan.default)
    assert backend in node.args
    for size in ((3, 5, 2), (4, 2, 7)):
        inputs = image_inputs(*size)
        torch.testing.assert_close(program.module()(*inputs), scan_of_image(*inputs))


def test_the_reference_exports_without_a_custom_operator():
    with default_backend("reference"):
        program = torch.export.export(Scan(), tuple(image_inputs(2, 3, 4)))
    assert all("visionssm" not in str(node.target) for node in program.graph.nodes)
    inputs = image_inputs(2, 3, 4)
    torch.testing.assert_close(program.module()(*inputs), scan_of_image(*inputs))


def test_autocast_keeps_the_state_in_float32(backend):
    """Under autocast the projections are bfloat16; A near -1e-4 over many steps would freeze a bfloat16 state."""
    T = 512
    path = paths.raster(1, T)
    ones = torch.ones(1, T, 1, 1)
    with torch.autocast("cpu", torch.bfloat16), default_backend(backend):
        x = torch.nn.functional.linear(torch.ones(1, T, 1), torch.eye(1))
        assert x.dtype == torch.bfloat16
        y, last = path_scan(
            x, ones.bfloat16(), torch.full((1, 1, 1), -1e-4), ones, ones, None, None, path,
            softplus=False, return_last_state=True,
        )  # fmt: skip
    assert y.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    assert float(last) == pytest.approx(sum(0.9999**t for t in range(T)), rel=1e-3)


@pytest.mark.parametrize("name", ["reference", "torch", "native", "triton"])
def test_autocast_leaves_the_products_inside_alone(name):
    """dt is projected, and its gradient, in the precision of the tensors; the models decide what these are."""
    if explain_backend("cpu")[name] is not None:
        pytest.skip(f"{name} {explain_backend('cpu')[name]}")
    case = make_case(batch=1, path=paths.forward_backward(1, 3), grid=(1, 3), N=8, rank=3)
    exact = case.gradients(name, torch.float32) | {"without": case.run(name, torch.float32)[0]}
    with torch.autocast("cpu", torch.bfloat16):
        found = case.gradients(name, torch.float32) | {"without": case.run(name, torch.float32)[0]}
    for key, value in exact.items():
        if name == "reference" and key.startswith("d"):  # ordinary torch code, whose backward is the caller's
            continue
        assert torch.equal(found[key], value), key


def test_compiles_under_autocast():
    inputs = image_inputs(1, 2, 3)
    torch.compiler.reset()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), default_backend("torch"):
        found = torch.compile(scan_of_image, fullgraph=True, backend="eager")(*inputs)
        torch.testing.assert_close(found, scan_of_image(*inputs))


def test_what_is_known_of_a_table_reaches_the_compiled_operator():
    """Without it every call would fill its output with zeros first."""
    known = []

    def look(graph, _):
        scans = [node for node in graph.graph.nodes if node.target is torch.ops.visionssm.path_scan]
        known.extend(node.args[13:15] for node in scans)  # complete, mirrored
        return graph.forward

    for walk in (
        paths.cross,
        paths.raster_transposed,
        lambda *size, device: paths.cross(*size, device=device).roll(1, 0),
    ):
        torch.compiler.reset()
        torch.compile(partial(scan_of_image, walk=walk), fullgraph=True, backend=look)(*image_inputs(1, 2, 3))
    assert known == [(True, True), (True, False), (False, False)]


def test_mixed_precisions_are_promoted(backend):
    case = make_case(N=1, grid=(2, 3))
    tensors = {name: None if v is None else v.float() for name, v in case.tensors.items()}
    mixed = tensors | {"dt": tensors["dt"].bfloat16()}
    y, _ = call(mixed, case.path, backend)
    exact, _ = call(tensors, case.path, backend)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, exact)


def test_flop_counter_counts_the_documented_formula(backend):
    case = make_case(batch=2, grid=(3, 4), E=6, N=4, rank=2)
    tensors = {name: None if v is None else v.requires_grad_() for name, v in case.tensors.items()}
    with FlopCounterMode(display=False) as counter:
        y, _ = call(tensors, case.path, backend)
    forward = scan_flops(batch=2, length=12, K=4, E=6, N=4, R=2)
    assert counter.get_total_flops() == forward == 2 * 2 * 12 * 4 * 6 * (9 * 4 + 1 + 2)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * forward
