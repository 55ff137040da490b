"""The examples of other libraries' dense models run as they are, on a small backbone."""

import importlib.util
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
DENSE = ("smp_segmentation", "torchvision_detection", "transformers_backbone")


def load(name):
    pytest.importorskip(name.split("_")[0].replace("smp", "segmentation_models_pytorch"))
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["smp_segmentation", "transformers_backbone"])
@pytest.mark.parametrize("backbone", ["vmamba_nano", "mambavision_nano"])
def test_segmentation(name, backbone):
    assert load(name).main(backbone, 64).shape == (2, 3, 64, 64)


def test_detection():
    torch.manual_seed(0)
    found = load("torchvision_detection").main("vmamba_nano", 64)
    assert found["boxes"].shape[1] == 4 and {"labels", "scores"} <= found.keys()


@pytest.mark.parametrize("name", DENSE)
def test_examples_are_short(name):
    code = (EXAMPLES / f"{name}.py").read_text().split('"""', 2)[2]
    assert len([line for line in code.splitlines() if line.strip()]) < 40
