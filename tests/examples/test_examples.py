"""The examples run as they are, on small inputs, and stay short."""

import importlib.util
from pathlib import Path

import pytest
import torch

from visionssm.cli.main import main as visionssm
from visionssm.data import load_digits

EXAMPLES = Path(__file__).parents[2] / "examples"
OURS = (
    "features_for_custom_head",
    "fine_tune",
    "custom_scan_path",
    "distillation",
    "detection",
    "segmentation",
    "onnx_serving",
    "lora",
)


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", OURS)
def test_examples_are_short(name):
    code = (EXAMPLES / f"{name}.py").read_text().split('"""', 2)[2]
    assert len([line for line in code.splitlines() if line.strip()]) < 60


def test_features_for_custom_head():
    assert load("features_for_custom_head").main("vmamba_nano", 32, 64).shape == (2, 1, 8, 16)


def test_fine_tune(tmp_path):
    result = load("fine_tune").main("digits", "vmamba_nano", 1, str(tmp_path / "run"))
    assert result.final.top1 > 0.9  # it starts from trained weights


def test_hilbert_paths_visit_everything():
    table = load("custom_scan_path").hilbert(5, 6)
    assert torch.equal(table.sort(dim=1).values, torch.arange(30, dtype=torch.int32).expand(4, 30))
    assert len({tuple(row) for row in table.tolist()}) == 4


@pytest.mark.slow
def test_custom_scan_path():
    assert min(load("custom_scan_path").main(4).values()) > 0.9


@pytest.mark.slow
def test_distillation(tmp_path):
    assert load("distillation").main(2, str(tmp_path)).final.top1 > 0.3


def test_detection():
    assert {"boxes", "masks", "scores"} <= load("detection").main(2, size=64).keys()


def test_segmentation():
    pytest.importorskip("transformers")
    assert load("segmentation").main(2, size=64).shape == (64, 64)


def test_onnx_serving(tmp_path, capsys):
    """The exported file gives in NumPy what `visionssm predict` gives."""
    pytest.importorskip("onnxruntime")
    file = tmp_path / "model.onnx"
    assert visionssm(["export", "vmamba_nano", "--pretrained", "--out", str(file), "--static"]) == 0
    load_digits().test.load(0).resize((48, 48)).convert("RGB").save(tmp_path / "photo.png")
    best = load("onnx_serving").main(str(file), str(tmp_path / "photo.png"))
    assert len(best) == 3
    assert visionssm(["predict", str(tmp_path / "photo.png"), "--model", "vmamba_nano"]) == 0
    name, share = best[0]
    assert f"{name} {100 * share:.1f} %" in capsys.readouterr().out.splitlines()[-1]


def test_lora():
    pytest.importorskip("peft")
    trained, total = load("lora").main("vmamba_nano", 32)
    assert trained < total / 3
