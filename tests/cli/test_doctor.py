"""`visionssm doctor` on this machine."""

import importlib.util
import json
import platform

import pytest
import torch

from visionssm.cli import diagnosis
from visionssm.cli.errors import EXTRAS
from visionssm.cli.main import main
from visionssm.ops import explain_backend, native


def test_json_report(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    assert report["versions"]["python"] == platform.python_version()
    assert report["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert report["system"]["torch_threads"] == torch.get_num_threads()

    cpu = report["devices"][0]
    assert cpu["device"] == "cpu"
    assert cpu["backends"] == explain_backend("cpu")
    assert cpu["auto"] == ("native" if cpu["backends"]["native"] is None else "torch")
    serving = {name for name, reason in cpu["backends"].items() if reason is None}
    assert set(cpu["self_check"]) == serving - {"reference", "triton"}  # on the CPU Triton would be interpreted
    missing = cpu["backends"]["native"] is not None
    assert report["system"]["native_kernels"] in (["none"] if missing else native.INSTRUCTION_SETS)
    assert any("compiler" in note for note in report["notes"]) == missing


def test_text_report_says_the_same(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    auto = next(line for line in text.splitlines() if "auto takes" in line)
    assert auto.split()[-1] in ("native", "torch")
    assert text.rstrip().endswith("everything works")


def test_what_can_be_imported_has_a_version():
    versions = diagnosis.examine()["versions"]
    for module in EXTRAS:
        assert (versions[module] is not None) == (importlib.util.find_spec(module) is not None), module


@pytest.mark.parametrize("damage", [lambda y: y + 0.1, lambda y: y * float("nan")], ids=["wrong", "nan"])
def test_a_back_end_that_computes_something_else_is_found(damage, monkeypatch, capsys):
    from visionssm import ops

    correct = ops.path_scan

    def damaged(*args, backend, **kwargs):
        y = correct(*args, backend=backend, **kwargs)
        return damage(y) if backend == "torch" else y

    monkeypatch.setattr(ops, "path_scan", damaged)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "problem: cpu: torch is wrong" in text
    assert "everything works" not in text


def test_a_requirement_that_is_not_met_is_named(monkeypatch):
    found = diagnosis._version
    monkeypatch.setattr(diagnosis, "_version", lambda name: "0.9.2" if name == "timm" else found(name))
    problems = diagnosis.examine()["problems"]
    assert len(problems) == 1
    assert "timm 0.9.2" in problems[0] and "pip install -U timm" in problems[0]
