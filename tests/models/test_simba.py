"""SiMBA against the published code's numbers; no weights were ever released."""

import math

import numpy as np
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

import visionssm
from visionssm.layers.vim_mixer import VimMixer
from visionssm.models import export_published, load_published
from visionssm.models.simba import EinFFT, exchange_box, from_frequencies, random_box, to_frequencies, token_label_loss
from visionssm.testing.parity import map_errors, relative_error, rule_image, rule_state_dict

NAMES = {"simba_s_einfft": "simba_small", "simba_s_mlp": "simba_small_mlp", "simba_l_einfft": "simba_large"}
LOGITS, STAGES = 5e-6, 5e-5


def build(name: str, content, **options) -> torch.nn.Module:
    model = visionssm.create_model(NAMES[name.rpartition("_")[0]], **options).eval()
    load_fixture_weights(model, content, name)
    return model


def vectors(case: str) -> dict[str, torch.Tensor]:
    content = operator_vectors("simba", "ops_f64")
    prefix = f"{case}/"
    return {key.removeprefix(prefix): torch.from_numpy(content[key]) for key in content.files if key.startswith(prefix)}


@pytest.mark.parametrize("name", fixtures("simba", slow=("simba_l",)))
def test_logits_and_features_match_the_published_code(name):
    content = fixture("simba", name)
    model = build(name, content)
    assert sum(p.numel() for p in model.parameters()) == content["num_params"]
    image = rule_image(**content["input"])
    with torch.inference_mode():
        tokens, maps = model.forward_intermediates(image)
        logits = model.forward_head(tokens)
        assert torch.equal(model(image), logits)
        class_logits, aux_logits, _ = model.forward_token_labels(image)
    assert_logits(logits, content, LOGITS)
    assert_maps(maps, content["stages"], STAGES)
    if "class_feature" in content:
        assert max(map_errors(model.forward_head(tokens, pre_logits=True), content["class_feature"]).values()) < STAGES
        assert max(map_errors(aux_logits, content["aux_logits"]).values()) < STAGES
    if "logits_token_label_false" in content:
        assert relative_error(class_logits[:, :32], content["logits_token_label_false"]) < LOGITS


def test_model_without_token_labels():
    name = "simba_s_einfft_256x320"
    content = fixture("simba", name)
    model = visionssm.create_model("simba_small", token_label=False).eval()
    weights = {key: value for key, value in rule_state_dict(content).items() if not key.startswith("aux_head")}
    load_published(model, weights, model.pretrained_cfg, name)
    with torch.inference_mode():
        logits = model(rule_image(**content["input"]))
    assert relative_error(logits[:, :32], content["logits_token_label_false"]) < LOGITS
    with pytest.raises(ValueError, match="token_label=True"):
        model.forward_token_labels(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("name", fixtures("simba", having="grads", slow=("mlp",)))
def test_gradients_match_the_published_code(name):
    content = fixture("simba", name)
    assert_gradients(build(name, content), content, tolerance=1e-4)


def ein_fft(values: dict[str, torch.Tensor], transform: str) -> EinFFT:
    mixer = EinFFT(values["x"].shape[2], transform=transform).double()
    names = {
        "weight1": "complex_weight_1",
        "weight2": "complex_weight_2",
        "bias1": "complex_bias_1",
        "bias2": "complex_bias_2",
    }
    mixer.load_state_dict({ours: values[theirs] for ours, theirs in names.items()})
    return mixer


GRIDS = {"einfft0": (1, 7), "einfft1": (5, 7), "einfft2": (1, 1), "einfft3": (4, 9), "einfft4": (7, 7)}


@pytest.mark.parametrize("transform", ["fft", "real"])
@pytest.mark.parametrize("case", GRIDS)
def test_ein_fft_matches_the_published_operator(case, transform):
    values = vectors(case)
    mixer = ein_fft(values, transform)
    x = values["x"].double().requires_grad_()
    y = mixer(x.unflatten(1, GRIDS[case])).flatten(1, 2)
    assert relative_error(y, values["y"]) < 1e-12
    y.backward(values["g"].double())
    assert relative_error(x.grad, values["grad_x"]) < 1e-11
    for ours, theirs in (("weight", "complex_weight"), ("bias", "complex_bias")):
        for layer in (1, 2):
            assert relative_error(getattr(mixer, f"{ours}{layer}").grad, values[f"grad_{theirs}_{layer}"]) < 1e-11


@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (5, 1), (4, 4), (6, 9), (13, 8)])
def test_real_transform_is_the_complex_one(grid):
    H, W = grid
    x = torch.randn(2, H, W, 4, 3, dtype=torch.float64)
    ours = torch.view_as_complex(to_frequencies(x).contiguous())
    expected = torch.fft.fft2(x.flatten(1, 2), dim=(1, 2), norm="ortho")
    # Frequency k + H l is at [k, l].
    torch.testing.assert_close(ours.transpose(1, 2).flatten(1, 2), expected)
    torch.testing.assert_close(from_frequencies(torch.view_as_real(ours)), x)


def test_transform_does_not_depend_on_the_shape_of_the_sequence():
    mixer = EinFFT(8, transform="real").double()
    x = torch.randn(1, 24, 8, dtype=torch.float64)
    results = [mixer(x.unflatten(1, grid)).flatten(1, 2) for grid in ((24, 1), (1, 24), (4, 6), (6, 4), (3, 8))]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


@pytest.mark.parametrize("transform", ["fft", "real"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ein_fft_stays_in_float32_under_autocast(dtype, transform):
    mixer = EinFFT(16, transform=transform)
    x = torch.randn(2, 6, 5, 16)
    with torch.autocast("cpu", dtype):
        assert torch.equal(mixer(x), mixer.float()(x))
        y = mixer(x)
    assert torch.equal(y, mixer(x))
    low = mixer.to(dtype)(x.to(dtype))
    assert low.dtype == dtype and low.isfinite().all()


def test_model_can_be_exported_without_complex_numbers():
    """For every size at once."""
    model = visionssm.create_model("simba_nano").eval()
    side = torch.export.Dim("H", min=65, max=512), torch.export.Dim("W", min=65, max=512)
    program = torch.export.export(model, (torch.randn(1, 3, 96, 128),), dynamic_shapes=({2: side[0], 3: side[1]},))
    image = torch.randn(1, 3, 70, 101)
    kinds = {n.meta["val"].dtype for n in program.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)}
    assert not any(dtype.is_complex for dtype in kinds)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(image), model(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["mamba0", "mamba1", "mamba2"])
def test_mixer_matches_the_published_operator(case):
    values = vectors(case)
    mixer = VimMixer(values["x"].shape[2], state=values["A_log"].shape[1], directions="forward", halve=False).double()
    names = {
        "in_proj.weight": "in_proj.weight",
        "conv.weight": "conv1d.weight",
        "conv.bias": "conv1d.bias",
        "scan.x_proj_weight": "x_proj.weight",
        "scan.dt_weight": "dt_proj.weight",
        "scan.dt_bias": "dt_proj.bias",
        "scan.A_log": "A_log",
        "scan.D": "D",
        "out_proj.weight": "out_proj.weight",
    }
    mixer.load_state_dict({ours: values[theirs].view_as(mixer.state_dict()[ours]) for ours, theirs in names.items()})
    x = values["x"].double().requires_grad_()
    y = mixer(x)
    assert relative_error(y, values["y"]) < 1e-12
    y.backward(values["g"].double())
    assert relative_error(x.grad, values["grad_x"]) < 1e-11
    for name, parameter in mixer.named_parameters():
        expected = values[f"grad_{names[name]}"]
        assert float((parameter.grad.view_as(expected) - expected).abs().max()) <= 1e-11 * max(
            float(expected.abs().max()), 1e-3
        )


@pytest.mark.parametrize("case", ["tokenlabel0", "tokenlabel1"])
def test_token_label_loss_is_the_published_one(case):
    values = vectors(case)
    class_logits, aux_logits = (values[key].requires_grad_() for key in ("cls_logits", "aux_logits"))
    loss = token_label_loss(class_logits, aux_logits, values["target"], tuple(values["box"].tolist()))
    assert loss.item() == pytest.approx(float(values["loss"]), rel=1e-12)
    loss.backward()
    assert relative_error(class_logits.grad, values["grad_cls"]) < 1e-12
    assert relative_error(aux_logits.grad, values["grad_aux"]) < 1e-12


def test_one_label_serves_the_image_and_its_tokens():
    label = torch.softmax(torch.randn(3, 5), dim=1)
    logits, tokens = torch.randn(3, 5), torch.randn(3, 4, 5)
    expected = F.cross_entropy(logits, label) + 0.5 * F.cross_entropy(
        tokens.flatten(0, 1), label.repeat_interleave(4, 0)
    )
    torch.testing.assert_close(token_label_loss(logits, tokens, label), expected)
    with pytest.raises(ValueError, match=r"2 \+ 4"):
        token_label_loss(logits, tokens, label[:, :, None].expand(-1, -1, 4))


def test_mixed_tokens_are_mixed_back():
    """With nothing that mixes tokens between the exchange and its undoing, it is as if nothing had been exchanged."""
    maps = torch.randn(4, 7, 7, 3)
    for _ in range(20):
        box = random_box(7, 7)
        mixed = exchange_box(maps, box)
        top, left, bottom, right = box
        assert 0 <= top <= bottom <= 7 and 0 <= left <= right <= 7
        assert torch.equal(mixed[:, top:bottom, left:right], maps.flip(0)[:, top:bottom, left:right])
        assert torch.equal(exchange_box(mixed, box), maps)
    model = visionssm.create_model("simba_nano").train()
    class_logits, token_logits, box = model.forward_token_labels(torch.randn(2, 3, 96, 64))
    assert class_logits.shape == (2, 10) and token_logits.shape == (2, 6, 10)
    target = torch.softmax(torch.randn(2, 10, 8), dim=1)
    token_label_loss(class_logits, token_logits, target, box).backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match="multiples of 32"):
        model.forward_token_labels(torch.randn(2, 3, 72, 64))


def test_boxes_cover_the_share_that_they_are_drawn_for():
    torch.manual_seed(0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (random_box(64, 64) for _ in range(2000))]
    assert min(areas) < 30 and max(areas) > 0.9 * 64 * 64
    # A box of share 1 - u around a uniform centre keeps, per side s, s - s^2 / 4 of the side on average.
    s = np.sqrt(1 - np.linspace(0, 1, 10001))
    assert np.mean(areas) / 64**2 == pytest.approx(np.mean((s - s**2 / 4) ** 2), rel=0.08)


def test_bidirectional_tokens_see_what_follows():
    """Exchanging the directions' parameters reverses the mixer; forward alone is causal."""
    model = visionssm.create_model("simba_nano", directions="bidirectional").double()
    mixer = model.stages[0].blocks[0].mixer
    x = torch.randn(1, 9, 24, dtype=torch.float64)
    expected = mixer(x.flip(1)).flip(1)
    with torch.no_grad():
        for name in (
            "conv.weight",
            "conv.bias",
            "scan.x_proj_weight",
            "scan.dt_weight",
            "scan.dt_bias",
            "scan.A_log",
            "scan.D",
        ):
            parameter = mixer.get_parameter(name)
            parameter.copy_(parameter.flip(0).clone())
    torch.testing.assert_close(mixer(x), expected)
    causal = visionssm.create_model("simba_nano").double().stages[0].blocks[0].mixer
    changed = x.clone()
    changed[:, 5:] += 1
    assert torch.equal(causal(x)[:, :5], causal(changed)[:, :5])
    assert not torch.allclose(mixer(x)[:, :5], mixer(changed)[:, :5])


@pytest.mark.parametrize("name", ["simba_s_einfft_224x224", "simba_s_mlp_224x224"])
def test_converts_back_to_published_names(name):
    content = fixture("simba", name)
    weights = rule_state_dict(content)
    back = export_published(build(name, content))
    assert {key for key in back if "num_batches" not in key} == set(weights)
    assert all(torch.equal(back[key], value) for key, value in weights.items())


def test_norms_have_the_published_epsilons():
    model = visionssm.create_model("simba_nano")
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            fine = name.endswith("norm2") or name in ("norm", "stages.0.norm", "stages.1.norm", "stages.2.norm")
            assert module.eps == (1e-6 if fine else 1e-5), name


@pytest.mark.parametrize("mixer", ["einfft", "mlp"])
def test_initial_values(mixer):
    torch.manual_seed(0)
    model = visionssm.create_model("simba_nano", channel_mixer=mixer, widths=(64, 64, 128, 128), state=64)
    block = model.stages[2].blocks[0]
    scan = block.mixer.scan
    linear = [
        scan.x_proj_weight,
        scan.dt_weight,
        block.mixer.in_proj.weight,
        block.mixer.out_proj.weight,
        model.head.weight,
    ]
    if mixer == "mlp":
        linear.append(block.channel_mixer.fc1.weight)
        assert not block.channel_mixer.fc2.bias.any() and not block.channel_mixer.conv.bias.any()
        assert block.channel_mixer.conv.weight.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.1)
    else:
        linear += list(block.channel_mixer.parameters())
    for weight in linear:
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not scan.dt_bias.any()
    torch.testing.assert_close(scan.A_log.exp(), torch.arange(1.0, 65).expand_as(scan.A_log))
    assert torch.equal(scan.D, torch.ones_like(scan.D))
    assert block.mixer.conv.weight.abs().max() <= 0.5 and block.mixer.conv.bias.any()
    assert model.stem.conv2.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 16)), rel=0.1)
    delta = F.softplus(visionssm.create_model("simba_nano", dt_init="mamba").stages[0].blocks[0].mixer.scan.dt_bias)
    assert 9e-4 < delta.min() < 0.01 and 0.03 < delta.max() < 0.101
