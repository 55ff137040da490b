"""Pictures: the published analysis numbers, and what the matrix of a linear map must do."""

import functools

import pytest
import torch
from parity_data import fixture, load_fixture_weights, operator_vectors

import visionssm
from visionssm.ops import path_scan
from visionssm.ops.observe import observe_scans
from visionssm.testing.parity import relative_error, rule_image
from visionssm.visualize import (
    MODES,
    area_ratio,
    attention_matrices,
    attention_row,
    cam_layers,
    direction_activations,
    effective_receptive_field,
    grad_cam,
    normalise,
    record_scans,
    roll_out,
)

PUBLISHED_MODES = dict(zip(("CB", "CwBw", "CwBdtw", "ww"), MODES, strict=True))
NANOS = [name for name in visionssm.list_models() if "nano" in name]


@functools.cache
def vmamba_tiny() -> torch.nn.Module:
    model = visionssm.create_model("vmamba_tiny_s1l8").eval()
    load_fixture_weights(model, fixture("vmamba", "vmamba_tiny_s1l8_224x224"), "fixture")
    return model


@functools.cache
def published_record():
    records = record_scans(vmamba_tiny(), rule_image(128, 128, batch=1))
    return next(record for record in records if record.module.startswith("stages.2.blocks.1."))


@functools.cache
def nano_records(name: str, H: int = 40, W: int = 56):
    torch.manual_seed(0)
    model = visionssm.create_model(name).eval()
    return record_scans(model, torch.randn(1, 3, H, W))


def test_receptive_field_is_the_published_one():
    expected = operator_vectors("vmamba", "analysis")
    images = [rule_image(128, 128, batch=1, seed=seed) for seed in (0, 1)]
    first = effective_receptive_field(vmamba_tiny(), images[:1])
    assert relative_error(first.contribution, expected["erf/map_seed0"]) < 2e-5
    field = effective_receptive_field(vmamba_tiny(), images)
    assert field.images == 2
    assert relative_error(field.contribution, expected["erf/avg"]) < 2e-5
    assert relative_error(field.displayed(), expected["erf/norm"]) < 2e-4
    for share in (0.2, 0.3, 0.5, 0.99):
        side, ratio = map(float, expected[f"erf/rect_quarter_power_{share:g}"])
        assert area_ratio(field.displayed(0.25), share) == (None if side < 0 else pytest.approx((side, ratio)))


@pytest.mark.parametrize("published", PUBLISHED_MODES)
def test_attention_is_the_published_one(published):
    expected = operator_vectors("vmamba", "analysis")
    matrices = attention_matrices(published_record(), PUBLISHED_MODES[published])
    for k, matrix in enumerate(normalise(matrices)):
        assert relative_error(matrix, expected[f"attn/a{k}_norm_{published}"]) < 5e-5
    assert relative_error(normalise(matrices.sum(0)), expected[f"attn/all_norm_{published}"]) < 5e-5
    assert relative_error(normalise(matrices).mean(0), expected[f"attn/nall_norm_{published}"]) < 5e-5


def test_recorded_inputs_are_the_published_ones():
    expected = operator_vectors("vmamba", "analysis")
    tensors = published_record().tensors
    path = tensors.path.long()
    B = torch.stack([tensors.B[0, path[k], k].T for k in range(4)])
    assert relative_error(B, expected["attn/reg_Bs"][0]) < 2e-5
    assert relative_error(tensors.dt_bias.flatten(), expected["attn/reg_delta_bias"]) < 1e-6


@pytest.mark.parametrize("name", NANOS)
def test_attention_rows_add_up_to_the_scan(name):
    """With the channels' inputs all one, row i of the mean matrix sums to the mean output at i."""
    for record in nano_records(name)[:3] + nano_records(name)[-1:]:
        t = record.tensors
        ones = torch.ones_like(t.x)
        y = path_scan(
            ones, t.dt, t.A, t.B, t.C, None, t.dt_bias, t.path, dt_weight=t.dt_weight, softplus=record.softplus,
            merge=False, out_dtype=torch.float32,
        )  # fmt: skip
        H, W = record.grid
        pixel = (H // 2, W - 1)
        row = attention_row(record, pixel)
        for k in range(record.num_paths):
            position = int(record.positions[k][pixel])
            if position < 0:
                assert not row[k].any()
                continue
            expected = float(y[record.rows[pixel], position, k].mean())
            seen = record.tensors.x.shape[1]
            same_sequence = int(((record.rows == record.rows[pixel]) & (record.positions[k] >= 0)).sum())
            if same_sequence == seen:  # no class token and no padding takes part in the sum
                assert float(row[k].sum()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", NANOS)
def test_pixels_of_every_family_are_found(name):
    """What a scan is given at a pixel's position is that pixel's: only its neighbourhood changes with it."""
    torch.manual_seed(0)
    model = visionssm.create_model(name).eval()
    image = torch.randn(1, 3, 64, 96)
    other = image.clone()
    other[:, :, 40:48, 72:80] += 3.0
    before, after = (record_scans(model, x)[0] for x in (image, other))
    change = (before.tensors.x - after.tensors.x).abs()
    change = change.mean(-1) if change.dim() == 3 else change.mean(-1).movedim(-1, 0)
    H, W = before.grid
    per_path = change if change.dim() == 3 else change.expand(before.num_paths, *change.shape)
    seen = torch.stack(
        [
            torch.where(before.positions[k] >= 0, per_path[k][before.rows, before.positions[k].clamp(min=0)], 0)
            for k in range(before.num_paths)
        ]
    ).sum(0)
    row, column = divmod(int(seen.argmax()), W)
    assert abs((row + 0.5) / H - 44 / 64) <= 1.6 / H
    assert abs((column + 0.5) / W - 76 / 96) <= 1.6 / W


@pytest.mark.parametrize("name", NANOS)
def test_records_keep_what_each_scan_was_given(name):
    """Also where the blocks of a model take turns with their memory."""
    torch.manual_seed(0)
    model = visionssm.create_model(name).eval()
    image, given = torch.randn(1, 3, 40, 56), []
    with torch.no_grad(), observe_scans(lambda tensors, softplus, zoh: given.append(tensors.x.clone())):
        model.forward_intermediates(image, intermediates_only=True)
    for record, x in zip(record_scans(model, image), given, strict=True):
        assert torch.equal(record.tensors.x, x)


def test_row_equals_row_of_the_matrix():
    record = nano_records("vmamba_nano")[0]
    matrices = attention_matrices(record, "full")
    H, W = record.grid
    for row, column in ((0, 0), (H // 2, W // 3), (H - 1, W - 1)):
        for k, found in enumerate(attention_row(record, (row, column))):
            assert torch.allclose(found.flatten(), matrices[k, row * W + column], rtol=1e-4, atol=1e-7)


def test_roll_out_of_blocks_that_do_not_mix_is_the_identity():
    assert torch.allclose(roll_out([torch.eye(5)] * 3), torch.eye(5))
    rows = roll_out([torch.randn(6, 6).tril() for _ in range(3)]).sum(1)
    assert torch.allclose(rows, torch.ones(6))


@pytest.mark.parametrize("name", NANOS)
def test_direction_activations_have_the_shape_of_the_map(name):
    record = nano_records(name)[0]
    maps = direction_activations(record)
    assert maps.shape == (record.num_paths, *record.grid)
    assert maps.isfinite().all()
    assert maps.sum() > 0


@pytest.mark.parametrize("name", NANOS)
def test_grad_cam_of_every_layer(name):
    torch.manual_seed(0)
    model = visionssm.create_model(name).eval()
    images = torch.randn(2, 3, 48, 32)
    for layer in cam_layers(model):
        cam = grad_cam(model, images, class_index=3, layer=layer)
        assert cam.shape[0] == 2
        assert cam.min() >= 0
        assert cam.max() <= 1
    assert grad_cam(model, images).max() == 1


def test_grad_cam_after_average_pooling_is_the_class_activation_map():
    """For features f, mean pooled and multiplied by W, Grad-CAM is relu(W f) up to scale (arXiv 1610.02391, 3.1)."""
    torch.manual_seed(0)
    model = visionssm.create_model("vmamba_nano").eval()
    model.norm = torch.nn.Identity()
    images = torch.randn(1, 3, 64, 64)
    expected = torch.einsum("c,bchw->bhw", model.head.weight[4], model.forward_features(images)).relu()
    assert torch.allclose(grad_cam(model, images, 4, "stages.3"), expected / expected.max(), atol=1e-5)


def test_errors_say_what_is_possible():
    model = visionssm.create_model("vmamba_nano").eval()
    images = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"layer: got 'stages.9', choose from stages.0"):
        grad_cam(model, images, layer="stages.9")
    with pytest.raises(ValueError, match="class_index: got 10, but the model has 10 classes"):
        grad_cam(model, images, 10)
    with pytest.raises(TypeError, match="need a model of this library"):
        cam_layers(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="need one image"):
        record_scans(model, torch.randn(2, 3, 32, 32))
    with pytest.raises(ValueError, match="mode: got 'CB', choose from affinity"):
        attention_matrices(nano_records("vmamba_nano")[0], "CB")
    with pytest.raises(ValueError, match="between 0 and 1"):
        nano_records("vmamba_nano")[0].pixel(1.5, 0)
    with pytest.raises(ValueError, match="none with a finite gradient"):
        effective_receptive_field(model, [torch.full((3, 32, 32), float("nan"))])
