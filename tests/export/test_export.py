"""Exported files run without this library, at other sizes and batches, and give what the model gives."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import visionssm
from visionssm.export import export, fuse, quantize_linear

pytest.importorskip("onnxruntime")
NANOS = [name for name in visionssm.list_models() if "nano" in name]
QUICK = ("vmamba_nano", "mambavision_nano")


def build(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return visionssm.create_model(name, **options).eval()


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NANOS])
def test_onnx_with_open_sizes(name, tmp_path):
    import onnx

    model = build(name)
    exported = export(model, tmp_path / "model.onnx", img_size=(32, 64), metadata={"classes": ["a"]})
    assert list(exported.errors) == [(1, 32, 64), (3, 32, 64), (2, 48, 64), (2, 49, 73)]
    assert max(exported.errors.values()) < 1e-5
    proto = onnx.load(exported.file)
    assert {node.domain for node in proto.graph.node} == {""}
    scans = sum(node.op_type == "Scan" for node in proto.graph.node)
    assert scans == sum(hasattr(module, "A_log") for module in model.modules())
    (entry,) = proto.metadata_props
    assert json.loads(entry.value) == {"classes": ["a"]}
    sizes = [dim.dim_param for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    assert [bool(size) for size in sizes] == [True, False, True, True]


@pytest.mark.slow
def test_vmamba_tiny_stays_small(tmp_path):
    import onnx

    exported = export(build("vmamba_tiny"), tmp_path / "model.onnx")
    assert len(onnx.load(exported.file).graph.node) < 3000
    assert max(exported.errors.values()) < 1e-5


@pytest.mark.slow
def test_feature_maps_have_names(tmp_path):
    model = build("vmamba_nano", features_only=True)
    exported = export(model, tmp_path / "features.onnx", img_size=64)
    assert exported.outputs == ["feature_0", "feature_1", "feature_2", "feature_3"]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch-export", "aoti"])
def test_programs_run_where_this_library_is_not(format, tmp_path):
    """In a process that can't import visionssm."""
    model = build("vmamba_nano")
    file = tmp_path / "model.pt2"
    export(model, file, format, img_size=96 if format == "torch-export" else 64)
    images = torch.randn(2, 3, 97, 130) if format == "torch-export" else torch.randn(1, 3, 64, 64)
    torch.save({"images": images, "expected": model(images).detach()}, tmp_path / "case.pt")
    load = {
        "torch-export": "torch.export.load(sys.argv[1]).module()",
        "aoti": "torch._inductor.aoti_load_package(sys.argv[1])",
    }[format]
    code = (
        "import sys; sys.modules['visionssm'] = None; import torch; case = torch.load(sys.argv[2])\n"
        f"with torch.no_grad(): y = {load}(case['images'])\n"
        "assert (y - case['expected']).abs().max() < 1e-5 * case['expected'].abs().max()"
    )
    subprocess.run([sys.executable, "-c", code, str(file), str(tmp_path / "case.pt")], check=True)


def test_a_wrong_program_is_not_written(tmp_path):
    class Doubled(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.model(images) * (2 if torch.compiler.is_exporting() else 1)

    model = Doubled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    before = tmp_path / "model.pt2"
    before.write_bytes(b"older")
    with pytest.raises(ValueError, match="differs from the model at 1x3x32x32"):
        export(model, before, "torch-export", img_size=32)
    assert before.read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model.onnx", "onx"), "format: got 'onx', choose from onnx, torch-export, aoti"),
        (("model.pt2", "onnx"), "ends in .onnx"),
        (("model.onnx", "onnx", {"img_size": (0, 3)}), "positive sides"),
        (("model.pt2", "aoti", {"dynamic": True}), "AOTInductor can't compile"),
    ],
)
def test_bad_input(arguments, message, tmp_path):
    file, format, *options = arguments
    with pytest.raises(ValueError, match=message):
        export(build("vmamba_nano"), tmp_path / file, format, **(options[0] if options else {}))


@pytest.mark.parametrize("name", NANOS)
def test_fused_model_is_the_same_function(name):
    model = build(name)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
    fused = fuse(model)
    images = torch.randn(2, 3, 48, 64)
    with torch.inference_mode():
        expected, found = model(images), fused(images)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    left = sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert left < norms or norms == 0
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == (norms > 0)


def test_quantised_linear_layers():
    pytest.importorskip("torchao")
    model = build("vmamba_nano")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected, found = model(images), quantize_linear(model)(images)
    assert 0 < (found - expected).abs().max() < 0.2 * expected.abs().max()
