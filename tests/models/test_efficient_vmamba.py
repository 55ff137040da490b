"""EfficientVMamba against the published model's numbers, and against a plain rewriting of it."""

import math
import re

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
from visionssm.layers import SS2D
from visionssm.models import export_published, load_published
from visionssm.models.efficient_vmamba import ES2D, Block, InvertedResidual
from visionssm.ops import paths
from visionssm.ops.backends import default_backend, explain_backend
from visionssm.testing.parity import relative_error, rule_image, rule_tensor

BACKENDS = [name for name in ("reference", "torch", "native") if explain_backend()[name] is None]
SMALL = {"width": 16, "depths": (1, 1, 2, 1)}


def rule_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's state dict under published names, filled by the fixtures' rule."""
    return {
        name: rule_tensor(name, tuple(value.shape)) if value.is_floating_point() else value
        for name, value in export_published(model).items()
    }


def small_model(**options):
    model = visionssm.create_model("efficient_vmamba_nano", **{**SMALL, **options}).eval()
    load_published(model, rule_weights(model), model.pretrained_cfg, "the rule")
    return model


@pytest.mark.parametrize("name", fixtures("efficientvmamba", slow=("base", "256")))
def test_logits_and_features_match_the_published_model(name):
    content = fixture("efficientvmamba", name)
    model = visionssm.create_model(name.rpartition("_")[0]).eval()
    load_fixture_weights(model, content, name)
    assert sum(p.numel() for p in model.parameters()) == content["num_params"]
    image = rule_image(**content["input"])
    with torch.inference_mode():
        features, maps = model.forward_intermediates(image)
        logits = model.forward_head(features)
    assert_logits(logits, content, tolerance=2e-6)
    assert_maps(maps, content["stages"], tolerance=5e-6)


@pytest.mark.parametrize("name", fixtures("efficientvmamba", having="grads"))
def test_gradients_match_the_published_model(name):
    content = fixture("efficientvmamba", name)
    model = visionssm.create_model(name.rpartition("_")[0]).eval()
    load_fixture_weights(model, content, name)
    assert_gradients(model, content, tolerance=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", range(4))
def test_scan_matches_the_published_operator(case, backend):
    vectors = operator_vectors("efficientvmamba", "es2d_f64")

    def value(name: str) -> torch.Tensor:
        return torch.from_numpy(vectors[f"case{case}_{name}"])

    K, projected, E = value("x_proj_weight").shape
    rank = value("dt_projs_weight").shape[2]
    mixer = ES2D(E, paths.raster_transposed, K, expansion=1.0, state=(projected - rank) // 2, dt_rank=rank).double()
    names = {
        "x_proj_weight": "x_proj_weight",
        "dt_projs_weight": "dt_weight",
        "dt_projs_bias": "dt_bias",
        "A_logs": "A_log",
        "Ds": "D",
    }
    with torch.no_grad():
        for theirs, ours in names.items():
            parameter = getattr(mixer.scan, ours)
            parameter.copy_(value(theirs).view(parameter.shape))
    x = value("x").requires_grad_()
    with default_backend(backend):
        y = mixer.scan_map(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y.backward(value("grad_y"))
    assert relative_error(y, value("y")) < 1e-12
    assert relative_error(x.grad, value("d_x")) < 1e-12
    for theirs, ours in names.items():
        assert relative_error(getattr(mixer.scan, ours).grad, value(f"d_{theirs}")) < 1e-12, theirs


@pytest.mark.parametrize("size", [(6, 6), (5, 7), (4, 5), (1, 1), (2, 1)])
def test_quarters_side_by_side_equal_the_walk_over_the_whole_map(size):
    quarters = ES2D(8, paths.raster_transposed, state=2).double()
    whole = SS2D(8, paths.atrous, state=2).double()
    whole.load_state_dict(quarters.state_dict())
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    results = []
    for mixer in (quarters, whole):
        leaf = x.clone().requires_grad_()
        y = mixer(leaf)
        y.square().sum().backward()
        results.append([y, leaf.grad, *(p.grad for p in mixer.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def plain_linear(state, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def plain_norm(state, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def plain_conv(state, name: str, x: torch.Tensor, **options) -> torch.Tensor:
    """A convolution of a channels-last map, in channels-first layout inside."""
    weight = state[f"{name}.weight"]
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, state.get(f"{name}.bias"), **options)
    return y.permute(0, 2, 3, 1)


def plain_batch_norm(state, name: str, x: torch.Tensor) -> torch.Tensor:
    scale = state[f"{name}.weight"] / (state[f"{name}.running_var"] + 1e-5).sqrt()
    return (x - state[f"{name}.running_mean"]) * scale + state[f"{name}.bias"]


def plain_es2d(state, name: str, x: torch.Tensor) -> torch.Tensor:
    """The atrous scan pixel by pixel: the four sub-grids, one after the other, padding included."""
    x, z = plain_linear(state, f"{name}.in_proj", x).chunk(2, dim=-1)
    x = F.silu(plain_conv(state, f"{name}.conv2d", x, padding=1, groups=x.shape[-1]))
    batch, H, W, E = x.shape
    h, w = (H + 1) // 2, (W + 1) // 2
    y = [[None] * W for _ in range(H)]
    A = -state[f"{name}.A_logs"].exp().view(4, E, -1)
    D = state[f"{name}.Ds"].view(4, E)
    for k, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        steps = (
            [(i, j) for i in range(h) for j in range(w)] if k % 2 == 0 else [(i, j) for j in range(w) for i in range(h)]
        )
        weight = state[f"{name}.x_proj_weight"][k]
        rank = state[f"{name}.dt_projs_weight"].shape[2]
        hidden = x.new_zeros(batch, E, A.shape[2])
        for i, j in steps:
            i, j = 2 * i + row, 2 * j + column
            u = x[:, i, j] if i < H and j < W else x.new_zeros(batch, E)
            p = u @ weight.t()
            dt, B, C = p[:, :rank], p[:, rank : rank + A.shape[2]], p[:, rank + A.shape[2] :]
            delta = F.softplus(dt @ state[f"{name}.dt_projs_weight"][k].t() + state[f"{name}.dt_projs_bias"][k])
            hidden = torch.exp(delta[..., None] * A[k]) * hidden + (delta * u)[..., None] * B[:, None]
            if i < H and j < W:
                y[i][j] = (hidden * C[:, None]).sum(-1) + D[k] * u
    y = torch.stack([torch.stack(row, dim=1) for row in y], dim=1)
    return plain_linear(state, f"{name}.out_proj", plain_norm(state, f"{name}.out_norm", y) * F.silu(z))


def plain_merging(state, name: str, x: torch.Tensor) -> torch.Tensor:
    batch, H, W, C = x.shape
    zero = x.new_zeros(batch, C)

    def pixel(i: int, j: int) -> torch.Tensor:
        return x[:, i, j] if i < H and j < W else zero

    rows = [
        torch.stack(
            [
                torch.cat([pixel(i, j), pixel(i + 1, j), pixel(i, j + 1), pixel(i + 1, j + 1)], dim=-1)
                for j in range(0, W, 2)
            ],
            dim=1,
        )
        for i in range(0, H, 2)
    ]
    return plain_linear(state, f"{name}.reduction", plain_norm(state, f"{name}.norm", torch.stack(rows, dim=1)))


def plain_model(state, depths, image: torch.Tensor) -> torch.Tensor:
    """The whole classifier from the published names, written without the library."""
    C = state["patch_embed.0.weight"].shape[0]
    x = F.conv2d(image, state["patch_embed.0.weight"], state["patch_embed.0.bias"], stride=4).permute(0, 2, 3, 1)
    x = plain_norm(state, "patch_embed.2", x)
    for stage in (0, 1):
        for j in range(depths[stage]):
            name = f"layers.{stage}.blocks.{j}"
            n = plain_norm(state, f"{name}.norm", x)
            c = plain_conv(state, f"{name}.conv_branch.0", n, padding=1, groups=n.shape[-1])
            c = plain_conv(state, f"{name}.conv_branch.3", F.gelu(plain_batch_norm(state, f"{name}.conv_branch.1", c)))
            for branch in (plain_es2d(state, f"{name}.op", n), c):
                g = plain_norm(state, f"{name}.se.norm", branch).mean((1, 2))
                g = plain_linear(
                    state, f"{name}.se.channel_select", F.gelu(plain_linear(state, f"{name}.se.global_reduce", g))
                )
                x = x + branch * torch.sigmoid(g)[:, None, None]
        x = plain_merging(state, f"layers.{stage}.downsample", x)
    for stage in (2, 3):
        for j in range(depths[stage]):
            name = f"layers.{stage}.{j + 1}"
            y = F.relu(plain_batch_norm(state, f"{name}.conv_pw.1", plain_conv(state, f"{name}.conv_pw.0", x)))
            y = plain_conv(state, f"{name}.conv_dw.0", y, padding=1, groups=y.shape[-1])
            y = F.relu(plain_batch_norm(state, f"{name}.conv_dw.1", y))
            g = F.relu(plain_conv(state, f"{name}.se.conv_reduce", y.mean((1, 2), keepdim=True)))
            y = y * torch.sigmoid(plain_conv(state, f"{name}.se.conv_expand", g))
            x = x + plain_batch_norm(state, f"{name}.conv_pw2.1", plain_conv(state, f"{name}.conv_pw2.0", y))
        if stage == 2:
            x = plain_merging(state, f"layers.2.{depths[2] + 2}", x)
    assert x.shape[-1] == 8 * C
    return plain_linear(state, "classifier.head", plain_norm(state, "classifier.norm", x).mean((1, 2)))


@pytest.mark.parametrize("size", [(46, 71), (60, 36)])
def test_odd_sizes_and_gradients_match_a_plain_rewriting(size):
    model = small_model().double()
    image = rule_image(*size).double()
    state = {name: v.double().requires_grad_() for name, v in rule_weights(model).items() if v.is_floating_point()}
    logits, expected = model(image), plain_model(state, SMALL["depths"], image)
    assert relative_error(logits, expected.detach()) < 1e-12
    logits.square().sum().backward()
    expected.square().sum().backward()
    gradients = model.key_table.to_published({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients.items():
        assert relative_error(gradient, state[name].grad) < 1e-9, name


def test_grid_of_every_stage_at_an_odd_size():
    model = small_model(state=1)
    with torch.inference_mode():
        maps = model.forward_intermediates(rule_image(236, 300, batch=1), intermediates_only=True)
    assert [tuple(m.shape[2:]) for m in maps] == [(59, 75), (30, 38), (15, 19), (8, 10)]


def test_epsilons_are_the_published_ones():
    model = small_model()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm | torch.nn.BatchNorm2d)]
    assert {m.eps for m in norms} == {1e-5}
    assert {m.momentum for m in norms if isinstance(m, torch.nn.BatchNorm2d)} == {0.1}


@pytest.mark.parametrize("name", fixtures("efficientvmamba", slow=("base",)))
def test_published_names_and_shapes_are_reproduced(name):
    content = fixture("efficientvmamba", name)
    with torch.device("meta"):
        published = export_published(visionssm.create_model(name.rpartition("_")[0]))
    assert {key: list(v.shape) for key, v in published.items()} == {k: s for k, (s, _) in content["state_dict"].items()}


OLD_NAMES = [
    (r"^patch_embed\.0\.", "patch_embed.proj."),
    (r"^patch_embed\.2\.", "patch_embed.norm."),
    (r"(blocks\.\d+)\.norm\.", r"\1.ln_1."),
    (r"(blocks\.\d+)\.op\.", r"\1.self_attention."),
    (r"^classifier\.", ""),
]


def renamed(name: str) -> str:
    """The name that the oldest checkpoints have."""
    for new, old in OLD_NAMES:
        name = re.sub(new, old, name)
    return name


@pytest.mark.parametrize("kind", ["state_dict", "distributed average", "old names", "bare"])
def test_every_published_container_loads(kind, tmp_path):
    source = small_model()
    state = export_published(source)
    if kind == "distributed average":
        state = {f"module.module.{name}": value for name, value in state.items()}
    if kind == "old names":
        state = {renamed(name): value for name, value in state.items()}
        assert any("self_attention" in name for name in state) and any("ln_1" in name for name in state)
    torch.save(state if kind == "bare" else {"state_dict": state, "epoch": 3, "model": None}, tmp_path / "weights.ckpt")
    model = visionssm.create_model("efficient_vmamba_nano", checkpoint=tmp_path / "weights.ckpt", **SMALL)
    own = source.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_a_published_classifier_loads_into_the_dense_form_with_fresh_norms():
    model = visionssm.create_model("efficient_vmamba_nano", out_norms=True, **SMALL).eval()
    load_published(model, rule_weights(small_model()), model.pretrained_cfg, "the rule")
    image = rule_image(40, 56)
    with torch.inference_mode():
        normalised = model.forward_intermediates(image, intermediates_only=True)
        raw = small_model().forward_intermediates(image, intermediates_only=True)
    assert [m.shape[1] for m in raw] == [16, 32, 64, 128]
    for a, b in zip(normalised, raw, strict=True):
        torch.testing.assert_close(a, F.layer_norm(b.permute(0, 2, 3, 1), b.shape[1:2]).permute(0, 3, 1, 2))


def touched_pixels(mixer: SS2D, row: int, column: int) -> set[tuple[int, int]]:
    """The pixels whose scan output depends on one pixel of a 4x6 map."""
    x = torch.randn(1, 4, 6, 32)
    changed = x.clone()
    changed[0, row, column] += 1
    with torch.no_grad():
        difference = (mixer.scan_map(changed) - mixer.scan_map(x)).abs().amax(-1)[0]
    return {tuple(p) for p in difference.nonzero().tolist()}


def test_scan_mode_says_which_pixels_a_scan_connects():
    atrous, cross = (small_model(scan_mode=mode).stages[0].blocks[0].mixer for mode in ("atrous", "cross"))
    assert touched_pixels(atrous, 0, 0) == {(i, j) for i in (0, 2) for j in (0, 2, 4)}
    assert touched_pixels(atrous, 1, 2) == {(1, 2), (3, 2), (1, 4), (3, 4)}
    assert touched_pixels(cross, 1, 2) == {(i, j) for i in range(4) for j in range(6)}
    own = small_model(scan_mode=paths.atrous)
    image = rule_image(33, 47)
    with torch.inference_mode():
        torch.testing.assert_close(own(image), small_model()(image))


def test_without_fusion_a_block_is_the_scan_alone():
    fused, alone = small_model().stages[0].blocks[0], small_model(fusion=False).stages[0].blocks[0]
    assert {n.partition(".")[0] for n, _ in alone.named_parameters()} == {"norm", "mixer"}
    alone.load_state_dict(fused.state_dict(), strict=False)
    with torch.no_grad():
        fused.gate.fc2.bias.fill_(torch.inf)  # the gate is 1
        fused.conv_branch.proj.weight.zero_()
        fused.conv_branch.proj.bias.zero_()
        x = torch.randn(2, 5, 6, 16)
        torch.testing.assert_close(alone(x), fused(x))


def test_pattern_and_state_choose_blocks_and_states():
    model = visionssm.create_model("efficient_vmamba_nano", pattern="CSSC", state=4)
    kinds = [type(stage.blocks[0]) for stage in model.stages]
    assert kinds == [InvertedResidual, Block, Block, InvertedResidual]
    assert model.stages[1].blocks[0].mixer.scan.A_log.shape[2] == 4
    for wrong in ("SSC", "SSXC"):
        with pytest.raises(ValueError, match="pattern"):
            visionssm.create_model("efficient_vmamba_nano", pattern=wrong)


def test_initialisation_is_the_published_one():
    model = visionssm.create_model("efficient_vmamba_tiny")
    scan = model.stages[1].blocks[0].mixer.scan
    assert torch.equal(scan.A_log, torch.log(torch.arange(1.0, 17)).expand_as(scan.A_log))
    assert torch.equal(scan.D, torch.ones_like(scan.D))
    dt = F.softplus(scan.dt_bias).detach()
    assert 0.999e-3 < dt.min() < 2e-3 and 0.05 < dt.max() < 0.1001
    assert float(dt.log().mean()) == pytest.approx(math.log(1e-2), abs=0.2)
    rank, E = scan.dt_weight.shape[2], scan.x_proj_weight.shape[2]
    for weight, bound in ((scan.dt_weight.detach(), rank**-0.5), (scan.x_proj_weight.detach(), E**-0.5)):
        assert 0.98 * bound < weight.abs().max() <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert all(m.bias is None or not m.bias.any() for m in linears)
    for weight in (m.weight.detach() for m in linears if m.weight.numel() > 5000):
        assert float(weight.std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.slow
def test_exports_for_every_multiple_of_32():
    model = small_model()
    H, W = (32 * torch.export.Dim(name, min=4, max=32) for name in ("H", "W"))
    program = torch.export.export(model, (rule_image(192, 224),), dynamic_shapes=({2: H, 3: W},)).module()
    with torch.inference_mode():
        image = rule_image(160, 256)
        torch.testing.assert_close(program(image), model(image), rtol=1e-4, atol=1e-5)
