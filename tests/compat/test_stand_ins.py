"""`compat.install()`: code that imports mamba_ssm, causal_conv1d or VMamba's extension runs without them."""

import importlib
import json
import os
import subprocess
import sys
import types
from importlib.util import find_spec

import pytest

from visionssm import compat
from visionssm.compat.stand_ins import _MODULES

CONSUMER = """
# A small vision model as published code writes them: a two-way Mamba block, a four-way scan, fused norms.
import torch
from torch import nn

from causal_conv1d import causal_conv1d_fn
from mamba_ssm.modules.mamba_simple import Mamba
from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn_no_out_proj, selective_scan_fn, selective_scan_ref

try:
    from mamba_ssm.ops.triton.layernorm import RMSNorm, layer_norm_fn, rms_norm_fn
except ImportError:
    RMSNorm = layer_norm_fn = rms_norm_fn = None
import selective_scan_cuda_oflex


class FourWays(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C):
        out, x, *rest = selective_scan_cuda_oflex.fwd(u, delta, A, B, C, None, None, True, 1, True)
        ctx.save_for_backward(u, delta, A, B, C, x)
        return out

    @staticmethod
    def backward(ctx, dout):
        u, delta, A, B, C, x = ctx.saved_tensors
        du, ddelta, dA, dB, dC, *rest = selective_scan_cuda_oflex.bwd(
            u, delta, A, B, C, None, None, dout.contiguous(), x, True, 1
        )
        return du, ddelta, dA, dB, dC


class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.tokens = nn.Conv2d(3, width, 4, 4)
        self.norm = RMSNorm(width, eps=1e-5)
        self.mamba = Mamba(d_model=width, d_state=4, d_conv=4, expand=2)
        self.conv = nn.Parameter(torch.randn(width, 3) * 0.1)
        self.A = nn.Parameter(torch.zeros(4 * width, 2))
        self.BC = nn.Linear(width, 16)
        self.head = nn.Linear(width, 10)

    def forward(self, image):
        x = self.tokens(image)
        H, W = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        h, residual = rms_norm_fn(x, self.norm.weight, self.norm.bias, residual=None, prenorm=True, eps=self.norm.eps)
        x = residual + self.mamba(h) + self.mamba(h.flip(1)).flip(1)
        u = causal_conv1d_fn(x.transpose(1, 2), self.conv, activation="silu")
        turned = u.unflatten(2, (H, W)).transpose(2, 3).flatten(2)
        four = torch.cat((u, turned, u.flip(2), turned.flip(2)), 1)
        B, C = self.BC(x).transpose(1, 2).unflatten(1, (2, 4, 2)).unbind(1)
        y = FourWays.apply(four, four, -self.A.exp(), B.contiguous(), C.contiguous())
        return self.head((x.transpose(1, 2) + y.unflatten(1, (4, -1)).sum(1)).mean(2))


torch.manual_seed(0)
net = Net()
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
image, label = torch.randn(16, 3, 16, 24), torch.arange(16) % 10
losses = []
for _ in range(8):
    loss = nn.functional.cross_entropy(net(image), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert all(p.grad is not None for p in net.parameters())
assert losses[-1] < 0.8 * losses[0], losses
"""


INSTALL_AND_UNINSTALL = """
import json, sys
from importlib.util import find_spec
from visionssm import compat

assert not any(name.startswith(("mamba_ssm", "causal_conv1d", "selective_scan_cuda")) for name in sys.modules)
before = list(sys.meta_path)
names = compat.install()
assert compat.install() == names and len(sys.meta_path) == len(before) + 1
import consumer

assert compat.uninstall() == names and compat.uninstall() == ()
assert sys.meta_path == before
assert not any(name.partition(".")[0] in names for name in sys.modules)
assert all(find_spec(name) is None for name in names)
print(json.dumps(names))
"""
NAMES = ("mamba_ssm", "causal_conv1d", "selective_scan_cuda_oflex", "selective_scan_cuda_core")


@pytest.fixture(autouse=True)
def clean():
    """These packages are absent before each test, and again after it."""
    if any(find_spec(name) for name in NAMES):
        pytest.skip("the real packages are installed here")
    yield
    compat.uninstall()
    for name in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
        del sys.modules[name]


@pytest.fixture
def fake_package(tmp_path):
    """A folder that holds a causal_conv1d, as far as Python can tell."""
    package = tmp_path / "site" / "causal_conv1d"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from .causal_conv1d_interface import causal_conv1d_fn\nreal = True\n")
    (package / "causal_conv1d_interface.py").write_text("def causal_conv1d_fn():\n    return 'the real one'\n")
    return str(package.parent)


def load(name):
    return importlib.import_module(name)


def test_code_for_those_packages_runs_and_trains_in_a_fresh_process(tmp_path):
    (tmp_path / "consumer.py").write_text(CONSUMER)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", INSTALL_AND_UNINSTALL],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert tuple(json.loads(done.stdout)) == NAMES


def test_every_stand_in_imports_and_reloads():
    assert compat.install() == NAMES
    for name in _MODULES:
        module = load(name)
        assert module.__spec__.name == module.__name__ == name and module.__doc__
        assert importlib.reload(module) is module
    interface = load("mamba_ssm.ops.selective_scan_interface")
    assert interface.selective_scan_fn is load("mamba_ssm").selective_scan_fn is compat.selective_scan_fn
    assert "visionssm.compat" in repr(interface)


def test_what_is_not_there_is_missing_as_usual():
    compat.install()
    with pytest.raises(ImportError, match="Mamba2"):
        exec("from mamba_ssm import Mamba2")
    with pytest.raises(ModuleNotFoundError, match=r"mamba_ssm\.distributed"):
        load("mamba_ssm.distributed")


def test_an_installed_package_is_left_alone(fake_package, monkeypatch):
    monkeypatch.syspath_prepend(fake_package)
    assert compat.install() == tuple(name for name in NAMES if name != "causal_conv1d")
    assert load("causal_conv1d").causal_conv1d_fn() == "the real one"
    assert load("mamba_ssm").Mamba is compat.Mamba


def test_an_imported_module_without_a_file_is_left_alone(monkeypatch):
    module = types.ModuleType("causal_conv1d")
    monkeypatch.setitem(sys.modules, "causal_conv1d", module)
    assert "causal_conv1d" not in compat.install()
    assert load("causal_conv1d") is module


def test_a_package_that_is_installed_later_wins(fake_package, monkeypatch):
    assert "causal_conv1d" in compat.install()
    monkeypatch.syspath_prepend(fake_package)
    assert load("causal_conv1d").real


@pytest.mark.parametrize("imported", [True, False])
def test_force_replaces_an_installed_package_until_uninstalled(imported, fake_package, monkeypatch):
    monkeypatch.syspath_prepend(fake_package)
    if imported:
        real, interface = load("causal_conv1d"), load("causal_conv1d.causal_conv1d_interface")
    assert "causal_conv1d" not in compat.install()
    assert compat.install(force=True) == NAMES
    for name in ("causal_conv1d", "causal_conv1d.causal_conv1d_interface"):
        assert load(name).causal_conv1d_fn is compat.causal_conv1d_fn
    compat.uninstall()
    assert load("causal_conv1d").causal_conv1d_fn() == "the real one"
    if imported:
        assert load("causal_conv1d") is real
        assert load("causal_conv1d.causal_conv1d_interface") is interface
