"""LocalVMamba and LocalVim against the published models' numbers, and against loops over their definition."""

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
from visionssm.layers import SelectiveScan
from visionssm.models import export_published
from visionssm.models.local_mamba import (
    LOCAL_VIM,
    LOCAL_VMAMBA_SMALL,
    LOCAL_VMAMBA_TINY,
    SEARCHED,
    ChannelAttention,
    LocalSS2D,
    LocalVimMixer,
    searched_directions,
    undo_as_published,
)
from visionssm.ops import paths
from visionssm.testing.parity import relative_error, rule_image, rule_state_dict

DIRECTIONS = ("h", "h_flip", "v", "v_flip", "w2", "w2_flip", "w7", "w7_flip")
LOGITS = {"local_vim": 1.5e-5, "local_vssm": 6e-6}
STAGES = 5e-5


def build(name: str, content) -> torch.nn.Module:
    variant = name.rpartition("_")[0].replace("vssm", "vmamba").removesuffix("_verbatim")
    published = content.get("behaviour") == "official_verbatim_nonsquare"
    model = visionssm.create_model(variant, unscan="published" if published else "inverse").eval()
    load_fixture_weights(model, content, name)
    return model


def stage_features(model, image, count: int):
    """What the fixtures call stages: maps of a pyramid; all tokens after the mixers of a plain model."""
    if not hasattr(model, "blocks"):
        return model.forward_intermediates(image, intermediates_only=True)
    tokens = []
    pairs = model.forward_intermediates(
        image, [4, 9, 14, 19], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    for patches, prefix in pairs:
        middle = patches.shape[1] // 2
        tokens.append(torch.cat((patches[:, :middle], prefix, patches[:, middle:]), dim=1))
    return tokens[:count]


@pytest.mark.parametrize("name", fixtures("localmamba", slow=("small", "vssm_tiny_256", "verbatim", "middle")))
def test_logits_and_features_match_the_published_model(name):
    content = fixture("localmamba", name)
    model = build(name, content)
    assert sum(p.numel() for p in model.parameters()) == content["num_params"]
    image = rule_image(**content["input"])
    with torch.inference_mode():
        logits = model(image)
        features = stage_features(model, image, 4)
    assert_logits(logits, content, LOGITS[name[: name.index("_", 6)]])
    assert_maps(features, content["stages"][:4], STAGES)


@pytest.mark.parametrize("name", fixtures("localmamba", having="grads"))
def test_gradients_match_the_published_model(name):
    content = fixture("localmamba", name)
    assert_gradients(build(name, content), content, tolerance=1e-4)


@pytest.mark.parametrize("name", fixtures("localmamba"))
def test_directions_are_the_published_ones(name):
    published = fixture("localmamba", name)["constructor"]["directions"]
    ours = LOCAL_VIM if "vim" in name else LOCAL_VMAMBA_SMALL if "small" in name else LOCAL_VMAMBA_TINY
    assert [list(block) for block in ours] == published


def sequence(name: str, H: int, W: int) -> list[tuple[int, int]]:
    """Rows and columns in the order of a direction, those of the padding included."""
    kind = name.removesuffix("_flip")
    if kind == "h":
        cells = [(i, j) for i in range(H) for j in range(W)]
    elif kind == "v":
        cells = [(i, j) for j in range(W) for i in range(H)]
    else:
        size = int(kind[1:])
        rows, columns = math.ceil(H / size), math.ceil(W / size)
        cells = [
            (r * size + i, c * size + j)
            for r in range(rows)
            for c in range(columns)
            for i in range(size)
            for j in range(size)
        ]
    return cells if kind == name else cells[::-1]


@pytest.mark.parametrize("grid", [(1, 1), (5, 7), (7, 7), (9, 4)])
def test_directions_walk_as_defined(grid):
    H, W = grid
    table = paths.directions(H, W, DIRECTIONS)
    for row, name in zip(table.tolist(), DIRECTIONS, strict=True):
        expected = [i * W + j if i < H and j < W else -1 for i, j in sequence(name, H, W)]
        assert row == expected + [-1] * (table.shape[1] - len(expected))
    with pytest.raises(ValueError, match="diagonal"):
        paths.directions(H, W, ("diagonal",))


CASES = range(3)


@pytest.mark.parametrize("case", CASES)
def test_order_of_the_published_scan(case):
    vectors = operator_vectors("localmamba", "local_scan_f64")
    H, W = vectors[f"case{case}_x"].shape[2:]
    for name in vectors[f"case{case}_directions"]:
        size = int(name[1]) if name[0] == "w" else 1
        padded_width = math.ceil(W / size) * size
        assert vectors[f"case{case}_order_{name}"].tolist() == [i * padded_width + j for i, j in sequence(name, H, W)]


@pytest.mark.parametrize("case", CASES)
def test_scan_matches_the_published_operator(case):
    vectors = operator_vectors("localmamba", "local_scan_f64")
    get = lambda key: torch.from_numpy(vectors[f"case{case}_{key}"])  # noqa: E731
    x, dt_weight = get("x").requires_grad_(), get("dt_projs_weight")
    K, E, R = dt_weight.shape
    names = tuple(str(name) for name in vectors[f"case{case}_directions"])
    scan = SelectiveScan(E, K, get("A_logs").shape[1], R).double()
    values = {
        "x_proj_weight": get("x_proj_weight"),
        "dt_weight": dt_weight,
        "dt_bias": get("dt_projs_bias"),
        "A_log": get("A_logs").view(K, E, -1),
        "D": get("Ds").view(K, E),
    }
    scan.load_state_dict(values)
    H, W = x.shape[2:]
    y = scan(x.flatten(2).transpose(1, 2), paths.directions(H, W, names), merge=False)
    y = y.permute(0, 2, 3, 1).unflatten(3, (H, W))
    assert relative_error(y, get("y")) < 1e-12
    y.backward(get("grad_y"))
    assert relative_error(x.grad, get("d_x")) < 1e-12
    published = ("d_x_proj_weight", "d_dt_projs_weight", "d_dt_projs_bias", "d_A_logs", "d_Ds")
    for name, key in zip(values, published, strict=True):
        assert relative_error(getattr(scan, name).grad, get(key)) < 1e-12, key


def attention_by_hand(y: torch.Tensor, attention: ChannelAttention) -> torch.Tensor:
    """(batch, L, E) of one direction, step by step as the paper's code computes it."""
    centred = y - y.mean(-1, keepdim=True)
    normed = centred / (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    context = (normed * attention.norm.weight + attention.norm.bias).mean(1)
    hidden = context @ attention.reduce.weight.T + attention.reduce.bias
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return y * torch.sigmoid(hidden @ attention.select.weight.T + attention.select.bias)[:, None]


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random, in float64."""
    for parameter in module.double().parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def test_attention_is_the_published_one():
    attention = randomised(ChannelAttention(20))
    assert attention.reduce.out_features == 2
    y = 0.01 * torch.randn(2, 9, 3, 20, dtype=torch.float64)  # small, so that a wrong epsilon shows
    expected = sum(attention_by_hand(y[:, :, k], attention) for k in range(3))
    torch.testing.assert_close(attention(y), expected, rtol=1e-12, atol=1e-14)


def scan_by_hand(x, scan: SelectiveScan, k: int) -> torch.Tensor:
    """(batch, T, E) in walking order."""
    dt, B, C = (x @ scan.x_proj_weight[k].T).split((scan.dt_rank, scan.state, scan.state), dim=-1)
    delta = F.softplus(dt @ scan.dt_weight[k].T + scan.dt_bias[k])
    A, state, outputs = -scan.A_log[k].exp(), 0, []
    for t in range(x.shape[1]):
        drive = (delta[:, t] * x[:, t])[..., None] * B[:, t, None]
        state = (delta[:, t, :, None] * A).exp() * state + drive
        outputs.append((state * C[:, t, None]).sum(-1) + scan.D[k] * x[:, t])
    return torch.stack(outputs, dim=1)


def walk_map(maps: torch.Tensor, name: str) -> torch.Tensor:
    """(batch, H, W, E) to (batch, T, E), zeros over padding."""
    batch, H, W, E = maps.shape
    zero = maps.new_zeros(batch, E)
    return torch.stack([maps[:, i, j] if i < H and j < W else zero for i, j in sequence(name, H, W)], dim=1)


def unwalk_map(steps: torch.Tensor, name: str, H: int, W: int) -> torch.Tensor:
    cells = sequence(name, H, W)
    rows = [[steps[:, cells.index((i, j))] for j in range(W)] for i in range(H)]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


NAMES = ("h_flip", "v", "w2_flip", "w7")


@pytest.mark.parametrize("grid", [(5, 7), (1, 3), (4, 6)])
def test_hierarchical_block_follows_its_definition(grid):
    mixer = randomised(LocalSS2D(6, NAMES, "attention", "inverse", state=3))
    x = torch.randn(2, *grid, 6, dtype=torch.float64)
    inner, z = (x @ mixer.in_proj.weight.T).chunk(2, dim=-1)
    inner = F.silu(mixer.conv(inner.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    merged = 0
    for k, name in enumerate(NAMES):
        y = unwalk_map(scan_by_hand(walk_map(inner, name), mixer.scan, k), name, *grid)
        merged = merged + attention_by_hand(y.flatten(1, 2), mixer.combine)
    expected = mixer.out_norm(merged).unflatten(1, grid) * F.silu(z) @ mixer.out_proj.weight.T
    torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("class_token", ["none", "middle"])
@pytest.mark.parametrize("grid", [(5, 7), (1, 3), (4, 6)])
def test_plain_mixer_follows_its_definition(grid, class_token):
    """Padding is zero before the convolution, which leaves values there that the scan then reads."""
    mixer = randomised(LocalVimMixer(6, NAMES, class_token=class_token, state=3))
    patches, middle = grid[0] * grid[1], grid[0] * grid[1] // 2
    tokens = torch.randn(2, patches + (class_token == "middle"), 6, dtype=torch.float64, requires_grad=True)
    merged = 0
    for k, name in enumerate(NAMES):
        xz = tokens @ mixer.in_proj.weight.T
        taken = xz[:, middle : middle + 1] if class_token == "middle" else xz[:, :0]
        rest = torch.cat((xz[:, :middle], xz[:, middle + taken.shape[1] :]), dim=1)
        walked = walk_map(rest.unflatten(1, grid), name)
        walked = torch.cat((walked[:, :middle], taken, walked[:, middle:]), dim=1)
        x, z = walked.chunk(2, dim=-1)
        padded = F.pad(x, (0, 0, 3, 0))
        taps = mixer.conv.weight[k, :, 0]
        x = F.silu(sum(padded[:, j : j + x.shape[1]] * taps[:, j] for j in range(4)) + mixer.conv.bias[k])
        y = scan_by_hand(x, mixer.scan, k) * F.silu(z)
        token = y[:, middle : middle + taken.shape[1]]
        y = torch.cat((y[:, :middle], y[:, middle + taken.shape[1] :]), dim=1)
        y = unwalk_map(y, name, *grid).flatten(1, 2)
        y = torch.cat((y[:, :middle], token, y[:, middle:]), dim=1)
        merged = merged + attention_by_hand(y, mixer.combine)
    expected = merged @ mixer.out_proj.weight.T
    output = mixer(tokens, grid)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    inputs = (tokens, *mixer.parameters())
    cotangent = torch.randn_like(output)
    ours, theirs = (torch.autograd.grad(y, inputs, cotangent, allow_unused=True) for y in (output, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("grid", [(4, 4), (5, 7), (6, 2)])
def test_published_unscan_transposes_twice(grid):
    H, W = grid
    y = torch.randn(2, H * W, 3, 4)
    undone = undo_as_published(y, ("h", "v", "v_flip"), H, W)
    assert torch.equal(undone[:, :, 0], y[:, :, 0])
    for k in (1, 2):
        read = y[:, :, k].view(2, H, W, 4).transpose(1, 2).flatten(1, 2)  # as columns are read
        expected = read.view(2, H, W, 4).transpose(1, 2).flatten(1, 2)
        assert torch.equal(undone[:, :, k], expected)
        assert torch.equal(undone[:, :, k], y[:, :, k]) == (H == W)


@pytest.mark.parametrize("class_token", ["none", "middle"])
def test_directions_are_the_same_walk_over_another_image(class_token):
    """A reversed walk is the walk over the reversed sequence, columns are the rows of the transposed map."""
    H, W = 4, 6
    tokens = torch.randn(2, H * W, 6, dtype=torch.float64)
    token = torch.randn(2, class_token == "middle", 6, dtype=torch.float64)

    def mix(names, maps):
        mixer.directions = names
        patches = maps.flatten(1, 2)
        out = mixer(torch.cat((patches[:, :12], token, patches[:, 12:]), dim=1), tuple(maps.shape[1:3]))
        return torch.cat((out[:, :12], out[:, 12 + token.shape[1] :]), dim=1).view(maps.shape)

    mixer = randomised(LocalVimMixer(6, ("h",), class_token=class_token))
    maps = tokens.unflatten(1, (H, W))
    rows = mix(("h",), maps)
    if class_token == "none":
        torch.testing.assert_close(mix(("h_flip",), maps.flip(1, 2)).flip(1, 2), rows)
    torch.testing.assert_close(mix(("v",), maps.transpose(1, 2)).transpose(1, 2), rows)
    assert not torch.allclose(mix(("w2",), maps), rows)


@pytest.mark.parametrize("family", ["local_vmamba", "local_vim"])
def test_directions_of_every_block_are_an_option(family):
    """A window as large as the grid is a walk row by row."""
    image = torch.randn(1, 3, 32, 32)
    base = visionssm.create_model(f"{family}_nano", directions=[("h",)] * 4).eval()
    other = visionssm.create_model(f"{family}_nano", directions=[("w8",), *[("h",)] * 3]).eval()
    other.load_state_dict(base.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(other(image), base(image))
    with pytest.raises(ValueError, match="need a list of names"):
        visionssm.create_model(f"{family}_nano", directions=["h"] * 4)


def test_number_of_directions_must_fit_the_depth():
    with pytest.raises(ValueError, match="3 blocks, need one for each of the 4"):
        visionssm.create_model("local_vmamba_nano", directions=[("h",)] * 3)


@pytest.mark.parametrize("family", ["local_vmamba", "local_vim"])
def test_open_gates_are_a_plain_sum(family):
    attention = visionssm.create_model(f"{family}_nano").eval()
    for name, parameter in attention.named_parameters():
        if "combine.select" in name:
            torch.nn.init.constant_(parameter, 30.0 if name.endswith("bias") else 0.0)
    plain = visionssm.create_model(f"{family}_nano", combine="sum").eval()
    plain.load_state_dict({name: value for name, value in attention.state_dict().items() if "combine" not in name})
    image = torch.randn(2, 3, 33, 47)
    with torch.inference_mode():
        torch.testing.assert_close(plain(image), attention(image))


@pytest.mark.parametrize("family", ["local_vmamba", "local_vim"])
def test_search_keeps_the_directions_with_the_largest_weights(family):
    supernet = visionssm.create_model(f"{family}_nano", directions=[SEARCHED] * 4, combine="search")
    searches = [m for m in supernet.modules() if type(m).__name__ == "DirectionSearch"]
    assert len(searches) == 4
    for search in searches:
        assert search.logits.shape == (8,)
        assert search.logits.abs().max() < 6e-3
    supernet(torch.randn(1, 3, 32, 32)).sum().backward()
    assert all(search.logits.grad.abs().max() > 0 for search in searches)
    with torch.no_grad():
        searches[0].logits.copy_(torch.tensor([0.0, 3, 1, 2, -1, 0.5, 9, 0]))
    found = searched_directions(supernet)
    assert found[0] == ("h_flip", "v", "v_flip", "w7")
    visionssm.create_model(f"{family}_nano", directions=found)
    with pytest.raises(ValueError, match="search"):
        searched_directions(visionssm.create_model(f"{family}_nano"))


def test_search_weighs_normalised_outputs():
    combine = next(
        m
        for m in visionssm.create_model("local_vmamba_nano", directions=[SEARCHED] * 4, combine="search").modules()
        if type(m).__name__ == "DirectionSearch"
    )
    with torch.no_grad():
        combine.logits.copy_(torch.arange(8.0))
    y = torch.randn(2, 5, 8, 6)
    normed = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    weights = np.exp(np.arange(8)) / np.exp(np.arange(8)).sum()
    expected = sum(float(weights[k]) * normed[:, :, k] for k in range(8))
    torch.testing.assert_close(combine(y), expected)


@pytest.mark.parametrize(
    ("name", "container"),
    [
        ("local_vim_tiny_224x224", "ema_model"),
        ("local_vim_tiny_middle_cls_token_224x224", "model"),
        ("local_vssm_tiny_224x224", "state_dict"),
    ],
)
def test_published_files_load_and_convert_back(name, container, tmp_path):
    content = fixture("localmamba", name)
    weights = rule_state_dict(content)
    rope = {
        key: torch.full(shape, float("nan"))
        for key, (shape, _) in content["state_dict"].items()
        if key in content["kept_as_built"]
    }
    prefix = "module.module." if container == "ema_model" else ""
    file = tmp_path / "published.ckpt"
    torch.save({container: {prefix + key: value for key, value in {**weights, **rope}.items()}, "epoch": 1}, file)
    model = visionssm.create_model(name.rpartition("_")[0].replace("vssm", "vmamba"), checkpoint=file)
    back = export_published(model)
    assert set(back) == set(weights)
    assert all(torch.equal(back[key], value) for key, value in weights.items())


def test_every_direction_keeps_its_own_decay():
    """The published constructor lets the four share one tensor, so that loading on the CPU leaves all equal to the last."""
    model = visionssm.create_model("local_vim_nano")
    weights = export_published(model)
    for k in range(4):
        weights[f"layers.0.mixer.A_log_{k}"] = torch.full_like(weights[f"layers.0.mixer.A_log_{k}"], float(k))
    visionssm.models.load_published(model, weights, model.pretrained_cfg, "test")
    assert [float(A.mean()) for A in model.blocks[0].mixer.scan.A_log.detach()] == [0, 1, 2, 3]


def test_initial_values_of_local_vim():
    torch.manual_seed(0)
    model = visionssm.create_model("local_vim_tiny", directions=LOCAL_VIM[:4])
    scan, mixer = model.blocks[0].mixer.scan, model.blocks[0].mixer
    for weight in (
        scan.x_proj_weight,
        scan.dt_weight,
        mixer.in_proj.weight,
        mixer.combine.reduce.weight,
        model.pos_embed,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not scan.dt_bias.any() and not mixer.combine.select.bias.any()
    assert torch.equal(scan.D, torch.ones_like(scan.D))
    torch.testing.assert_close(scan.A_log.exp(), torch.arange(1.0, 17).expand_as(scan.A_log))
    bound = 384**-0.5 / math.sqrt(4)
    assert 0.9 * bound < mixer.out_proj.weight.abs().max() <= bound
    assert mixer.conv.weight.abs().max() <= 0.5 < 1.1 * mixer.conv.weight.abs().max()
    bound = (3 * 16 * 16) ** -0.5
    assert 0.9 * bound < model.stem.proj.weight.abs().max() <= bound
    kept = visionssm.create_model("local_vim_tiny", directions=LOCAL_VIM[:4], dt_init="mamba").blocks[0].mixer.scan
    dt = F.softplus(kept.dt_bias)
    assert 9e-4 < dt.min() < 2e-3 and 0.05 < dt.max() < 0.101


def test_initial_values_of_local_vmamba():
    scan = visionssm.create_model("local_vmamba_nano", width=64).stages[1].blocks[0].mixer.scan
    dt = F.softplus(scan.dt_bias)
    assert 9e-4 < dt.min() < 2e-3 and 0.05 < dt.max() < 0.101
    assert scan.dt_weight.abs().max() <= scan.dt_rank**-0.5
    assert scan.x_proj_weight.abs().max() <= 256**-0.5


def test_images_are_filled_up_to_whole_patches():
    """LocalVim pads at the bottom and the right, the pyramid's stem rounds down and its merging pads odd sides."""
    model = visionssm.create_model("local_vim_nano").eval()
    image = torch.randn(1, 3, 30, 37)
    with torch.inference_mode():
        assert torch.equal(model(image), model(F.pad(image, (0, 3, 0, 2))))
    pyramid = visionssm.create_model("local_vmamba_nano", features_only=True).eval()
    with torch.inference_mode():
        sizes = [tuple(m.shape[2:]) for m in pyramid(torch.randn(1, 3, 47, 38))]
    assert sizes == [(11, 9), (6, 5), (3, 3), (2, 2)]


def test_dense_form_of_local_vim_takes_mixer_outputs():
    image = torch.randn(1, 3, 32, 32)
    mixer = visionssm.create_model("local_vim_nano").eval()
    stream = visionssm.create_model("local_vim_nano", feature="stream").eval()
    stream.load_state_dict(mixer.state_dict())
    with torch.inference_mode():
        final, maps = stream.forward_intermediates(image, norm=True)
        assert torch.equal(maps[-1].flatten(2).transpose(1, 2), final)
        hidden = mixer.forward_intermediates(image, intermediates_only=True)
    assert not torch.allclose(hidden[-1], stream.forward_intermediates(image, intermediates_only=True)[-1])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["local_vmamba", "local_vim"])
def test_one_export_serves_every_size(family):
    model = visionssm.create_model(f"{family}_nano").eval()
    side = torch.export.Dim("H", min=65, max=512), torch.export.Dim("W", min=65, max=512)
    program = torch.export.export(model, (torch.randn(1, 3, 96, 128),), dynamic_shapes=({2: side[0], 3: side[1]},))
    image = torch.randn(1, 3, 70, 101)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(image), model(image), rtol=1e-4, atol=1e-5)
