"""A mixer in one call is the mixer step by step: values, what it is not taken for, registration, FLOPs."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from visionssm.layers import SS2D
from visionssm.layers.linear import use_fast_linear
from visionssm.layers.norm import use_fast_norm
from visionssm.layers.vim_mixer import VimMixer
from visionssm.ops import default_backend, matrix_product, native, native_product, paths
from visionssm.ops.observe import observe_scans

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason="the native back-end was not built")
ONE_CALL = ("visionssm::ss2d", "visionssm::vim_mixer")


@pytest.fixture(autouse=True)
def native_products(monkeypatch):
    monkeypatch.setenv("VISIONSSM_LINEAR", "native")
    monkeypatch.setattr(matrix_product, "_decisions", {})
    monkeypatch.setattr(native_product, "_decisions", {})


def spiral_without_corner(H, W, device=None):
    return paths.cross(H, W, device=device)[:, 1:]


# Modules, and the shapes of what they take.
MIXERS = {
    "vim": (lambda: VimMixer(20, state=5), (2, 7, 20)),
    "vim forward": (lambda: VimMixer(16, directions="forward", layer_scale=0.5), (1, 9, 16)),
    "vim one token": (lambda: VimMixer(8, taps=3, halve=False), (1, 1, 8)),
    "vim no image": (lambda: VimMixer(8), (0, 5, 8)),
    "ss2d": (lambda: SS2D(24, paths.cross, gate=False), (2, 3, 5, 24)),
    "ss2d one state": (
        lambda: SS2D(18, paths.cross, gate=False, expansion=1.0, state=1, conv_bias=False),
        (1, 4, 4, 18),
    ),
    "ss2d crowded rows": (lambda: SS2D(1024, paths.cross, gate=False, expansion=1.0, state=1), (1, 3, 2, 1024)),
    "ss2d incomplete paths": (lambda: SS2D(16, spiral_without_corner, gate=False, state=2), (1, 3, 4, 16)),
    "ss2d no image": (lambda: SS2D(16, paths.cross, gate=False), (0, 3, 4, 16)),
}


def make(name, dtype=torch.float32):
    """The mixer, with fast layers as in a model, and an input."""
    torch.manual_seed(0)
    build, shape = MIXERS[name]
    model = nn.Sequential(build()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) / max(10, parameter.shape[-1] ** 0.5)
    return use_fast_norm(use_fast_linear(model))[0].to(dtype), torch.randn(shape).to(dtype)


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def run(mixer, x):
    """The result, and whether it came from one call."""
    with Recorder() as recorder:
        y = mixer(x)
    return y, any(name in ONE_CALL for name in recorder.names)


def step_by_step(mixer):
    """The same with a hook that does nothing."""
    mixer = copy.deepcopy(mixer)
    mixer.scan.register_forward_hook(lambda *_: None)
    return mixer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_values(name, dtype):
    mixer, x = make(name, dtype)
    y, in_one_call = run(mixer, x)
    assert in_one_call
    with default_backend("reference"):
        exact, in_one_call = run(copy.deepcopy(mixer).double(), x.double())
    assert not in_one_call
    tolerance = {"rtol": 1e-5, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(y.double(), exact, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_same_bits_as_step_by_step(name, dtype):
    mixer, x = make(name, dtype)
    y, _ = run(mixer, x)
    expected, in_one_call = run(step_by_step(mixer), x)
    assert not in_one_call
    assert torch.equal(y, expected)
    assert torch.equal(mixer(x.transpose(-1, -2).contiguous().transpose(-1, -2)), y)


@pytest.mark.parametrize("name", ["vim", "ss2d"])
def test_not_where_more_is_wanted(name):
    mixer, x = make(name)
    assert not run(mixer, x)[1]  # gradients are recorded
    with torch.no_grad():
        with observe_scans(lambda *_: None):
            assert not run(mixer, x)[1]
        with torch.autocast("cpu", torch.bfloat16):
            assert not run(mixer, x)[1]
        with default_backend("torch"):
            assert not run(mixer, x)[1]
        assert not run(mixer.double(), x.double())[1]


@pytest.mark.parametrize("name", ["vim", "ss2d"])
@torch.no_grad()
def test_hooks_and_other_modules_are_called(name):
    mixer, x = make(name)
    parts = ["in_proj", "conv", "scan", "out_proj", *(["out_norm"] if name == "ss2d" else [])]
    for part in parts:
        calls = []
        handle = getattr(mixer, part).register_forward_hook(lambda *_, calls=calls: calls.append(1))
        assert not run(mixer, x)[1]
        assert calls == [1]
        handle.remove()
    assert run(mixer, x)[1]
    plain = mixer.in_proj
    mixer.in_proj = nn.Sequential(plain)
    assert not run(mixer, x)[1]
    mixer.in_proj = nn.Linear(plain.in_features, plain.out_features, bias=True)
    assert not run(mixer, x)[1]


@torch.no_grad()
def test_not_for_large_maps():
    mixer, _ = make("ss2d one state")
    assert run(mixer, torch.randn(1, 64, 64, 18))[1]
    assert not run(mixer, torch.randn(1, 64, 65, 18))[1]


@pytest.mark.parametrize("name", ["vim", "ss2d"])
@pytest.mark.parametrize("part", ["dt_weight", "dt_bias", "A_log", "D", "x_proj_weight"])
@torch.no_grad()
def test_parameters_that_do_not_fit_are_refused(name, part):
    mixer, x = make(name)
    setattr(mixer.scan, part, nn.Parameter(getattr(mixer.scan, part)[:, :-1]))
    with pytest.raises((ValueError, RuntimeError)):
        mixer(x)


@torch.no_grad()
def test_bad_paths_are_named():
    mixer, x = make("ss2d")
    for bad in (lambda H, W, device=None: paths.cross(H, W + 1), lambda H, W, device=None: paths.raster(H, W)):
        mixer.paths = bad
        with pytest.raises(ValueError, match="path"):
            mixer(x)


@pytest.mark.parametrize("name", ["vim", "ss2d"])
@torch.no_grad()
def test_A_of_its_own(name):
    mixer, x = make(name)
    expected = mixer(x)
    mixer.scan.constant_A = mixer.scan.A()
    y, in_one_call = run(mixer, x)
    assert in_one_call
    torch.testing.assert_close(y, expected)


def arguments(name):
    """Of the registered operator."""
    mixer, x = make(name)
    taken = []

    class Catch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func._schema.name in ONE_CALL:
                taken.append((func, args))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Catch():
        mixer(x)
    return taken[0]


@pytest.mark.parametrize("name", ["vim", "ss2d"])
def test_opcheck(name):
    operator, given = arguments(name)
    given = [value.detach() if isinstance(value, torch.Tensor) else value for value in given]
    torch.library.opcheck(operator, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", ["vim", "vim forward", "ss2d", "ss2d one state"])
@torch.no_grad()
def test_flops_are_those_of_the_steps(name):
    mixer, x = make(name)
    counts = []
    for module in (mixer, step_by_step(mixer)):
        with FlopCounterMode(display=False) as counter:
            module(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
