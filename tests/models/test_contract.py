"""What every registered model must do, whatever its family: timm's contract, any size, and torch's machinery.

The small model of each family runs everything; the published ones are checked without computing (meta device), and the
whole registry runs forward and backward in `make test-all`.
"""

import copy
import io
import pickle

import numpy as np
import pytest
import timm
import torch
from timm.models._manipulate import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

import visionssm
from visionssm.models import all_releases, count_parameters
from visionssm.ops import default_backend

NANO = [name for name in visionssm.list_models() if "nano" in name]
PUBLISHED = [name for name in visionssm.list_models() if "nano" not in name]
SIZES = [(32, 32), (33, 47), (64, 48)]


def build(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return visionssm.create_model(name, **options).eval()


def image(H: int = 32, W: int = 32, channels: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, H, W, generator=torch.Generator().manual_seed(1))


def test_every_family_has_a_small_model():
    families = {name.rpartition("_nano")[0] for name in NANO}
    assert {
        "vmamba",
        "vim",
        "mambavision",
        "groupmamba",
        "local_vim",
        "local_vmamba",
        "efficient_vmamba",
        "simba",
    } <= families


@pytest.mark.parametrize("name", PUBLISHED + NANO)
def test_parameters_are_the_published_count(name):
    with torch.device("meta"):
        count = count_parameters(visionssm.create_model(name))
    releases = {key: r for key, r in all_releases().items() if key.partition(".")[0] == name}
    assert releases
    assert {r.params for r in releases.values()} == {count}


@pytest.mark.parametrize("name", PUBLISHED)
def test_configuration_is_sane(name):
    """timm's config checks: first convolution, classifier and input size are what the model has."""
    with torch.device("meta"):
        model = visionssm.create_model(name)
    cfg = model.pretrained_cfg
    state = model.state_dict()
    classifiers = (cfg["classifier"],) if isinstance(cfg["classifier"], str) else cfg["classifier"]
    for classifier in classifiers:
        assert state[f"{classifier}.weight"].shape[0] == cfg["num_classes"] == model.num_classes
    assert state[f"{cfg['first_conv']}.weight"].shape[1] == cfg["input_size"][0]
    assert len(model.feature_info) >= 3
    assert model.num_features == model.head_hidden_size


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NANO)
def test_any_size(name, size):
    model = build(name)
    with torch.inference_mode():
        logits = model(image(*size))
        features = model.forward_features(image(*size))
    assert logits.shape == (2, model.num_classes)
    assert logits.isfinite().all()
    with torch.inference_mode():
        assert torch.equal(model.forward_head(features), logits)
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize("name", NANO)
def test_every_choice_of_features(name):
    reference = build(name)
    count = len(reference.feature_info)
    with torch.inference_mode():
        final, maps = reference.forward_intermediates(image(33, 47))
        assert torch.equal(final, reference.forward_features(image(33, 47)))
    for indices in ((0,), (count - 1,), tuple(range(count)), (0, count - 1)):
        model = build(name, features_only=True, out_indices=indices)
        info = [reference.feature_info[i] for i in indices]
        assert model.feature_info.channels() == [entry["num_chs"] for entry in info]
        assert model.feature_info.reduction() == [entry["reduction"] for entry in info]
        with torch.inference_mode():
            outputs = model(image(33, 47))
        assert len(outputs) == len(indices)
        for output, index, entry in zip(outputs, indices, info, strict=True):
            assert output.shape[:2] == (2, entry["num_chs"])
            for side, pixels in zip(output.shape[2:], (33, 47), strict=True):
                assert pixels // entry["reduction"] <= side <= -(-pixels // entry["reduction"])
            assert torch.equal(output, maps[index])


@pytest.mark.parametrize("name", NANO)
def test_intermediates_options(name):
    model = build(name)
    with torch.inference_mode():
        maps = model.forward_intermediates(image(), intermediates_only=True)
        swapped = model.forward_intermediates(image(), intermediates_only=True, output_fmt="NHWC")
        assert all(torch.equal(a.permute(0, 2, 3, 1), b) for a, b in zip(maps, swapped, strict=True))
        first = model.forward_intermediates(image(), indices=[0], intermediates_only=True, stop_early=True)
        assert torch.equal(first[0], maps[0])
    with pytest.raises(ValueError, match="output_fmt"):
        model.forward_intermediates(image(), output_fmt="CHW")
    taken = model.prune_intermediate_layers([0, 1])
    with torch.inference_mode():
        pruned = model.forward_intermediates(image(), indices=taken, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(pruned, maps[:2], strict=True))


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("name", NANO)
def test_other_input_channels_adapt_the_first_convolution(name, channels, tmp_path):
    source = build(name)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = build(name, checkpoint=tmp_path / "weights.pth", in_chans=channels)
    first = model.pretrained_cfg["first_conv"]
    own, given = (m.get_submodule(first).weight for m in (model, source))
    assert own.shape[1] == channels
    if channels == 1:
        torch.testing.assert_close(own, given.sum(1, keepdim=True))
    with torch.inference_mode():
        assert model(image(channels=channels)).isfinite().all()


@pytest.mark.parametrize("name", NANO)
def test_classifier_can_be_replaced(name, tmp_path):
    model = build(name)
    model.reset_classifier(7)
    with torch.inference_mode():
        assert model(image()).shape == (2, 7)
        model.reset_classifier(0)
        assert model(image()).shape == (2, model.num_features)
        model.reset_classifier(0, "")
        unpooled = model(image())
    assert unpooled.shape[-1 if unpooled.dim() == 3 else 1] == model.num_features
    assert build(name, num_classes=0)(image()).shape == (2, model.num_features)
    source = build(name)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    tuned = build(name, checkpoint=tmp_path / "weights.pth", num_classes=3)
    shared = {
        k: v for k, v in tuned.state_dict().items() if source.state_dict()[k].shape == v.shape and "head" not in k
    }
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in shared.items())
    assert tuned(image()).shape == (2, 3)


@pytest.mark.parametrize("name", NANO)
def test_every_parameter_gets_a_gradient_and_checkpointing_changes_none(name):
    plain, saving = (build(name, drop_path_rate=0.0).train() for _ in range(2))
    saving.set_grad_checkpointing()
    gradients = []
    for model in (plain, saving):
        output = model(image())
        sum(o.square().sum() for o in (output if isinstance(output, tuple) else (output,))).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
        gradients.append([p.grad for p in model.parameters()])
    for (parameter, _), a, b in zip(plain.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=parameter)


@pytest.mark.parametrize("name", NANO)
def test_compiles_as_one_graph(name):
    model = build(name)
    with torch.inference_mode():
        expected = model(image())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(image()), expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NANO)
def test_exports(name):
    model = build(name)
    program = torch.export.export(model, (image(),))
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(image()), model(image()), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # tracing warns of itself, and of every size that it fixes
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", NANO)
@torch.no_grad()
def test_traces_for_one_size(name, backend):
    model = build(name)
    with default_backend(backend):
        traced = torch.jit.trace(model, image(33, 47), check_trace=False)
        x = 2 * image(33, 47).flip(2)
        torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", NANO)
def test_autocast_is_finite_and_near(name, dtype):
    model = build(name)
    with torch.inference_mode():
        exact = model(image())
        with torch.autocast("cpu", dtype):
            low = model(image())
    assert low.isfinite().all()
    assert (low.float() - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", NANO)
def test_a_model_cast_to_half_precision_runs_in_it(name, dtype, backend):
    model = build(name)
    with torch.inference_mode(), default_backend(backend):
        exact = model(image())
        low = model.to(dtype)(image().to(dtype))
    assert low.dtype == dtype
    assert (low.float() - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("name", NANO)
def test_every_model_is_the_same_without_a_compiler(name):
    model = build(name)
    with torch.inference_mode():
        expected = model(image())
        with default_backend("torch"):
            torch.testing.assert_close(model(image()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NANO)
def test_channels_last_input_and_float64(name):
    model = build(name)
    with torch.inference_mode():
        expected = model(image())
        torch.testing.assert_close(model(image().contiguous(memory_format=torch.channels_last)), expected)
        exact = model.double()(image().double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NANO)
def test_survives_copying_and_saving(name):
    model = build(name)
    with torch.inference_mode():
        expected = model(image())
        assert torch.equal(copy.deepcopy(model)(image()), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(image()), expected)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(5)
    other = visionssm.create_model(name).eval()
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    with torch.inference_mode():
        assert torch.equal(other(image()), expected)


@pytest.mark.parametrize("name", NANO + PUBLISHED)
def test_layer_decay_reaches_every_block(name):
    """Every parameter is in a group; layers are numbered from the stem to the head, and no block shares the head's
    number.
    """
    with torch.device("meta"):
        model = visionssm.create_model(name)
    groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    assert set(groups) == {n for n, _ in model.named_parameters()}
    last = max(groups.values())
    first_conv = model.pretrained_cfg["first_conv"] + ".weight"
    assert groups[first_conv] == 0
    blocks = {number for n, number in groups.items() if "blocks." in n}
    assert len(blocks) >= sum(1 for m in model.modules() if hasattr(m, "drop_path") or hasattr(m, "drop_path1")) > 0
    assert last not in blocks
    assert all(number == last for n, number in groups.items() if n.startswith(("head", "dist_head")))


@pytest.mark.parametrize("name", NANO)
def test_weight_decay_leaves_the_recurrence_alone(name):
    model = build(name)
    kept_out = model.no_weight_decay()
    named = dict(model.named_parameters())
    assert kept_out <= set(named)
    assert {n for n in named if n.rpartition(".")[2] in ("A_log", "D", "dt_bias", "pos_embed", "cls_token")} <= kept_out
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.9)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"]}
    assert not any(id(named[n]) in decayed for n in kept_out)
    assert any(id(p) in decayed for p in named.values())


@pytest.mark.parametrize("name", NANO)
def test_drop_path_acts_in_training_only(name):
    model = build(name, drop_path_rate=0.5)
    with torch.inference_mode():
        assert torch.equal(model(image()), build(name)(image()))
        batch = image(batch=1).expand(8, -1, -1, -1)
        outputs = model.train()(batch)
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    assert not np.allclose(logits[0], logits[1:])


def test_unknown_options_are_named():
    for name in NANO:
        with pytest.raises(TypeError, match="depht"):
            visionssm.create_model(name, depht=3)


def test_names_are_ours_and_no_other_librarys():
    assert not [name for name in visionssm.list_models() if name not in {n.partition(".")[0] for n in all_releases()}]
    assert timm.is_model("vmamba_tiny")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in PUBLISHED if not any(big in name for big in ("large", "base", "512"))]
)
def test_published_models_run_forward_and_backward(name):
    model = build(name).train()
    output = model(image(64, 96, batch=1))
    sum(o.mean() for o in (output if isinstance(output, tuple) else (output,))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
