"""Weight files: every published container is read, and what does not fit is said clearly.

The published formats are built from the weight rule, with the classes that the authors' training scripts pickled.
"""

import argparse
import collections
import sys
import types

import numpy as np
import pytest
import torch
from parity_data import assert_logits, fixture
from safetensors.torch import save_file

import visionssm
from visionssm.models import convert_checkpoint, export_published
from visionssm.models._checkpoint import read_checkpoint
from visionssm.testing.parity import rule_image, rule_state_dict, rule_tensor

NANO = ("vim_nano", "vmamba_nano")


def published_state(name: str) -> dict[str, torch.Tensor]:
    """The rule's weights of a small model under published names and in published shapes."""
    model = visionssm.create_model(name)
    return {key: rule_tensor(key, tuple(value.shape)) for key, value in export_published(model).items()}


@pytest.fixture(scope="module", params=NANO)
def published(request):
    return request.param, published_state(request.param)


@pytest.fixture
def config_class(monkeypatch):
    """A configuration node like the one of yacs, from a module that is there when the file is written only."""
    module = types.ModuleType("yacs.config")

    class CfgNode(dict):
        def __init__(self, *args):
            super().__init__(*args)
            self.__dict__["__immutable__"] = True

        def __setattr__(self, name, value):
            raise AttributeError("immutable")

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module.CfgNode = CfgNode
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        yield CfgNode


def vim_container(state, config_class):
    weights = [torch.nn.Parameter(torch.randn(3))]
    optimizer = torch.optim.AdamW(weights)
    weights[0].grad = torch.ones(3)
    optimizer.step()
    return {
        "model": collections.OrderedDict(state),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"base_values": [1e-3], "metric": None},
        "epoch": 299,
        "model_ema": collections.OrderedDict({key: value + 1 for key, value in state.items()}),
        "scaler": {"scale": 65536.0, "_growth_tracker": 0},
        "args": argparse.Namespace(lr=5e-4, opt="adamw", data_path="/data", nested=argparse.Namespace(a=[1, 2])),
    }


def vmamba_container(state, config_class):
    return {
        "model": collections.OrderedDict(state),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "lr_scheduler": {"last_epoch": 299},
        "max_accuracy": np.float64(82.6),
        "random": {"numpy": np.random.RandomState(0).get_state(), "counts": collections.defaultdict(int, a=1)},
        "scaler": {"scale": 65536.0},
        "epoch": 264,
        "config": config_class({"MODEL": config_class({"NAME": "vssm", "DEPTHS": [2, 2, 8, 2]}), "AMP": True}),
    }


CONTAINERS = {
    "bare": lambda state, _: state,
    "model": lambda state, _: {"model": state},
    "state_dict": lambda state, _: {"state_dict": state, "epoch": 3},
    "model_ema": lambda state, _: {"model_ema": state},
    "state_dict_ema": lambda state, _: {"state_dict_ema": state},
    "distributed": lambda state, _: {f"module.{key}": value for key, value in state.items()},
    "lightning": lambda state, _: {"state_dict": {f"model.{key}": value for key, value in state.items()}},
    "ema of distributed": lambda state, _: {"ema_model": {f"module.module.{k}": v for k, v in state.items()}},
    "vim training": vim_container,
    "vmamba training": vmamba_container,
}


def assert_holds(model, state) -> None:
    loaded = export_published(model)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_is_read(published, container, old_format, config_class, tmp_path, monkeypatch):
    name, state = published
    content = CONTAINERS[container](state, config_class)
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=not old_format)
    monkeypatch.delitem(sys.modules, "yacs.config", raising=False)
    monkeypatch.delitem(sys.modules, "yacs", raising=False)
    assert_holds(visionssm.create_model(name, checkpoint=tmp_path / "weights.pth"), state)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_safetensors_are_known_by_their_content(published, suffix, tmp_path):
    name, state = published
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / f"weights{suffix}")
    assert_holds(visionssm.create_model(name, checkpoint=tmp_path / f"weights{suffix}"), state)


def test_torch_files_are_known_by_their_content(published, tmp_path):
    name, state = published
    torch.save(state, tmp_path / "weights.safetensors")
    assert_holds(visionssm.create_model(name, checkpoint=tmp_path / "weights.safetensors"), state)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_own_names_are_read_back(published, suffix, tmp_path):
    name, state = published
    torch.save(state, tmp_path / "published.pth")
    convert_checkpoint(name, tmp_path / "published.pth", tmp_path / f"own{suffix}")
    model = visionssm.create_model(name, checkpoint=tmp_path / f"own{suffix}")
    assert read_checkpoint(tmp_path / f"own{suffix}").keys() == model.state_dict().keys()
    assert_holds(model, state)


@pytest.mark.parametrize(
    ("name", "file", "container"),
    [("vim_tiny", "vim_tiny_224x224", vim_container), ("vmamba_tiny", "vmamba_tiny_s1l8_224x224", vmamba_container)],
)
def test_published_file_gives_the_published_logits(name, file, container, config_class, tmp_path):
    content = fixture(name.partition("_")[0], file)
    torch.save(container(rule_state_dict(content), config_class), tmp_path / "weights.pth")
    model = visionssm.create_model(name, checkpoint=tmp_path / "weights.pth").eval()
    with torch.inference_mode():
        assert_logits(model(rule_image(**content["input"])), content, 2e-5)


def test_containers_are_preferred_in_the_order_given(tmp_path, config_class, caplog):
    state = published_state("vim_nano")
    torch.save(vim_container(state, config_class), tmp_path / "weights.pth")
    plain, averaged = (read_checkpoint(tmp_path / "weights.pth", prefer=p) for p in ((), ("model_ema",)))
    assert torch.equal(averaged["head.bias"], plain["head.bias"] + 1)
    assert not caplog.text
    other = read_checkpoint(tmp_path / "weights.pth", prefer=("state_dict_ema",))
    assert torch.equal(other["head.bias"], plain["head.bias"])
    assert "there is no state_dict_ema in it; took model" in caplog.text


class Malicious:
    """Would leave a trace if it were unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "legacy"])
def test_nothing_in_a_file_is_run(tmp_path, old_format):
    state = published_state("vim_nano")
    content = {"model": state, "args": Malicious(tmp_path / "trace")}
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=not old_format)
    assert_holds(visionssm.create_model("vim_nano", checkpoint=tmp_path / "weights.pth"), state)
    assert not (tmp_path / "trace").exists()


# What does not fit.


@pytest.fixture(scope="module")
def whole(tmp_path_factory, published):
    name, state = published
    folder = tmp_path_factory.mktemp("whole")
    torch.save({"model": state}, folder / "weights.pth")
    torch.save({"model": state}, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "weights.safetensors")
    return name, folder


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("file", ["weights.pth", "old.pth", "weights.safetensors"])
def test_truncated_file(whole, file, part, tmp_path):
    name, folder = whole
    content = (folder / file).read_bytes()
    (tmp_path / file).write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=rf"{file} cannot be read as a weight file \([\d,]+ bytes; truncated"):
        visionssm.create_model(name, checkpoint=tmp_path / file)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("start", ["<!DOCTYPE html>\n<html>", "\n <html lang='en'>"])
def test_web_page(published, start, suffix, tmp_path):
    (tmp_path / f"page{suffix}").write_text(start + "<body>Sign in</body></html>" * 40)
    with pytest.raises(ValueError, match=rf"page{suffix} is a web page, not a weight file: download the file itself"):
        visionssm.create_model(published[0], checkpoint=tmp_path / f"page{suffix}")


def test_pointer_to_large_file_storage(published, tmp_path):
    (tmp_path / "weights.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(ValueError, match=r"Git LFS pointer, not the weights"):
        visionssm.create_model(published[0], checkpoint=tmp_path / "weights.pth")


@pytest.mark.parametrize(("name", "other"), [("vim_tiny", "vim_small"), ("vmamba_tiny", "vmamba_small")])
def test_weights_of_another_variant(name, other, tmp_path):
    torch.save(export_published(visionssm.create_model(other)), tmp_path / "weights.pth")
    with pytest.raises(
        ValueError, match=r"weights\.pth does not fit (Vim|VMamba): .*(unexpected|of another shape)"
    ) as caught:
        visionssm.create_model(name, checkpoint=tmp_path / "weights.pth")
    assert len(str(caught.value)) < 1500


def test_weights_of_another_family(published, tmp_path):
    name, state = published
    torch.save(state, tmp_path / "weights.pth")
    other = next(each for each in NANO if each != name)
    with pytest.raises(ValueError, match=r"does not fit .*: \d+ missing: .*; \d+ unexpected: "):
        visionssm.create_model(other, checkpoint=tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("vim_nano", "norm_f.weight"),
        ("vim_nano", "layers.2.mixer.A_b_log"),
        ("vmamba_nano", "layers.1.blocks.0.op.x_proj_weight"),
        ("vmamba_nano", "classifier.head.bias"),
    ],
)
def test_missing_key_is_named_as_published(name, key, tmp_path):
    state = published_state(name)
    del state[key]
    torch.save({"model": state}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth does not fit .*: 1 missing: ") as caught:
        visionssm.create_model(name, checkpoint=tmp_path / "weights.pth")
    assert key in str(caught.value)


def test_unexpected_and_reshaped_keys_are_named_together(tmp_path):
    state = published_state("vim_nano")
    state["extra.weight"] = torch.zeros(1)
    state["norm_f.weight"] = torch.zeros(7)
    del state["layers.0.norm.weight"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError) as caught:
        visionssm.create_model("vim_nano", checkpoint=tmp_path / "weights.pth")
    message = str(caught.value)
    assert "1 missing: blocks.0.norm.weight (published as layers.0.norm.weight)" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 of another shape: norm.weight (7,) instead of (64,)" in message


def test_own_names_with_one_too_many_are_not_taken_for_published_ones(tmp_path):
    state = visionssm.create_model("vim_nano").state_dict()
    torch.save({**state, "extra.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"does not fit Vim: 1 unexpected: extra\.weight$"):
        visionssm.create_model("vim_nano", checkpoint=tmp_path / "weights.pth")


def test_directions_of_different_shapes_are_no_single_tensor(tmp_path):
    state = published_state("vim_nano")
    state["layers.0.mixer.D_b"] = torch.zeros(3)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"1 missing: blocks\.0\.mixer\.scan\.D .*2 unexpected: layers\.0\.mixer\.D, "):
        visionssm.create_model("vim_nano", checkpoint=tmp_path / "weights.pth")


def test_file_that_is_not_there_or_holds_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.pth"):
        visionssm.create_model("vim_nano", checkpoint=tmp_path / "nowhere.pth")
    for content in ({"epoch": 3}, [torch.zeros(2)], torch.zeros(2), "weights"):
        torch.save(content, tmp_path / "nothing.pth")
        with pytest.raises(ValueError, match=r"nothing\.pth holds no tensors: expected a state dict"):
            visionssm.create_model("vim_nano", checkpoint=tmp_path / "nothing.pth")
