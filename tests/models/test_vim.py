"""Vim against the published model's numbers, independent loops, and what its paper varies."""

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

import visionssm
from visionssm.heads import RescalingPyramid
from visionssm.layers.rotary import Rotary2d, rotate_pairs
from visionssm.layers.tokens import class_positions, insert_rows, remove_rows, resize_pos_embed, take_rows
from visionssm.layers.vim_mixer import CausalConv, VimMixer
from visionssm.models._checkpoint import load_weights
from visionssm.models._release import find_release
from visionssm.testing.parity import relative_error, rule_image, rule_state_dict

TOLERANCE = 2e-5
TAPS = (5, 11, 17, 23)
LEGACY = {"class_token": "none", "rotary": "hidden_and_residual", "halve": False}
OPTIONS = {"vim_tiny_legacy_nocls": {"class_token": "none"}}
DENSE = {
    "vim_tiny_seg_512x512": {"class_token": "none", "feature": "mixer"},
    "vim_tiny_seg_residual_256x256": {**LEGACY, "feature": "rotated_stream"},
    "vim_tiny_det_512x512": LEGACY,
}


def build(content):
    size = (content["input"]["height"], content["input"]["width"])
    options = OPTIONS.get(content["model"], {})
    return visionssm.create_model(content["model"].removesuffix("_nocls"), img_size=size, **options).eval()


def nano(**options):
    """The small model with overlapping patches, so that small images have many."""
    return visionssm.create_model("vim_nano", stride=4, **options)


@pytest.mark.parametrize("name", fixtures("vim", slow=("base", "small", "plus", "nocls")))
def test_logits_and_streams_match_the_published_model(name):
    content = fixture("vim", name)
    model = build(content)
    load_fixture_weights(model, content, name)
    assert sum(p.numel() for p in model.parameters()) == content["num_params"]
    image = rule_image(**content["input"])
    with torch.inference_mode():
        assert_logits(model(image), content, TOLERANCE)
        tokens, grid = model.embed(image)
        _, streams = model.run_blocks(tokens, grid, TAPS)
        model.feature = "mixer"
        _, mixers = model.run_blocks(tokens, grid, TAPS)
        features = [feature for pair in zip(streams, mixers, strict=True) for feature in pair]
        assert_maps([*features, model.forward_features(image)], content["stages"], TOLERANCE)


@pytest.mark.parametrize("name", fixtures("vim", having="grads"))
def test_gradients_match_the_published_model(name):
    content = fixture("vim", name)
    model = build(content)
    load_fixture_weights(model, content, name)
    assert_gradients(model, content, tolerance=1e-4)


@pytest.mark.parametrize("name", DENSE)
def test_dense_features_match_the_published_backbones(name):
    content = fixture("vim", name)
    state = rule_state_dict(content)
    necks = {key: state.pop(key) for key in list(state) if key.startswith("fpn")}
    state.setdefault("norm_f.weight", torch.ones(192))  # the detection backbone has none
    side = content["input"]["height"]
    model = visionssm.create_model("vim_tiny", img_size=side, num_classes=0, global_pool="", **DENSE[name]).eval()
    load_fixture_weights(model, {**content, "state_dict": {}}, name, extra=state)
    with torch.inference_mode():
        taps = TAPS if necks else (23,)
        maps = model.forward_intermediates(rule_image(**content["input"]), indices=taps, intermediates_only=True)
        if necks:
            pyramid = RescalingPyramid(192).eval()
            load_weights(pyramid, pyramid.key_table.from_published(necks, pyramid.state_dict()), source=name)
            maps = [*maps, *pyramid(maps)]
    assert_maps(maps, content["stages"], TOLERANCE)


# The mixer.


def operator_case(case: int):
    vectors = operator_vectors("vim", "bimamba_v2_op")
    values = {
        key.removeprefix(f"case{case}_"): torch.from_numpy(vectors[key])
        for key in vectors.files
        if key.startswith(f"case{case}_")
    }
    _, E, _, N, R = values.pop("dims").tolist()
    return values, {"expansion": E, "state": N, "dt_rank": R}


PARAMETERS = {
    "conv.weight": "conv_w", "conv.bias": "conv_b", "scan.x_proj_weight": "x_proj", "scan.dt_weight": "dt_w",
    "scan.dt_bias": "dt_b", "scan.A_log": "A_log", "scan.D": "D",
}  # fmt: skip


def set_operator(mixer: VimMixer, values, directions: str) -> None:
    """Gives a mixer of width 1 the vectors' parameters of the directions "f", "b" or both."""
    parameters = dict(mixer.named_parameters())
    with torch.no_grad():
        for ours, published in PARAMETERS.items():
            stacked = torch.stack([values[f"in_{published}_{d}"] for d in directions])
            parameters[ours].copy_(stacked.reshape(parameters[ours].shape))


def mix(mixer, xz):
    x, z = xz.chunk(2, dim=-1)
    return mixer.walk(mixer.conv(x)) * F.silu(z)


@pytest.mark.parametrize("case", range(5))
def test_operator_matches_the_published_one_in_float64(case):
    values, sizes = operator_case(case)
    mixer = VimMixer(1, **sizes).double()
    set_operator(mixer, values, "fb")
    xz = values["in_xz"].transpose(1, 2).clone().requires_grad_()
    y = mix(mixer, xz) * mixer.scale
    assert relative_error(y.transpose(1, 2), values["y"]) < 1e-10
    for direction, path in (("f", lambda x: x), ("b", lambda x: x.flip(1))):
        single = VimMixer(1, directions="forward", **sizes).double()
        set_operator(single, values, direction)
        assert relative_error(path(mix(single, path(xz))).transpose(1, 2), values[f"y_{direction}"]) < 1e-10

    (y * values["G"].transpose(1, 2)).sum().backward()
    assert relative_error(xz.grad.transpose(1, 2), values["grad_xz"]) < 1e-10
    for ours, published in PARAMETERS.items():
        expected = torch.stack([values[f"grad_{published}_{d}"] for d in "fb"])
        assert relative_error(mixer.get_parameter(ours).grad, expected) < 1e-10, published


def loop_mixer(mixer: VimMixer, tokens: torch.Tensor) -> torch.Tensor:
    """The mixer step by step, from the paper's algorithm, in plain loops over time."""
    xz = tokens @ mixer.in_proj.weight.T
    x, z = xz.chunk(2, dim=-1)
    shared = len(mixer.scan.D) < len(mixer.scan.A_log)
    total = 0
    for k in range(len(mixer.scan.A_log)):
        p = 0 if shared else k
        taps, bias = mixer.conv.weight[p, :, 0], mixer.conv.bias[p]
        steps = x if shared or k == 0 else x.flip(1)
        width = taps.shape[1]
        convolved = torch.stack(
            [
                bias + sum(taps[:, width - 1 - back] * steps[:, t - back] for back in range(min(t + 1, width)))
                for t in range(steps.shape[1])
            ],
            dim=1,
        )
        u = F.silu(convolved)
        u = u.flip(1) if shared and k == 1 else u
        projected = u @ mixer.scan.x_proj_weight[p].T
        dt, B, C = projected.split((mixer.scan.dt_rank, mixer.scan.state, mixer.scan.state), dim=-1)
        delta = F.softplus(dt @ mixer.scan.dt_weight[p].T + mixer.scan.dt_bias[p])
        A = -mixer.scan.A_log[k].exp()
        state = torch.zeros(*u.shape[::2], A.shape[1], dtype=u.dtype)
        outputs = []
        for t in range(u.shape[1]):
            state = (delta[:, t, :, None] * A).exp() * state + (delta * u)[:, t, :, None] * B[:, t, None]
            outputs.append((state * C[:, t, None]).sum(-1) + mixer.scan.D[p] * u[:, t])
        y = torch.stack(outputs, dim=1)
        total = total + (y if k == 0 else y.flip(1))
    return (total * F.silu(z)) @ mixer.out_proj.weight.T * mixer.scale


@pytest.mark.parametrize("directions", ["bidirectional", "bidirectional_shared", "forward"])
@pytest.mark.parametrize(("L", "N", "taps"), [(1, 4, 4), (3, 1, 4), (13, 3, 4), (6, 2, 2)])
def test_mixer_equals_a_plain_loop(directions, L, N, taps):
    mixer = VimMixer(12, state=N, taps=taps, directions=directions).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tokens = torch.randn(2, L, 12, dtype=torch.float64)
    torch.testing.assert_close(mixer(tokens), loop_mixer(mixer, tokens), rtol=1e-10, atol=1e-12)


def test_forward_direction_is_causal_and_both_directions_are_not():
    tokens = torch.randn(1, 9, 16)
    changed = tokens.clone()
    changed[:, 5] += 1
    for directions, causal in (("forward", True), ("bidirectional", False), ("bidirectional_shared", False)):
        mixer = VimMixer(16, directions=directions)
        assert torch.equal(mixer(tokens)[:, :5], mixer(changed)[:, :5]) == causal


def test_reversed_tokens_with_exchanged_directions_give_the_reversed_output():
    mixer, mirrored = VimMixer(16), VimMixer(16)
    mirrored.load_state_dict(mixer.state_dict())
    with torch.no_grad():
        for name in PARAMETERS:
            mirrored.get_parameter(name).copy_(mixer.get_parameter(name).flip(0))
    tokens = torch.randn(2, 11, 16)
    torch.testing.assert_close(mirrored(tokens.flip(1)).flip(1), mixer(tokens))


def test_halving_is_a_factor_of_one_half_of_separate_directions_only():
    tokens = torch.randn(2, 5, 16)
    for directions, factor in (("bidirectional", 2), ("bidirectional_shared", 1), ("forward", 1)):
        halved, summed = (VimMixer(16, directions=directions, halve=halve) for halve in (True, False))
        summed.load_state_dict(halved.state_dict())
        assert torch.equal(factor * halved(tokens), summed(tokens))


def test_layer_scale_multiplies_the_mixers_output():
    plain, scaled = VimMixer(16), VimMixer(16, layer_scale=0.25)
    scaled.load_state_dict(plain.state_dict(), strict=False)
    tokens = torch.randn(2, 5, 16)
    assert torch.equal(scaled(tokens), 0.25 * plain(tokens))


def test_convolution_sees_its_own_side_only():
    conv = CausalConv(3, directions=2)
    x = torch.randn(1, 9, 3)
    changed = x.clone()
    changed[:, 4] += 1
    moved = (conv(x) != conv(changed)).any(-1)[0]
    assert moved[:, 0].nonzero().flatten().tolist() == [4, 5, 6, 7]
    assert moved[:, 1].nonzero().flatten().tolist() == [1, 2, 3, 4]


# Class tokens, position embedding, rotary embedding.


@pytest.mark.parametrize(
    ("kind", "places"), [("none", []), ("first", [0]), ("middle", [17]), ("last", [35]), ("double", [0, 36])]
)
def test_class_tokens_are_where_they_should_be(kind, places):
    model = nano(class_token=kind, img_size=(24, 32)).eval()
    image = torch.randn(2, 3, 24, 32)
    patches = model.stem(image).flatten(2).transpose(1, 2)
    assert patches.shape[1] == 35
    with torch.no_grad():
        tokens = (model.embed(image)[0] - model.pos_embed).split(1, dim=1)
    rows = {"double": ["cls_token_head", "cls_token_tail"], "none": []}.get(kind, ["cls_token"])
    for place, row in zip(places, rows, strict=True):
        torch.testing.assert_close(tokens[place], model.get_parameter(row).expand(2, -1, -1), rtol=0, atol=1e-6)
    others = torch.cat([token for place, token in enumerate(tokens) if place not in places], dim=1)
    torch.testing.assert_close(others, patches, rtol=0, atol=1e-6)

    features = model.forward_features(image)
    patches = torch.stack([row for place, row in enumerate(features.unbind(1)) if place not in places], dim=1)
    pooled = features[:, places].mean(1) if places else patches.mean(1)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)
    for pool, expected in (("avg", patches.mean(1)), ("max", patches.amax(1)), ("last", features[:, -1])):
        model.global_pool = pool
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), expected)


def test_pooling_that_the_model_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"global_pool: got 'token', but the model has no class token"):
        nano(class_token="none", global_pool="token")
    with pytest.raises(ValueError, match=r"global_pool: got 'mean', choose from 'token', 'avg', 'max', 'last'"):
        nano(global_pool="mean")


@pytest.mark.parametrize("side", [24, 27, 32])
def test_published_position_embedding_procedure(side):
    vectors = operator_vectors("vim", "pos_embed_interp")
    pos_embed = torch.from_numpy(vectors["pos_embed"])
    resized = resize_pos_embed(pos_embed, (14, 14), (side, side), "middle", "published")
    assert relative_error(resized, vectors[f"cls_{side}"]) < 1e-6
    dropped = resize_pos_embed(pos_embed, (14, 14), (side, side), "middle", "published", "none")
    assert relative_error(dropped, vectors[f"nocls_from_cls_{side}"]) < 1e-6


@pytest.mark.parametrize("kind", ["none", "first", "middle", "last", "double"])
@pytest.mark.parametrize(("old", "new"), [((14, 14), (16, 20)), ((5, 7), (9, 4))])
def test_aligned_procedure_resizes_the_map_and_keeps_class_rows(kind, old, new):
    maps = torch.randn(1, 8, *old)
    rows = torch.randn(1, len(class_positions(kind, 1)), 8)
    pos_embed = insert_rows(maps.flatten(2).transpose(1, 2), rows, class_positions(kind, old[0] * old[1]))
    resized = resize_pos_embed(pos_embed, old, new, kind)
    places = class_positions(kind, new[0] * new[1])
    assert torch.equal(take_rows(resized, places), rows)
    expected = F.interpolate(maps, size=new, mode="bicubic", align_corners=False)
    torch.testing.assert_close(remove_rows(resized, places).transpose(1, 2).unflatten(2, new), expected)
    assert torch.equal(resize_pos_embed(pos_embed, old, old, kind), pos_embed)


@pytest.mark.parametrize("kind", ["none", "middle", "double"])
def test_resizing_on_the_fly_is_resizing_once(kind):
    model = nano(class_token=kind, rotary="hidden").eval()
    image = torch.randn(1, 3, 45, 63)
    with torch.inference_mode():
        expected = model(image)
    model.set_input_size((45, 63))
    assert model.pos_embed.shape[1] == 10 * 14 + len(class_positions(kind, 140))
    with torch.inference_mode():
        torch.testing.assert_close(model(image), expected)


@pytest.mark.parametrize("grid", [(14, 14), (3, 5), (1, 1)])
def test_rotary_turns_complex_numbers(grid):
    x = torch.randn(2, grid[0] * grid[1], 12, dtype=torch.float64)
    rotary = Rotary2d(12)
    rotated = rotate_pairs(x, *rotary.tables(grid, (14, 14), torch.float64))
    for token in range(x.shape[1]):
        row, column = divmod(token, grid[1])
        for channel in range(0, 12, 2):
            where = 14 * (row / grid[0] if channel < 6 else column / grid[1])
            angle = where * 10000 ** (-(channel % 6) / 6)
            turned = torch.complex(x[:, token, channel], x[:, token, channel + 1]) * complex(
                math.cos(angle), math.sin(angle)
            )
            torch.testing.assert_close(rotated[:, token, channel], turned.real)
            torch.testing.assert_close(rotated[:, token, channel + 1], turned.imag)


def test_resized_rotary_tables_are_the_native_ones_at_the_native_size():
    by_positions, by_tables = Rotary2d(8, resize="positions"), Rotary2d(8, resize="tables")
    for a, b in zip(by_positions.tables((14, 14), (14, 14)), by_tables.tables((14, 14), (14, 14)), strict=True):
        assert torch.equal(a, b)
    native = by_tables.tables((14, 14), (14, 14))[0].t().view(1, 8, 14, 14)
    resized = F.interpolate(native, size=(16, 20), mode="bicubic", align_corners=False)
    torch.testing.assert_close(by_tables.tables((16, 20), (14, 14))[0].t().view(1, 8, 16, 20), resized)


def test_rotary_leaves_class_tokens_alone_and_accumulates():
    """With mixers that add nothing, patches are turned once per block, the residual stream with them if asked for."""
    image = torch.randn(1, 3, 32, 32)
    for rotary, turns in (("hidden", 1), ("hidden_and_residual", 4), ("none", 0)):
        model = nano(rotary=rotary).eval()
        for block in model.blocks:
            torch.nn.init.zeros_(block.mixer.out_proj.weight)
        with torch.no_grad():
            tokens, grid = model.embed(image)
            stream, _ = model.run_blocks(tokens, grid)
            cos, sin = Rotary2d(64).tables(grid, grid)
            patches = remove_rows(tokens, (24,))
            for _ in range(turns):
                patches = rotate_pairs(patches, cos, sin)
        torch.testing.assert_close(remove_rows(stream, (24,)), patches)
        assert torch.equal(stream[:, 24], tokens[:, 24])


# What the paper varies at the level of the model.


def test_paired_blocks_of_equal_weights_commute_with_reversal():
    model = nano(paired_blocks=True, directions="forward", class_token="none").eval()
    for first, second in zip(model.blocks[::2], model.blocks[1::2], strict=True):
        second.load_state_dict(first.state_dict())
    tokens = torch.randn(2, 35, 64)
    with torch.inference_mode():
        stream, features = model.run_blocks(tokens, (5, 7), (0, 1))
        reversed_stream, _ = model.run_blocks(tokens.flip(1), (5, 7))
    torch.testing.assert_close(reversed_stream.flip(1), stream)
    assert len(features) == len(model.feature_info) == 2
    assert [entry["module"] for entry in model.feature_info] == ["blocks.1", "blocks.3"]


def test_paired_blocks_sum_both_streams():
    model = nano(depth=2, paired_blocks=True, directions="forward").eval()
    there, back = model.blocks
    tokens = torch.randn(1, 50, 64)
    with torch.inference_mode():
        expected = 2 * tokens + there.mixer(there.norm(tokens)) + back.mixer(back.norm(tokens.flip(1))).flip(1)
        torch.testing.assert_close(model.run_blocks(tokens, (7, 7))[0], expected)
    with pytest.raises(ValueError, match=r"paired_blocks: got 3 blocks"):
        nano(depth=3, paired_blocks=True)


def test_streams_add_up_to_a_residual_network():
    model = nano().eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        x, _ = model.embed(image)
        for block in model.blocks:
            x = x + block.mixer(block.norm(x))
        torch.testing.assert_close(model.forward_features(image), model.norm(x))


def test_drop_path_grows_with_the_depth_and_drops_whole_outputs():
    model = nano(drop_path_rate=0.3).train()
    assert [block.drop_path.drop_prob for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    block = model.blocks[3]
    hidden, residual = torch.randn(200, 5, 64), torch.randn(200, 5, 64)
    out, _ = block(hidden, residual, (1, 5))
    block.eval()
    kept, _ = block(hidden, residual, (1, 5))
    dropped = (out == 0).flatten(1).all(1)
    assert 30 < dropped.sum() < 90
    torch.testing.assert_close(out[~dropped], kept[~dropped] / 0.7)


def test_residual_stream_stays_in_float32():
    model = nano().eval()
    tokens = torch.randn(1, 50, 64)
    for cast, hidden_dtype in ((torch.bfloat16, torch.bfloat16), (torch.float64, torch.float64)):
        hidden, residual = model.to(cast).blocks[0](tokens.to(cast), None, (7, 7))
        assert hidden.dtype == hidden_dtype
        assert residual.dtype == (torch.float64 if cast == torch.float64 else torch.float32)


def test_intermediates_with_class_tokens_and_norm():
    model = nano().eval()
    image = torch.randn(2, 3, 40, 48)
    with torch.inference_mode():
        final, pairs = model.forward_intermediates(image, norm=True, return_prefix_tokens=True, output_fmt="NLC")
    assert [tuple(p.shape) for p in pairs[0]] == [(2, 99, 64), (2, 1, 64)]
    patches, token = pairs[-1]
    assert torch.equal(insert_rows(patches, token, (49,)), final)


# Weights.


def save_published(path, content, **changes):
    torch.save({"model": {**rule_state_dict(content), **changes}}, path)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A published-format file of vim_tiny for 224 x 224, and its weights."""
    content = fixture("vim", "vim_tiny_224x224")
    return save_published(tmp_path_factory.mktemp("vim") / "tiny.pth", content), rule_state_dict(content)


def test_position_embedding_of_a_file_is_fitted_to_the_size_asked_for(tiny):
    file, state = tiny
    same = visionssm.create_model("vim_tiny", checkpoint=file)
    assert torch.equal(same.pos_embed, state["pos_embed"])
    wide = visionssm.create_model("vim_tiny", checkpoint=file, img_size=(256, 320))
    expected = resize_pos_embed(state["pos_embed"], (14, 14), (16, 20), "middle")
    assert torch.equal(wide.pos_embed, expected)
    tuned = visionssm.create_model("vim_tiny_plus", checkpoint=file, pos_resize="published")
    expected = resize_pos_embed(state["pos_embed"], (14, 14), (27, 27), "middle", "published")
    assert torch.equal(tuned.pos_embed, expected)


def test_file_of_the_size_asked_for_is_taken_as_it_is(tmp_path):
    content = fixture("vim", "vim_tiny_256x320")
    file = save_published(tmp_path / "wide.pth", content)
    model = visionssm.create_model("vim_tiny", checkpoint=file, img_size=(256, 320))
    assert torch.equal(model.pos_embed, rule_state_dict(content)["pos_embed"])
    with pytest.raises(ValueError, match=r"320 patches, which is neither this model's grid nor a square one"):
        visionssm.create_model("vim_tiny", checkpoint=file)


def test_class_token_is_left_out_where_the_model_has_none(tiny, caplog):
    file, state = tiny
    model = visionssm.create_model("vim_tiny", checkpoint=file, class_token="none")
    assert "class token of the weights (cls_token) is left out" in caplog.text
    assert torch.equal(model.pos_embed, remove_rows(state["pos_embed"], (98,)))
    published = visionssm.create_model("vim_tiny", checkpoint=file, class_token="none", pos_resize="published")
    assert torch.equal(published.pos_embed, state["pos_embed"][:, 1:])


def test_rotary_tables_are_accepted_and_never_required(tmp_path, tiny):
    content = fixture("vim", "vim_tiny_legacy_224x224")
    tables = {name: torch.zeros(shape) for name, (shape, _) in content["state_dict"].items() if name.startswith("rope")}
    assert set(tables) == {"rope.freqs_cos", "rope.freqs_sin"}
    with_tables = save_published(tmp_path / "legacy.pth", content, **tables)
    without = save_published(tmp_path / "bare.pth", content)
    a, b = (visionssm.create_model("vim_tiny_legacy", checkpoint=file) for file in (with_tables, without))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not [name for name in a.state_dict() if "rope" in name or "rotary" in name]
    with pytest.raises(ValueError, match=r"2 unexpected: rope\.freqs_cos, rope\.freqs_sin"):
        visionssm.create_model("vim_tiny", checkpoint=with_tables)


def test_releases_name_the_published_files():
    release = find_release("vim_small_plus")
    assert (
        release.source
        == "https://huggingface.co/hustvl/Vim-small-midclstok/resolve/main/vim_s_midclstok_ft_81p6acc.pth"
    )
    assert not find_release("vim_base_plus").has_weights
    assert find_release("vim_tiny").commercial is None


# How training starts.


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    return visionssm.create_model("vim_tiny")


def assert_uniform(value: torch.Tensor, bound: float) -> None:
    assert value.abs().max() <= bound
    assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert abs(value.mean().item()) < 0.1 * bound


def assert_truncated_normal(value: torch.Tensor, std: float) -> None:
    assert value.std().item() == pytest.approx(std, rel=0.05)
    assert abs(value.mean().item()) < 0.1 * std


def test_recurrence_starts_as_released(fresh):
    for block in fresh.blocks:
        scan = block.mixer.scan
        assert torch.allclose(scan.A_log.exp(), torch.arange(1.0, 17).expand(2, 384, 16))
        assert torch.equal(scan.D, torch.ones(2, 384))
        assert_uniform(scan.dt_weight, 12**-0.5)
        dt = F.softplus(scan.dt_bias)
        assert dt.min() >= 0.99e-3
        assert dt.max() <= 0.101
        assert dt.log().mean().item() == pytest.approx((math.log(1e-3) + math.log(1e-1)) / 2, abs=0.2)
        assert dt.log().std().item() == pytest.approx(math.log(100) / math.sqrt(12), rel=0.1)


def test_projections_start_as_released(fresh):
    mixer = fresh.blocks[7].mixer
    assert_uniform(mixer.in_proj.weight, 192**-0.5)
    assert_uniform(mixer.scan.x_proj_weight, 384**-0.5)
    assert_uniform(mixer.conv.weight, 4**-0.5)
    assert_uniform(mixer.conv.bias, 4**-0.5)
    assert_uniform(mixer.out_proj.weight, 384**-0.5 / math.sqrt(24))
    assert_truncated_normal(fresh.stem.proj.weight, 768**-0.5)
    assert_truncated_normal(fresh.head.weight, 0.02)
    assert_truncated_normal(fresh.pos_embed, 0.02)
    assert fresh.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert not fresh.stem.proj.bias.any()
    assert not fresh.head.bias.any()
    assert all((p == 1).all() for n, p in fresh.named_parameters() if "norm" in n)


def test_legacy_start():
    model = visionssm.create_model("vim_tiny_legacy", init="legacy")
    mixer = model.blocks[3].mixer
    for linear in (mixer.in_proj.weight, mixer.scan.x_proj_weight, mixer.scan.dt_weight):
        assert_truncated_normal(linear, 0.02)
    assert not mixer.scan.dt_bias.any()
    assert not model.cls_token.any()
    assert_uniform(mixer.out_proj.weight, 384**-0.5 / math.sqrt(24))
    assert torch.equal(mixer.scan.D, torch.ones(2, 384))
    with pytest.raises(ValueError, match=r"init: got 'old', choose from released, legacy"):
        visionssm.create_model("vim_nano", init="old")


def test_weights_keep_the_published_names(fresh):
    published = fresh.key_table.to_published(fresh.state_dict())
    expected = fixture("vim", "vim_tiny_224x224")["state_dict"]
    assert {name: list(value.shape) for name, value in published.items()} == {n: s for n, (s, _) in expected.items()}


@pytest.mark.parametrize(("directions", "extra"), [("forward", []), ("bidirectional_shared", ["A_b_log"])])
def test_other_directions_have_the_published_names(directions, extra):
    model = visionssm.create_model("vim_nano", directions=directions)
    names = {
        n.removeprefix("layers.0.mixer.") for n in model.key_table.to_published(model.state_dict()) if "layers.0.m" in n
    }
    common = ["A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight"]
    assert names == {*common, "dt_proj.bias", "out_proj.weight", *extra}
