"""`compat.install()`: code that imports mamba_ssm, causal_conv1d or VMamba's extension runs without them."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

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


def run(program, *, path=None, cwd=None):
    """Runs a program in a process of its own; returns what it printed as JSON."""
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(path), environment.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, env=environment, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout else None


@pytest.fixture(scope="module", autouse=True)
def packages_are_absent():
    from importlib.util import find_spec

    if any(find_spec(name) for name in ("mamba_ssm", "causal_conv1d", "selective_scan_cuda_oflex")):
        pytest.skip("the real packages are installed here")


@pytest.fixture
def fake_package(tmp_path):
    """A causal_conv1d that is installed, as far as Python can tell."""
    package = tmp_path / "site" / "causal_conv1d"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from .causal_conv1d_interface import causal_conv1d_fn\nreal = True\n")
    (package / "causal_conv1d_interface.py").write_text("def causal_conv1d_fn():\n    return 'the real one'\n")
    return package.parent


def test_code_for_those_packages_runs_and_trains(tmp_path):
    (tmp_path / "consumer.py").write_text(CONSUMER)
    run("from visionssm import compat; compat.install(); import consumer", path=tmp_path)


def test_install_and_uninstall():
    found = run("""
        import json, sys
        from importlib.util import find_spec
        from visionssm import compat
        before = list(sys.meta_path)
        first, second = compat.install(), compat.install()
        import mamba_ssm, causal_conv1d
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
        named = [mamba_ssm.ops.selective_scan_interface.__spec__.name, repr(mamba_ssm), mamba_ssm.selective_scan_fn is selective_scan_fn]
        ours = selective_scan_fn is compat.selective_scan_fn
        try:
            from mamba_ssm import Mamba2
        except ImportError as error:
            missing = str(error)
        try:
            import mamba_ssm.distributed
        except ModuleNotFoundError as error:
            absent = error.name
        hooks = len(sys.meta_path) - len(before)
        removed = compat.uninstall()
        gone = [find_spec(name) is None for name in removed]
        left = [name for name in sys.modules if name.partition(".")[0] in removed]
        print(json.dumps([first, second, named, ours, missing, absent, hooks, removed, gone, left, sys.meta_path == before, compat.uninstall()]))
    """)
    first, second, named, ours, missing, absent, hooks, removed, gone, left, restored, nothing = found
    assert first == second == removed
    assert set(first) == {"mamba_ssm", "causal_conv1d", "selective_scan_cuda_oflex", "selective_scan_cuda_core"}
    assert named == ["mamba_ssm.ops.selective_scan_interface", "<module 'mamba_ssm' (visionssm.compat)>", True]
    assert ours and "Mamba2" in missing and absent == "mamba_ssm.distributed"
    assert hooks == 1 and all(gone) and left == [] and restored and nothing == []


def test_every_stand_in_imports_and_holds_only_functions_of_ours():
    """Stars and every module by name; what a module holds comes from visionssm.compat."""
    assert run("""
        import importlib, json
        from visionssm import compat
        from visionssm.compat.stand_ins import _MODULES
        compat.install()
        for name in _MODULES:
            module = importlib.import_module(name)
            assert module.__spec__.name == module.__name__ == name and module.__doc__
            assert importlib.reload(module) is module
            for public in (v for v in vars(module) if not v.startswith("_")):
                value = getattr(module, public)
                assert value.__module__ in _MODULES or value.__module__.startswith("visionssm.compat") if hasattr(value, "__module__") else value.__name__ in _MODULES, (name, public)
        print(json.dumps(len(_MODULES)))
    """) > 8  # fmt: skip


def test_an_installed_package_is_left_alone(fake_package):
    found = run(
        """
        import json
        from visionssm import compat
        names = compat.install()
        import causal_conv1d, mamba_ssm
        from causal_conv1d import causal_conv1d_fn
        print(json.dumps([names, causal_conv1d.real, causal_conv1d_fn()]))
    """,
        path=fake_package,
    )
    names, real, said = found
    assert "causal_conv1d" not in names and "mamba_ssm" in names
    assert real and said == "the real one"


def test_an_imported_module_without_a_file_is_left_alone():
    assert run("""
        import json, sys, types
        module = sys.modules["causal_conv1d"] = types.ModuleType("causal_conv1d")
        from visionssm import compat
        names = compat.install()
        import causal_conv1d
        print(json.dumps([names, causal_conv1d is module]))
    """) == [["mamba_ssm", "selective_scan_cuda_oflex", "selective_scan_cuda_core"], True]


def test_a_package_that_is_installed_later_wins(fake_package):
    assert run(f"""
        import json, sys
        from visionssm import compat
        compat.install()
        sys.path.append({str(fake_package)!r})
        import causal_conv1d
        print(json.dumps(causal_conv1d.real))
    """)


def test_force_replaces_an_installed_package_until_uninstalled(fake_package):
    found = run(
        """
        import json, sys
        import causal_conv1d as real
        from causal_conv1d import causal_conv1d_interface as interface
        from visionssm import compat
        plain = compat.install()
        names = compat.install(force=True)
        from causal_conv1d import causal_conv1d_fn
        from causal_conv1d.causal_conv1d_interface import causal_conv1d_fn as inner
        ours = causal_conv1d_fn is inner is compat.causal_conv1d_fn
        compat.uninstall()
        import causal_conv1d
        from causal_conv1d.causal_conv1d_interface import causal_conv1d_fn
        print(json.dumps([plain, names, ours, causal_conv1d is real, causal_conv1d_fn()]))
    """,
        path=fake_package,
    )
    plain, names, ours, back, said = found
    assert "causal_conv1d" not in plain and "causal_conv1d" in names
    assert ours and back and said == "the real one"
