"""MambaVision against the published model's numbers, and against plain loops where it has options that were never published."""

import argparse
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from parity_data import (
    assert_gradients,
    assert_logits,
    assert_maps,
    fixture,
    fixtures,
    load_fixture_weights,
    operator_vectors,
)
from torch import nn

import visionssm
from visionssm.models import _build, all_releases
from visionssm.models.mambavision import MambaVision, MambaVisionMixer, from_windows, to_windows
from visionssm.ops import default_backend, explain_backend
from visionssm.testing.parity import relative_error, rule_image, rule_state_dict

VARIANTS = {
    "T": "tiny",
    "T2": "tiny2",
    "S": "small",
    "B": "base",
    "B_21k": "base.in21k_ft_in1k",
    "L": "large",
    "L_21k": "large.in21k_ft_in1k",
    "L2": "large2",
    "L2_512_21k": "large2_512",
    "L3_256_21k": "large3_256",
    "L3_512_21k": "large3_512",
}
TOLERANCE = 1e-5
SLOW = ("_T2_", "_B_", "_L", "_T_dense")
NANO = {"width": 8, "stem_width": 8, "depths": (1, 1, 3, 2), "heads": (2, 4)}


def build(name: str):
    """The model of a fixture: `mamba_vision_VARIANT_HxW`, or `..._VARIANT_dense_wA_B_HxW`."""
    variant, dense, windows = name.removeprefix("mamba_vision_").rpartition("_")[0].partition("_dense_w")
    options = {"out_norms": True, "window_size": [int(side) for side in windows.split("_")]} if dense else {}
    return visionssm.create_model(f"mambavision_{VARIANTS[variant]}", **options).eval()


@pytest.mark.parametrize("name", fixtures("mambavision", slow=SLOW))
def test_logits_and_features_match_the_published_model(name):
    content = fixture("mambavision", name)
    model = build(name)
    load_fixture_weights(model, content, name)
    with torch.inference_mode():
        features, maps = model.forward_intermediates(rule_image(**content["input"]))
        assert_logits(model.forward_head(features), content, TOLERANCE)
    assert_maps(maps, content["stages"], TOLERANCE)


@pytest.mark.parametrize("name", [n for n in fixtures("mambavision", having="stages", slow=SLOW) if "dense" in str(n)])
def test_features_match_the_published_dense_model(name):
    content = fixture("mambavision", name)
    model = build(name)
    load_fixture_weights(model, content, name)
    parameters = {n: p for n, p in model.named_parameters() if not n.startswith(("norm.", "head."))}
    assert sum(p.numel() for p in parameters.values()) == content["num_params"]
    with torch.inference_mode():
        maps = model.forward_intermediates(rule_image(**content["input"]), intermediates_only=True)
    assert_maps(maps, content["stages"], TOLERANCE)


@pytest.mark.parametrize("name", fixtures("mambavision", having="grads"))
def test_gradients_match_the_published_model(name):
    content = fixture("mambavision", name)
    model = build(name)
    load_fixture_weights(model, content, name)
    assert_gradients(model, content, tolerance=1e-4)


def mixer_from(parameters: dict[str, torch.Tensor], **options) -> MambaVisionMixer:
    """A float64 mixer with published parameters."""
    N = parameters["A_log"].shape[1]
    width = parameters["in_proj.weight"].shape[1]
    mixer = MambaVisionMixer(width, N, **options).double()
    prefix = "stages.2.blocks.0.mixer."
    own = {prefix + name: value for name, value in mixer.state_dict().items()}
    published = {f"levels.2.blocks.0.mixer.{name}": value for name, value in parameters.items()}
    converted = MambaVision.key_table.from_published(published, own)
    mixer.load_state_dict({name.removeprefix(prefix): value for name, value in converted.items()})
    return mixer


def published_parameters(module: nn.Module, prefix: str = "stages.2.blocks.0.mixer.") -> dict[str, torch.Tensor]:
    table = MambaVision.key_table
    state = table.to_published({prefix + name: value for name, value in module.state_dict().items()})
    return {name.split(".", 5)[5]: value for name, value in state.items()}


@pytest.mark.parametrize("backend", ["reference", "torch", "native"])
@pytest.mark.parametrize("case", range(5))
def test_mixer_matches_the_published_one_forward_and_backward(case, backend):
    if reason := explain_backend()[backend]:
        pytest.skip(reason)
    vectors = operator_vectors("mambavision", "mixer_ops")

    def read(kind: str) -> dict[str, torch.Tensor]:
        prefix = f"mixer{case}/{kind}/"
        return {n.removeprefix(prefix): torch.from_numpy(vectors[n]) for n in vectors.files if n.startswith(prefix)}

    mixer = mixer_from(read("param"))
    x = torch.from_numpy(vectors[f"mixer{case}/x"]).requires_grad_()
    with default_backend(backend):
        y = mixer(x)
        y.backward(torch.from_numpy(vectors[f"mixer{case}/dy"]))
    assert relative_error(y, vectors[f"mixer{case}/y"]) < 1e-12
    gradients = {name: p.grad for name, p in mixer.named_parameters()}
    published = MambaVision.key_table.to_published({f"stages.2.blocks.0.mixer.{n}": g for n, g in gradients.items()})
    published = {name.split(".", 5)[5]: g for name, g in published.items()} | {"x": x.grad}
    expected = read("grad")
    assert set(published) == set(expected)
    for name, gradient in expected.items():
        assert relative_error(published[name], gradient) < 1e-11, name


@pytest.mark.parametrize("case", range(3))
def test_windows_match_the_published_ones(case):
    vectors = operator_vectors("mambavision", "mixer_ops")
    x, side = torch.from_numpy(vectors[f"window{case}/x"]), int(vectors[f"window{case}/window_size"])
    windows = to_windows(x, (side, side))
    assert torch.equal(windows, torch.from_numpy(vectors[f"window{case}/windows"]))
    assert torch.equal(from_windows(windows, (side, side), x.shape[2:]), x)


def test_one_window_over_a_channels_last_map_is_a_view():
    x = torch.randn(2, 8, 4, 6).contiguous(memory_format=torch.channels_last)
    assert to_windows(x, (4, 6)).data_ptr() == x.data_ptr()


# Plain loops over tokens and windows, in float64, by the paper's definitions.


def mixer_by_loops(p, x, causal=False, side_branch="conv", merge="concat"):
    """p: parameters by their published names; x: (batch, L, C)."""
    batch, L, _ = x.shape
    E, N = p["A_log"].shape
    R = p["dt_proj.weight"].shape[1]
    h = x @ p["in_proj.weight"].T
    u, z = h[..., :E], h[..., E:]

    def convolved(s, weight):
        out = torch.zeros_like(s)
        for t in range(L):
            for k, tap in enumerate((-2, -1, 0) if causal else (-1, 0, 1)):
                if 0 <= t + tap < L:
                    out[:, t] += s[:, t + tap] * weight[:, 0, k]
        return out

    def silu(s):
        return s / (1 + torch.exp(-s))

    u = silu(convolved(u, p["conv1d_x.weight"]))
    if side_branch == "conv":
        z = convolved(z, p["conv1d_z.weight"])
    z = silu(z)
    state = torch.zeros(batch, E, N, dtype=x.dtype)
    steps = []
    for t in range(L):
        projected = u[:, t] @ p["x_proj.weight"].T
        dt, B, C = projected[:, :R], projected[:, R : R + N], projected[:, R + N :]
        delta = torch.log1p(torch.exp(dt @ p["dt_proj.weight"].T + 2 * p["dt_proj.bias"]))
        decay = torch.exp(-delta[:, :, None] * torch.exp(p["A_log"]))
        state = decay * state + (delta * u[:, t])[:, :, None] * B[:, None]
        steps.append((state * C[:, None]).sum(-1) + p["D"] * u[:, t])
    y = torch.stack(steps, dim=1)
    if side_branch != "none":
        y = torch.cat((y, z), dim=-1) if merge == "concat" else y * z
    return y @ p["out_proj.weight"].T


def attention_by_loops(p, x, heads):
    C = x.shape[2]
    d = C // heads
    q, k, v = (x @ p["qkv.weight"].T + p["qkv.bias"]).split(C, dim=-1)
    outputs = []
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        weights = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(d), dim=-1)
        outputs.append(weights @ v[..., part])
    return torch.cat(outputs, dim=-1) @ p["proj.weight"].T + p["proj.bias"]


def blocks_by_loops(stage, x):
    """The blocks of a level on one window, x: (batch, L, C)."""
    for block in stage.blocks:
        p = published_parameters(block.mixer)
        h = block.norm1(x)
        y = mixer_by_loops(p, h) if "A_log" in p else attention_by_loops(p, h, block.mixer.heads)
        x = x + y * (1 if block.scale1 is None else block.scale1)
        hidden = F.gelu(block.norm2(x) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
        y = hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
        x = x + y * (1 if block.scale2 is None else block.scale2)
    return x


def level_by_loops(stage, x, window, masked):
    """x: (batch, C, H, W); every window is cut, and padded with zeros unless masked, on its own."""
    (h, w), (_, C, H, W) = window, x.shape
    out = torch.empty_like(x)
    for top in range(0, H, h):
        for left in range(0, W, w):
            part = x[:, :, top : top + h, left : left + w]
            rows, columns = part.shape[2:]
            if not masked:
                part = F.pad(part, (0, w - columns, 0, h - rows))
            tokens = blocks_by_loops(stage, part.flatten(2).transpose(1, 2))
            result = tokens.transpose(1, 2).reshape(-1, C, *part.shape[2:])
            out[:, :, top : top + h, left : left + w] = result[:, :, :rows, :columns]
    return out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [(3, 3), (4, 4), (2, 6), (16, 16), "map"])
@torch.no_grad()
def test_levels_match_loops_over_windows_of_an_odd_map(window, masked):
    sizes = window if window == "map" else [window, window]
    model = MambaVision(num_classes=0, window_size=sizes, mask_padding=masked, layer_scale=0.3, **NANO).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    for i in (2, 3):
        x = torch.randn(2, model.feature_info[i]["num_chs"], 5, 7, dtype=torch.float64)
        expected = level_by_loops(model.stages[i], x, (5, 7) if window == "map" else window, masked)
        assert relative_error(model.run_stage(model.stages[i], x), expected) < 1e-12


def test_gradients_of_padded_windows_are_the_true_ones():
    model = MambaVision(num_classes=3, window_size=(3, 2), **NANO).double().eval()
    image = torch.randn(1, 3, 70, 91, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(image)
    model(image).square().sum().backward()
    with torch.no_grad():
        values = [model(image + step * 1e-5 * direction).square().sum() for step in (1, -1)]
    assert float((image.grad * direction).sum()) == pytest.approx(float(values[0] - values[1]) / 2e-5, rel=1e-6)


# Options


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "branches", [("conv", "concat"), ("conv", "gate"), ("plain", "concat"), ("plain", "gate"), ("none", "concat")]
)
def test_mixer_options_match_loops(causal, branches):
    options = {"causal": causal, "side_branch": branches[0], "merge": branches[1]}
    mixer = MambaVisionMixer(20, 3, **options).double()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 9, 20, dtype=torch.float64)
    expected = mixer_by_loops(published_parameters(mixer), x, **options)
    assert relative_error(mixer(x), expected) < 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_only_a_causal_mixer_never_looks_ahead(causal):
    mixer = MambaVisionMixer(16, causal=causal, dt_init="mamba").double()
    x = torch.randn(1, 8, 16, dtype=torch.float64)
    later = x.clone()
    later[:, 5:] += 1
    changed = (mixer(x) - mixer(later)).abs().amax((0, 2)) > 0
    assert changed.tolist() == [t >= (5 if causal else 4) for t in range(8)]


def test_without_its_convolution_the_side_branch_sees_its_own_token_only():
    x = torch.randn(1, 8, 16, dtype=torch.float64)
    later = x.clone()
    later[:, 5] += 1
    for side_branch, neighbours in (("conv", [4, 5, 6]), ("plain", [5])):
        mixer = MambaVisionMixer(16, side_branch=side_branch).double()
        with torch.no_grad():
            mixer.out_proj.weight[:, :8] = 0  # closes the scan's branch
        changed = (mixer(x) - mixer(later)).abs().amax((0, 2)) > 0
        assert changed.nonzero().flatten().tolist() == neighbours


def test_the_ablations_of_gate_and_concatenation_differ_by_the_output_projection_only():
    with torch.device("meta"):
        counts = {
            merge: sum(p.numel() for p in MambaVisionMixer(64, merge=merge).parameters())
            for merge in ("concat", "gate")
        }
    assert counts["concat"] - counts["gate"] == 64 * 32


def test_more_states_with_zero_input_change_nothing():
    small, large = MambaVisionMixer(32, state=8).double(), MambaVisionMixer(32, state=16).double()
    R = small.scan.dt_rank
    with torch.no_grad():
        for name, value in large.state_dict().items():
            if name == "scan.A_log":
                value[..., :8] = small.scan.A_log
            elif name == "scan.x_proj_weight":
                dt, B, C = small.scan.x_proj_weight.split((R, 8, 8), dim=1)
                value[:, : R + 8] = torch.cat((dt, B), dim=1)
                value[:, R + 8 : R + 16] = 0
                value[:, R + 16 : R + 24] = C
            else:
                value.copy_(small.state_dict()[name])
    x = torch.randn(2, 11, 32, dtype=torch.float64)
    assert relative_error(large(x), small(x).detach()) < 1e-13


def test_patterns_place_scans_and_attention():
    def kinds(model):
        return ["".join("S" if hasattr(b.mixer, "qkv") else "M" for b in stage.blocks) for stage in model.stages[2:]]

    with torch.device("meta"):
        assert kinds(visionssm.create_model("mambavision_tiny2")) == ["MMMMMMSSSSS", "MMSS"]
        assert kinds(visionssm.create_model("mambavision_small")) == ["MMMMSSS", "MMMSS"]
        for first in ("SSSSMMMM", "SMSMSMSM", "MSMSMSMS", "MMMMSSSS"):
            model = visionssm.create_model("mambavision_tiny", patterns=(first, "MMSS"))
            assert kinds(model) == [first, "MMSS"]
            assert sum(p.numel() for p in model.parameters()) == 31_794_248  # the paper's ablation: all of one size


def test_attention_alone_has_no_order_and_the_scan_has():
    permutation = torch.randperm(9)
    x = torch.randn(1, 32, 3, 3, dtype=torch.float64)
    shuffled = x.flatten(2)[:, :, permutation].view_as(x)
    for pattern, equal in (("SSS", True), ("MMM", False)):
        model = MambaVision(patterns=(pattern, "SS"), window_size="map", **NANO).double().eval()
        y, y_shuffled = (model.run_stage(model.stages[2], value).flatten(2) for value in (x, shuffled))
        assert torch.allclose(y[:, :, permutation], y_shuffled, atol=1e-10) is equal


def test_windows_do_not_see_each_other():
    model = MambaVision(window_size=(4, 4), **NANO).eval()
    x = torch.randn(1, 32, 8, 8)
    changed = x.clone()
    changed[:, :, 5, 6] += 1
    with torch.no_grad():
        moved = (model.run_stage(model.stages[2], x) != model.run_stage(model.stages[2], changed)).any(1)[0]
    assert not moved[:4].any() and not moved[:, :4].any()


@pytest.mark.parametrize("size", [(64, 96), (50, 71)])
def test_map_windows_equal_one_published_window_without_padding(size):
    image = torch.randn(1, 3, *size)
    by_map = MambaVision(window_size="map", **NANO).eval()
    published = MambaVision(img_size=size, **NANO).eval()
    masked = MambaVision(window_size=(112, 56), mask_padding=True, **NANO).eval()
    padded = MambaVision(window_size=(8, 4), **NANO).eval()
    for model in (published, masked, padded):
        model.load_state_dict(by_map.state_dict())
    with torch.no_grad():
        assert torch.equal(by_map(image), published(image))
        assert torch.equal(by_map(image), masked(image))
        assert not torch.allclose(by_map(image), padded(image), rtol=1e-3)


def test_set_input_size_chooses_windows():
    model = MambaVision(**NANO).eval()
    assert [stage.window for stage in model.stages[2:]] == [(14, 14), (7, 7)]
    model.set_input_size(img_size=(512, 400))
    assert [stage.window for stage in model.stages[2:]] == [(32, 25), (16, 13)]
    model.set_input_size(window_size=(64, 32))
    assert [stage.window for stage in model.stages[2:]] == [(64, 64), (32, 32)]
    model.set_input_size(window_size="map")
    assert [stage.window for stage in model.stages[2:]] == [None, None]


def test_drop_path_drops_windows_and_grows_linearly():
    model = MambaVision(drop_path_rate=0.3, **NANO)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.05 * i for i in range(7)])
    block = MambaVision(drop_path_rate=1.0, window_size=(2, 2), **{**NANO, "depths": (1, 1, 1, 1)}).stages[3].blocks[0]
    x = torch.randn(6, 4, 64)
    block.drop_path.drop_prob = 0.5
    kept = (block.train()(x) != x).flatten(1).float().mean(1)
    assert set(kept.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    "options",
    [
        {"patterns": ("MMM", "MSS")},
        {"patterns": ("MMX", "MS")},
        {"patterns": "MMMMS"},
        {"window_size": "whole"},
        {"window_size": (14,)},
        {"window_size": (0, 7)},
        {"heads": (3, 4)},
        {"side_branch": "convolution"},
        {"merge": "add"},
        {"dt_init": "zero"},
    ],
)
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MambaVision(**{**NANO, **options})


# Initialisation


@torch.no_grad()
def test_initial_values_are_the_released_ones():
    model = MambaVision(width=48, depths=(1, 1, 2, 2), layer_scale=1e-5)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    mixers = [m for m in model.modules() if isinstance(m, MambaVisionMixer)]
    weights = [m.weight for m in linear] + [w for m in mixers for w in (m.scan.x_proj_weight, m.scan.dt_weight)]
    for weight in weights:
        assert float(weight.std()) == pytest.approx(0.02, rel=0.05)
        assert float(weight.abs().max()) < 0.13
    for bias in [m.bias for m in linear if m.bias is not None] + [m.scan.dt_bias for m in mixers]:
        assert not bias.any()
    for mixer in mixers:
        assert torch.equal(mixer.scan.A_log[0], torch.arange(1.0, 9).log().expand(mixer.scan.A_log.shape[1], 8))
        assert (mixer.scan.D == 1).all()
    for block in (*model.stages[2].blocks, *model.stages[3].blocks):
        assert (block.scale1 == 1e-5).all() and (block.scale2 == 1e-5).all()
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            assert (module.weight == 1).all() and not module.bias.any()
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):  # torch's default: uniform within 1 / sqrt(fan in)
            bound = module.weight[0].numel() ** -0.5
            assert float(module.weight.abs().max()) <= bound * (1 + 1e-6)
            assert float(module.weight.std()) == pytest.approx(bound / 3**0.5, rel=0.1)


@torch.no_grad()
def test_mamba_initialisation_draws_log_uniform_steps():
    model = MambaVision(depths=(1, 1, 2, 2), dt_init="mamba")
    scan = model.stages[3].blocks[0].mixer.scan
    steps = F.softplus(scan.dt_bias).log()
    low, high = math.log(1e-3), math.log(1e-1)
    assert low - 1e-3 < float(steps.min()) and float(steps.max()) < high + 1e-3
    assert float(steps.mean()) == pytest.approx((low + high) / 2, abs=0.2)
    assert float(steps.std()) == pytest.approx((high - low) / 12**0.5, rel=0.1)
    bound = scan.dt_rank**-0.5
    assert float(scan.dt_weight.abs().max()) <= bound
    assert float(scan.dt_weight.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert float(scan.x_proj_weight.std()) == pytest.approx(0.02, rel=0.05)


# Releases and weight files


@pytest.mark.parametrize("name", [name for name in all_releases() if name.startswith("mambavision")])
def test_releases_state_the_exact_size_of_their_model(name):
    release = all_releases()[name]
    with torch.device("meta"):
        model = visionssm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == release.params
    sides = [side for stage in model.stages[2:] for side in stage.window]
    assert sides == [-(-release.input_size[1] // stride) for stride in (16, 16, 32, 32)]
    if release.has_weights and not release.file:
        assert release.source.startswith("https://huggingface.co/nvidia/MambaVision-")
        assert release.commercial is False


@pytest.fixture
def published_nano():
    """A trained-looking nano model, and its weights under published names."""
    model = visionssm.create_model("mambavision_nano", out_norms=True).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model, _build.export_published(model)


def classifier(state):
    return {name: value for name, value in state.items() if not name.startswith("outnorm")}


def test_training_checkpoints_load_their_weights_and_not_their_average(tmp_path, published_nano):
    model, state = published_nano
    weights = {f"module.{name}": value for name, value in classifier(state).items()}
    average = {name: value + 1 for name, value in weights.items()}
    content = {
        "epoch": 3,
        "arch": "mamba_vision_T",
        "state_dict_ema": average,
        "state_dict": weights,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        "args": argparse.Namespace(lr=5e-3),
    }
    torch.save(content, tmp_path / "mambavision.pth.tar")
    loaded = visionssm.create_model("mambavision_nano", checkpoint=tmp_path / "mambavision.pth.tar").eval()
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(image), model(image))


def test_hub_files_load(tmp_path, published_nano):
    from safetensors.torch import save_file

    model, state = published_nano
    save_file(
        {f"model.{name}": value.contiguous() for name, value in classifier(state).items()},
        tmp_path / "model.safetensors",
    )
    loaded = visionssm.create_model("mambavision_nano", checkpoint=tmp_path).eval()
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(image), model(image))


def test_detectors_give_their_backbone_with_its_norms(tmp_path, published_nano, caplog):
    model, state = published_nano
    backbone = {f"backbone.{name}": value for name, value in state.items() if not name.startswith(("norm.", "head."))}
    content = {
        "meta": {},
        "state_dict": {**backbone, "neck.lateral.weight": torch.ones(2), "rpn_head.bias": torch.ones(1)},
    }
    torch.save(content, tmp_path / "cascade_mask_rcnn.pth")
    with caplog.at_level(logging.WARNING):
        features = visionssm.create_model(
            "mambavision_nano", features_only=True, out_norms=True, checkpoint=tmp_path / "cascade_mask_rcnn.pth"
        ).eval()
    assert f"took the {len(backbone)} tensors of the backbone, and left 2" in caplog.text
    image = torch.randn(1, 3, 40, 56)
    expected = model.forward_intermediates(image, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(features(image), expected, strict=True))


def test_dense_features_leave_no_parameter_without_gradient():
    model = visionssm.create_model("mambavision_nano", features_only=True, out_norms=True, out_indices=(0, 1, 2))
    sum(feature.square().sum() for feature in model(torch.randn(2, 3, 40, 56))).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_file_with_other_levels_is_refused(published_nano):
    _, state = published_nano
    del state["levels.2.blocks.0.mixer.conv1d_z.weight"]
    with pytest.raises(ValueError, match=r"1 missing: stages\.2\.blocks\.0\.mixer\.side_conv\.weight"):
        visionssm.create_model(
            "mambavision_nano", pretrained=True, pretrained_cfg_overlay={"state_dict": classifier(state)}
        )


def test_published_names_come_back_unchanged():
    content = fixture("mambavision", "mamba_vision_T_224x224")
    state = rule_state_dict(content)
    model = build("mamba_vision_T_224x224")
    _build.load_published(model, state, model.pretrained_cfg, "fixture")
    exported = _build.export_published(model)
    assert {name: list(value.shape) for name, value in exported.items()} == {
        name: shape for name, (shape, _) in content["state_dict"].items()
    }
    assert all(torch.equal(exported[name], value) for name, value in state.items())


def test_fetching_prints_the_licence_once(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _build._print_licence.cache_clear()
    for name in ("mambavision_tiny", "mambavision_tiny", "mambavision_small"):
        with pytest.raises(FileNotFoundError, match=r"resolve/main/model\.safetensors"):
            visionssm.create_model(name, pretrained=True)
    assert capsys.readouterr().err.count("not for commercial use (CC-BY-NC-SA-4.0") == 1
