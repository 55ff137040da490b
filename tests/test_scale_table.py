"""The table in docs/scale.md is what tools/scale_table.py counts for the recipes of today."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from visionssm.recipes import list_recipes

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("scale_table", ROOT / "tools" / "scale_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale_table"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["scale_table"]


def test_every_recipe_is_in_the_table():
    """Run tools/scale_table.py after a change."""
    text = (ROOT / "docs" / "scale.md").read_text()
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")] == list_recipes("*_in1k")


def test_the_whole_table_is_up_to_date(tool):
    assert tool.table(list_recipes("*_in1k")) in (ROOT / "docs" / "scale.md").read_text()


def test_the_cost_of_vmamba_tiny_is_that_of_its_published_speed(tool):
    """571 images/s on one GPU, 8 of them, 300 epochs: 23.4 hours. The table's rate is this speed, rounded."""
    cost = tool.cost("vmamba_tiny_in1k")
    assert cost.gpu_hours / cost.gpus == pytest.approx(300 * 1_281_167 / (8 * 571) / 3600, rel=0.02)
    assert cost.state_gib == pytest.approx(30_249_064 * 20 / 2**30)


def test_a_teacher_and_mesa_are_counted(tool):
    distilled = tool.cost("groupmamba_tiny_in1k")
    assert distilled.flops == pytest.approx(2e9 * 300 * tool.IMAGENET * (3 * distilled.gmacs + 15.93), rel=2e-3)
    assert distilled.state_gib == pytest.approx((23_361_917 * 20 + 83_590_140 * 4) / 2**30, rel=1e-6)
    mesa = tool.cost("mambavision_tiny_in1k")
    epochs = 320 * 3 + 320 - 0.25 * 310
    assert mesa.flops == pytest.approx(2e9 * tool.IMAGENET * mesa.gmacs * epochs, rel=1e-9)
    assert mesa.gpus == 32


def test_activations_are_the_tensors_that_backward_needs(tool):
    """Of a 4 x 4 image: itself, the output of ReLU, the logits, and what the loss keeps."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    two, three = (tool._saved_bytes(model, torch.zeros(batch, 3, 4, 4), mixed=False) for batch in (2, 3))
    assert three - two == 4 * (3 * 16 + 8 * 16 + 10 + 1)
