"""`benchmarks/gpu.py` from end to end on the smallest inputs, in Triton's interpreter: what can be tested of it without a GPU."""

import importlib
import json
import sys
from pathlib import Path

import fast_interpreter
import pytest

from visionssm.ops import explain_backend

REFUSAL = explain_backend("cpu")["triton"]
pytestmark = pytest.mark.skipif(REFUSAL is not None, reason=f"triton {REFUSAL}")


@pytest.fixture
def gpu(monkeypatch):
    """The script as a module."""
    fast_interpreter.install()
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("gpu")


@pytest.fixture
def run(gpu, monkeypatch, tmp_path, capsys):
    def run(*options):
        monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path), "--device", "cpu", "--tiny", *options])
        status = gpu.main()
        record = json.loads((tmp_path / "gpu.json").read_text())
        report = (tmp_path / "gpu.md").read_text()
        assert report in capsys.readouterr().out
        return status, record, report

    return run


def test_every_part_and_the_report(run):
    status, record, report = run("--parts", "correctness", "operator", "models")
    assert status == 0
    assert record["complete"]
    assert {name: part["status"] for name, part in record["parts"].items()} == dict.fromkeys(
        ("machine", "correctness", "operator", "models"), "done"
    )
    checks = record["parts"]["correctness"]["results"]
    assert all(check["passed"] for rows in checks.values() for check in rows)
    stage = record["parts"]["operator"]["results"]["VMamba-T stage 1"]
    assert stage["error"] < 1e-2
    measured = {goal["name"]: goal for goal in record["goals"]}
    assert measured["VMamba-T stage 1 forward"]["measured"] == pytest.approx(stage["forward"]["us"])
    assert measured["VMamba-T stage 2 forward"]["met"] is None
    assert "| VMamba-T stage 2 forward | at most 200 us | - | not measured |" in report


@pytest.mark.slow
def test_other_blocks(run):
    status, record, _ = run("--parts", "blocks")
    assert status == 1  # correctness was not checked
    rows = record["parts"]["blocks"]["results"]["VMamba-T stage 1"]
    assert {row["choice"] for row in rows} == {"forward_blocks", "backward_blocks"}


def test_a_part_that_fails_or_has_no_time_loses_nothing(gpu, run, monkeypatch):
    monkeypatch.setattr(gpu.gpu_correctness, "run_all", lambda *_: 1 / 0)
    status, record, report = run("--parts", "correctness")
    assert status == 1
    assert record["parts"]["correctness"]["status"] == "failed"
    assert "ZeroDivisionError" in report
    _, record, _ = run("--parts", "models", "--minutes", "0")
    assert record["parts"]["models"] == {"status": "out of time", "results": {}}
    assert record["parts"]["machine"]["results"]["versions"]["torch"]


def test_a_kernel_that_is_wrong_is_told(gpu, run, monkeypatch):
    monkeypatch.setitem(gpu.gpu_correctness.LIMITS, "float32", 0.0)
    monkeypatch.setattr(gpu.gpu_correctness, "above_2_to_the_31", lambda *_: [])
    status, record, report = run("--parts", "correctness")
    assert status == 1
    assert record["complete"]
    assert "1 of 2 passed" in report
    assert "FAILED: case case/four_unlike_paths" in report
