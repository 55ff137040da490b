"""GroupMamba against the published model's numbers, and against a plain rewriting of it."""

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
from visionssm.models import count_parameters, export_published, load_published
from visionssm.models.groupmamba import GroupedScan, ModulatedGroupMamba, PaperBlock
from visionssm.ops import paths
from visionssm.ops.backends import default_backend, explain_backend
from visionssm.testing.parity import map_errors, relative_error, rule_image, rule_tensor

BACKENDS = [name for name in ("reference", "torch", "native") if explain_backend()[name] is None]
SMALL = {
    "stem_width": 8,
    "widths": (16, 24, 36, 48),
    "depths": (1, 1, 2, 1),
    "mlp_ratios": (2, 2, 2, 2),
    "distillation": True,
}


def rule_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's state dict under published names, filled by the fixtures' rule."""
    return {
        name: rule_tensor(name, tuple(value.shape)) if value.is_floating_point() else value
        for name, value in export_published(model).items()
    }


def small_model(**options):
    torch.manual_seed(0)
    return visionssm.create_model("groupmamba_nano", **{**SMALL, **options}).eval()


def randomised(module: nn.Module) -> nn.Module:
    """Every parameter drawn anew, so that none is zero or one."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("name", fixtures("groupmamba", slow=("base", "256")))
def test_logits_and_features_match_the_published_model(name):
    content = fixture("groupmamba", name)
    model = visionssm.create_model(name.rpartition("_")[0]).eval()
    load_fixture_weights(model, content, name)
    assert count_parameters(model) == content["num_params"]
    image = rule_image(**content["input"])
    if "base" in name:
        # Its depth amplifies rounding: float32 with products summed in another order is 2e-4 away from these float32 numbers.
        model, image = model.double(), image.double()
    with torch.inference_mode():
        final, maps = model.forward_intermediates(image)
        pooled = model.forward_head(final, pre_logits=True)
        logits = model.forward_head(final)
        heads = model.head(pooled), model.dist_head(pooled)
    assert_logits(logits, content, tolerance=2e-4)
    assert_maps(maps, content["stages"], tolerance=1e-4)
    assert max(map_errors(pooled, content["pooled_feature"]).values()) < 1e-4
    for head, kind in zip(heads, ("head", "dist_head"), strict=True):
        assert relative_error(head[:, :8], content[f"{kind}_logits_first8"]) < 2e-4
        assert relative_error(head.double().norm(dim=1), content[f"{kind}_logits_l2"]) < 1e-5


@pytest.mark.parametrize("name", fixtures("groupmamba", having="grads"))
def test_gradients_match_the_published_model(name):
    content = fixture("groupmamba", name)
    model = visionssm.create_model(name.rpartition("_")[0]).eval()
    load_fixture_weights(model, content, name)
    # The layer is invariant to the scale but for eps: its gradient is what is left of sums that cancel.
    assert_gradients(model, content, tolerance=1e-3, skip=("skip_scale",))
    gradients = model.key_table.to_published({n: p.grad for n, p in model.named_parameters()})
    scales = {name: norm for name, norm in content["grads"].items() if "skip_scale" in name}
    assert len(scales) == 20
    assert all(abs(float(gradients[name].norm()) - norm) < 5e-4 for name, norm in scales.items())
    # A walk of one step never multiplies a state by exp(delta A).
    assert not model.pooled_block.mixer.groups.scan.A_log.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("first", [0, 4, 8])
def test_scan_of_all_groups_matches_the_published_operator(first, backend):
    """Four cases of one size, one per direction, are one call of ours."""
    vectors = operator_vectors("groupmamba", "vsss_scan_f64")
    assert [int(vectors[f"case{first + k}_direction"]) for k in range(4)] == [1, 2, 3, 4]

    def stacked(name: str) -> list[torch.Tensor]:
        return [torch.from_numpy(vectors[f"case{first + k}_{name}"]) for k in range(4)]

    def rows(maps: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([m.flatten(2).transpose(1, 2) for m in maps], dim=2)

    _, d, H, W = stacked("x")[0].shape
    groups = GroupedScan(4 * d, state=stacked("A_logs")[0].shape[1])
    rank = stacked("dt_projs_weight")[0].shape[2]
    groups.scan = type(groups.scan)(d, 4, groups.scan.state, rank).double()
    names = {
        "x_proj_weight": "x_proj_weight",
        "dt_projs_weight": "dt_weight",
        "dt_projs_bias": "dt_bias",
        "A_logs": "A_log",
        "Ds": "D",
    }
    with torch.no_grad():
        for theirs, ours in names.items():
            parameter = getattr(groups.scan, ours)
            parameter.copy_(torch.stack(stacked(theirs)).view(parameter.shape))
    x = rows(stacked("x")).requires_grad_()
    with default_backend(backend):
        y = groups.scan(x, groups.paths(H, W), merge=False)
        y.backward(rows(stacked("grad_y")))
    assert relative_error(y, rows(stacked("y"))) < 1e-12
    assert relative_error(x.grad, rows(stacked("d_x"))) < 1e-12
    for theirs, ours in names.items():
        for k, gradient in enumerate(stacked(f"d_{theirs}")):
            assert relative_error(getattr(groups.scan, ours).grad[k], gradient) < 1e-12, (theirs, k)


def linear(state, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def conv(state, name: str, x: torch.Tensor, **options) -> torch.Tensor:
    """A convolution of a channels-last map that pads half its kernel."""
    weight = state[f"{name}.weight"]
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, state.get(f"{name}.bias"), padding=weight.shape[2] // 2, **options)
    return y.permute(0, 2, 3, 1)


def plain_scan(state, name: str, x: torch.Tensor, direction: int) -> torch.Tensor:
    """One group's scan module, pixel by pixel in its direction."""
    batch, H, W, d = x.shape
    x, z = linear(state, f"{name}.in_proj", x).chunk(2, dim=-1)
    x = F.silu(conv(state, f"{name}.conv2d", x, groups=d))
    steps = (
        [(i, j) for i in range(H) for j in range(W)] if direction % 2 else [(i, j) for j in range(W) for i in range(H)]
    )
    A, weight = -state[f"{name}.A_logs"].exp(), state[f"{name}.dt_projs_weight"][0]
    N, rank = A.shape[1], weight.shape[1]
    hidden = x.new_zeros(batch, d, N)
    y = [[None] * W for _ in range(H)]
    for i, j in steps if direction < 3 else reversed(steps):
        u = x[:, i, j]
        dt, B, C = (u @ state[f"{name}.x_proj_weight"][0].t()).split((rank, N, N), dim=-1)
        delta = F.softplus(dt @ weight.t() + state[f"{name}.dt_projs_bias"][0])
        hidden = torch.exp(delta[..., None] * A) * hidden + (delta * u)[..., None] * B[:, None]
        y[i][j] = (hidden * C[:, None]).sum(-1) + state[f"{name}.Ds"] * u
    y = torch.stack([torch.stack(row, dim=1) for row in y], dim=1)
    return linear(state, f"{name}.out_proj", norm(state, f"{name}.out_norm", y, 1e-5) * F.silu(z))


def plain_layer(state, name: str, x: torch.Tensor) -> torch.Tensor:
    u = norm(state, f"{name}.norm", x, 1e-5)
    a = torch.sigmoid(linear(state, f"{name}.fc2", F.relu(linear(state, f"{name}.fc1", u.mean((1, 2))))))
    y = [plain_scan(state, f"{name}.mamba_g{k + 1}", part, k + 1) for k, part in enumerate(u.chunk(4, dim=-1))]
    v = torch.cat(y, dim=-1) * state[f"{name}.skip_scale"] * u * a[:, None, None]
    return linear(state, f"{name}.proj", norm(state, f"{name}.norm", v, 1e-5))


def plain_model(state, depths, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both heads of the whole classifier from the published names, written without the library."""
    x = image.permute(0, 2, 3, 1)
    for i in range(3):
        x = conv(state, f"patch_embed1.conv.{3 * i}", x, stride=1 if i else 2)
        bn = f"patch_embed1.conv.{3 * i + 1}"
        x = (x - state[f"{bn}.running_mean"]) / (state[f"{bn}.running_var"] + 1e-5).sqrt()
        x = F.relu(x * state[f"{bn}.weight"] + state[f"{bn}.bias"])
    for i, depth in enumerate(depths, 1):
        x = norm(state, f"patch_embed{i}.norm", conv(state, f"patch_embed{i}.proj", x, stride=2), 1e-5)
        for j in range(depth):
            name = f"block{i}.{j}"
            x = x + plain_layer(state, f"{name}.attn", x)
            y = linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", x, 1e-6))
            y = F.gelu(conv(state, f"{name}.mlp.dwconv.dwconv", y, groups=y.shape[-1]))
            x = x + linear(state, f"{name}.mlp.fc2", y)
        if i < 4:
            x = norm(state, f"norm{i}", x, 1e-6)
    g = x.mean((1, 2), keepdim=True)
    g = g + norm(state, "post_network.0.norm1", plain_layer(state, "post_network.0.attn", g), 1e-6)
    y = linear(state, "post_network.0.mlp.fc1", norm(state, "post_network.0.norm2", g, 1e-6))
    g = g + linear(state, "post_network.0.mlp.fc2", F.gelu(y))
    f = norm(state, "norm4", g[:, 0, 0], 1e-6)
    return linear(state, "head", f), linear(state, "dist_head", f)


@pytest.mark.parametrize("size", [(45, 70), (52, 33)])
def test_odd_sizes_and_gradients_match_a_plain_rewriting(size):
    model = small_model()
    weights = rule_weights(model)
    load_published(model, weights, model.pretrained_cfg, "the rule")
    model.double()
    image = rule_image(*size).double()
    state = {name: v.double().requires_grad_() for name, v in weights.items() if v.is_floating_point()}
    logits, expected = model(image), plain_model(state, SMALL["depths"], image)
    assert relative_error(logits, (sum(expected) / 2).detach()) < 1e-11
    logits.square().sum().backward()
    (sum(expected) / 2).square().sum().backward()
    gradients = model.key_table.to_published({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients.items():
        exact = state[name].grad
        assert (gradient - exact).abs().max() <= 1e-8 * exact.abs().max() + 1e-9, name


def test_epsilons_are_the_published_ones():
    """Some are below what the logits show."""
    model = small_model(last_norm="fresh")
    eps = {name: m.eps for name, m in model.named_modules() if hasattr(m, "eps")}
    small = {name for name in eps if not name.startswith("stem") and "mixer" not in name and "downsample" not in name}
    assert small == {
        *(f"stages.{i}.norm" for i in range(3)),
        *(f"stages.{i}.blocks.{j}.norm2" for i, j in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))),
        *("pooled_block.norm1", "pooled_block.norm2", "norm", "out_norms.3"),
    }
    assert {eps.pop(name) for name in small} == {1e-6}
    assert set(eps.values()) == {1e-5}


@pytest.mark.parametrize("name", fixtures("groupmamba", slow=("base",)))
def test_published_names_and_shapes_are_reproduced(name):
    content = fixture("groupmamba", name)
    with torch.device("meta"):
        published = export_published(visionssm.create_model(name.rpartition("_")[0]))
    assert {key: list(v.shape) for key, v in published.items()} == {k: s for k, (s, _) in content["state_dict"].items()}


@pytest.mark.parametrize("container", ["bare", "model", "model_ema", "state_dict"])
def test_every_published_container_loads_and_averaged_weights_come_first(container, tmp_path):
    source = small_model()
    state = {f"module.{name}": value for name, value in export_published(source).items()}
    content = state if container == "bare" else {container: state, "epoch": 3, "max_accuray_ema": 1.0}
    if container == "model_ema":
        content["model"] = {
            name: torch.full_like(value, torch.nan) for name, value in state.items() if "num" not in name
        }
    torch.save(content, tmp_path / "ckpt_epoch_3.pth")
    model = visionssm.create_model("groupmamba_tiny", checkpoint=tmp_path / "ckpt_epoch_3.pth", num_classes=10, **SMALL)
    own = source.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_a_missing_second_classifier_is_an_error(tmp_path):
    state = export_published(small_model())
    torch.save({name: v for name, v in state.items() if "dist_head" not in name}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"2 missing: dist_head\.weight, dist_head\.bias"):
        visionssm.create_model("groupmamba_nano", checkpoint=tmp_path / "weights.pth", **SMALL)


def test_training_returns_both_logits_and_evaluation_their_mean():
    model = small_model()
    image = rule_image(32, 40)
    pooled = model.forward_head(model.forward_features(image), pre_logits=True)
    torch.testing.assert_close(model(image), (model.head(pooled) + model.dist_head(pooled)) / 2)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    logits, distilled = model(image)
    torch.testing.assert_close(logits, model.head(pooled))
    torch.testing.assert_close(distilled, model.dist_head(pooled))
    model.set_distilled_training(False)
    torch.testing.assert_close(model(image), (logits + distilled) / 2)
    assert model.get_classifier() == (model.head, model.dist_head)


def test_one_classifier_without_distillation():
    model = small_model(distillation=False)
    assert torch.is_tensor(model.train()(rule_image(32, 32)))
    assert model.get_classifier() is model.head
    with pytest.raises(ValueError, match="distillation=False"):
        model.set_distilled_training()
    with torch.device("meta"):
        assert count_parameters(visionssm.create_model("groupmamba_tiny", distillation=False)) == 22_912_917


def test_reset_classifier_replaces_both(tmp_path):
    model = small_model()
    model.reset_classifier(7)
    assert model.head.weight.shape == model.dist_head.weight.shape == (7, 48)
    assert not torch.equal(model.head.weight, model.dist_head.weight)
    assert float(model.dist_head.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not model.dist_head.bias.any()
    model.reset_classifier(0)
    assert model.train()(rule_image(32, 32)).shape == (2, 48)
    torch.save(export_published(small_model()), tmp_path / "weights.pth")
    tuned = visionssm.create_model(
        "groupmamba_tiny", checkpoint=tmp_path / "weights.pth", **{**SMALL, "num_classes": 3}
    )
    assert tuned.head.out_features == tuned.dist_head.out_features == 3


def test_dense_form_and_its_last_norm():
    image = rule_image(45, 70)
    models = {kind: small_model(last_norm=kind, features_only=True) for kind in ("none", "final", "fresh")}
    whole = randomised(small_model())
    for model in models.values():
        missing, _ = model.model.load_state_dict(whole.state_dict(), strict=False)
        assert set(missing) <= {"out_norms.3.weight", "out_norms.3.bias"}
    maps = {}
    with torch.inference_mode():
        for kind, model in models.items():
            maps[kind] = model(image)
        assert [tuple(m.shape[1:]) for m in maps["none"]] == [(16, 12, 18), (24, 6, 9), (36, 3, 5), (48, 2, 3)]
        raw = maps["none"][3].permute(0, 2, 3, 1)
        normalised = F.layer_norm(raw, (48,), whole.norm.weight, whole.norm.bias, 1e-6).permute(0, 3, 1, 2)
        torch.testing.assert_close(maps["final"][3], normalised)
        torch.testing.assert_close(maps["fresh"][3], F.layer_norm(raw, (48,), eps=1e-6).permute(0, 3, 1, 2))
        torch.testing.assert_close(whole.forward_intermediates(image, norm=True)[1][3], normalised)
        assert all(torch.equal(a, b) for kind in maps for a, b in zip(maps[kind][:3], maps["none"][:3], strict=True))
        assert torch.equal(whole.forward_features(image), maps["none"][3])
    with torch.device("meta"):
        dense = visionssm.create_model("groupmamba_tiny", features_only=True, last_norm="final")
    assert count_parameters(dense) == 23_361_917 - 2 * 449_000 - 2_001_693
    assert not [name for name, _ in dense.named_parameters() if "pooled_block" in name or "head" in name]


def test_the_layer_is_invariant_to_the_size_of_its_scale():
    layer = randomised(ModulatedGroupMamba(32, modulation=True)).double()
    x = torch.randn(2, 5, 7, 32, dtype=torch.float64)
    with torch.no_grad():
        before = layer(x)
        layer.skip_scale.mul_(2)
        assert relative_error(layer(x), before) < 1e-2
        layer.norm.eps = 0.0
        after = layer(x)
        layer.skip_scale.mul_(2)
        assert relative_error(layer(x), after) < 1e-12


@pytest.mark.parametrize(("groups", "directions"), [(1, 1), (2, 1), (4, 1), (8, 1), (4, 4), (1, 4)])
def test_groups_share_nothing(groups, directions):
    scan = randomised(GroupedScan(16, groups, directions=directions))
    x = torch.randn(1, 4, 5, 16)
    d = 16 // groups
    with torch.no_grad():
        before = scan(x)
        for g in range(groups):
            changed = x.clone()
            changed[..., g * d : (g + 1) * d] += 1
            touched = (scan(changed) != before).any(dim=(0, 1, 2)).nonzero().flatten()
            assert touched.tolist() == list(range(g * d, (g + 1) * d))
    assert scan.scan.D.shape == (groups * directions, d)


def test_group_k_walks_direction_k_modulo_four():
    table = GroupedScan(24, 6).paths(2, 3)
    assert torch.equal(table, torch.cat([paths.cross(2, 3), paths.cross(2, 3)[:2]]))
    own = small_model(path_builder=paths.unidirectional)
    assert own.stages[0].blocks[0].mixer.groups.paths is paths.unidirectional
    with pytest.raises(ValueError, match="groups: got 5"):
        small_model(groups=5)


def test_four_directions_are_the_sum_of_single_ones():
    """The scan of a group in all directions is linear in the directions: each alone, and their sum."""
    group = randomised(GroupedScan(8, groups=1, directions=4))
    group.in_proj.weight.data[:, 8:] = 0
    group.out_norm = group.out_proj = nn.Identity()
    x = torch.randn(1, 4, 5, 8)
    scanned = []
    with torch.no_grad():
        hook = group.scan.register_forward_hook(lambda module, args, y: scanned.append((args[0], y)))
        group(x)
        inputs, outputs = scanned[0]
        hook.remove()
        for k in range(4):
            alone = GroupedScan(8, groups=1).scan
            for name, parameter in alone.named_parameters():
                parameter.copy_(getattr(group.scan, name)[k : k + 1])
            assert torch.equal(inputs[:, :, k], inputs[:, :, 0])
            y = alone(inputs[:, :, :1], paths.cross(4, 5)[k : k + 1].clone(), merge=False)
            torch.testing.assert_close(outputs[:, :, k], y[:, :, 0])


@torch.no_grad()
def test_hooks_and_replaced_layers_take_part():
    """The fast paths skip no module that somebody listens to or has replaced."""
    model, image = randomised(small_model()), rule_image(33, 47)
    wanted, seen = model(image), []
    block = model.stages[0].blocks[0]
    for layer in (block.mixer.groups.in_proj, block.mixer.groups.conv, block.mlp.conv, block.mlp.fc1):
        handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(module))
        torch.testing.assert_close(model(image), wanted, rtol=1e-5, atol=1e-5)
        handle.remove()
        assert seen.pop() is layer and not seen

    class Doubled(type(block.mlp.conv)):
        def forward(self, x):
            return 2 * super().forward(x)

    conv = block.mlp.conv
    halved = Doubled(conv.in_channels, conv.out_channels, 3, padding=1, groups=conv.groups)
    halved.load_state_dict({name: value / 2 for name, value in conv.state_dict().items()})
    block.mlp.conv = halved
    torch.testing.assert_close(model(image), wanted, rtol=1e-5, atol=1e-5)


def test_without_modulation_the_affinity_is_one():
    modulated, plain = randomised(small_model()), small_model(modulation=False)
    with torch.no_grad():
        for name, parameter in modulated.named_parameters():
            if name.endswith("affinity.fc2.bias"):
                parameter.fill_(torch.inf)
    plain.load_state_dict(modulated.state_dict(), strict=False)
    image = rule_image(33, 47)
    with torch.inference_mode():
        torch.testing.assert_close(plain(image), modulated(image))
    lost = {n for n, _ in modulated.named_parameters()} - {n for n, _ in plain.named_parameters()}
    assert lost and all(".affinity.fc" in name for name in lost)


def test_state_sets_the_states_of_every_channel():
    scan = GroupedScan(16, state=8).scan
    assert scan.A_log.shape == (4, 4, 8)
    assert torch.equal(scan.A_log, torch.log(torch.arange(1.0, 9)).expand(4, 4, 8))


@pytest.mark.parametrize("modulation", [True, False])
def test_the_papers_layer_is_the_papers_formula(modulation):
    """Group after group, each with modules of its own."""
    width, groups, d, ratio = 24, 3, 8, 2.0
    block = randomised(PaperBlock(width, ratio, 0.0, modulation, groups)).double()
    x = torch.randn(2, 4, 5, width, dtype=torch.float64)
    walks = [paths.raster, paths.transposed, lambda H, W, device=None: paths.reverse(paths.raster(H, W))]
    outputs = []
    with torch.no_grad():
        for g in range(groups):
            part = slice(g * d, (g + 1) * d)
            scan = GroupedScan(d, 1, path_builder=walks[g]).double()
            for name, parameter in scan.named_parameters():
                stacked = block.mixer.get_parameter(name)
                parameter.copy_(stacked[part] if stacked.shape[0] == width else stacked[g : g + 1])
            z = x[..., part]
            z = z + scan(F.layer_norm(z, (d,), block.norm1.weight[part], block.norm1.bias[part]))
            y = F.layer_norm(z, (d,), block.norm2.weight[part], block.norm2.bias[part])
            y = F.gelu(y @ block.fc1.weight[g].t() + block.fc1.bias.view(groups, -1)[g])
            outputs.append(z + y @ block.fc2.weight[g].t() + block.fc2.bias[part])
        joined = torch.cat(outputs, dim=-1)
        if modulation:
            hidden = F.relu(block.affinity.fc1(x.mean((1, 2))))
            joined = joined * torch.sigmoid(block.affinity.fc2(hidden))[:, None, None]
        expected = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm3(joined))))
        assert relative_error(block(x), expected) < 1e-12


def test_the_papers_layer_makes_a_model_that_trains():
    model = small_model(layer="paper").train()
    sum(o.square().sum() for o in model(rule_image(33, 47))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert set(export_published(model)) == set(model.state_dict())
    with pytest.raises(ValueError, match="layer"):
        small_model(layer="printed")


def test_initialisation_is_the_published_one():
    model = visionssm.create_model("groupmamba_tiny")
    groups = model.stages[2].blocks[4].mixer.groups
    scan = groups.scan
    assert not scan.A_log.any() and torch.equal(scan.D, torch.ones_like(scan.D))
    assert all(float(m.skip_scale.detach()) == 1 for m in model.modules() if isinstance(m, ModulatedGroupMamba))
    dt = F.softplus(scan.dt_bias).detach()
    assert 0.999e-3 < dt.min() < 2e-3 and 0.05 < dt.max() < 0.1001
    assert float(dt.log().mean()) == pytest.approx(math.log(1e-2), abs=0.2)
    for weight, bound in ((scan.dt_weight.detach(), 6**-0.5), (scan.x_proj_weight.detach(), 87**-0.5)):
        assert 0.98 * bound < weight.abs().max() <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    stacked = [groups.in_proj.weight, groups.out_proj.weight]
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert all(not m.bias.any() for m in linears)
    for weight in [*stacked, *(m.weight for m in linears if m.weight.numel() > 5000)]:
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    for module in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        kernel = module.weight.shape[2] ** 2
        fan_out = kernel * module.out_channels / module.groups
        assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_out), rel=0.15)
        assert module.bias is None or not module.bias.any()


@pytest.mark.slow
def test_exports_for_any_size():
    model = small_model()
    side = torch.export.Dim("H", min=160, max=1024), torch.export.Dim("W", min=160, max=1024)
    sizes = ({0: torch.export.Dim("batch", min=1, max=64), 2: side[0], 3: side[1]},)
    program = torch.export.export(model, (rule_image(192, 224),), dynamic_shapes=sizes).module()
    with torch.inference_mode():
        for H, W in ((177, 230), (320, 161)):
            image = rule_image(H, W, batch=3)
            torch.testing.assert_close(program(image), model(image), rtol=1e-4, atol=1e-5)
