"""VMamba's "m2" form: what of it the published numbers in test_vmamba do not show."""

import pytest
import torch
import torch.nn.functional as F
from parity_data import fixture

import visionssm
from visionssm.layers import SS2D, MultiheadScan
from visionssm.models import export_published, load_published
from visionssm.ops import paths
from visionssm.testing.parity import rule_state_dict


def nano(**options) -> torch.nn.Module:
    return visionssm.create_model(
        "vmamba_nano", multihead=True, state=8, activation="gelu", dt_init="uniform", **options
    )


@pytest.mark.parametrize("grid", [(5, 7), (1, 3)])
def test_block_follows_its_definition(grid):
    H, W = grid
    width, heads, N = 32, 2, 5
    options = {"expansion": 1.0, "state": N, "gate": False, "conv_bias": False, "activation": torch.nn.GELU}
    mixer = SS2D(width, paths.cross, multihead=True, dt_init="uniform", **options).double()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    scan = mixer.scan
    assert isinstance(scan, MultiheadScan) and scan.heads == heads
    x = torch.randn(2, H, W, width, dtype=torch.float64)

    inner = F.conv2d((x @ mixer.in_proj.weight.T).permute(0, 3, 1, 2), mixer.conv.weight, padding=1, groups=width)
    u = F.gelu(inner).flatten(2).transpose(1, 2)
    rows = [(i, j) for i in range(H) for j in range(W)]
    columns = [(i, j) for j in range(W) for i in range(H)]
    merged = torch.zeros_like(u)
    for k, cells in enumerate((rows, columns, rows[::-1], columns[::-1])):
        state = torch.zeros(2, heads, width // heads, N, dtype=torch.float64)
        for i, j in cells:
            p = i * W + j
            dt, B, C = (u[:, p] @ scan.x_proj_weight[k].T).split((heads, N, N), dim=-1)
            delta = F.softplus(dt + scan.dt_bias[k])
            values = u[:, p].view(2, heads, -1)
            decay = torch.exp(-delta * scan.A_log[k].exp())
            state = decay[..., None, None] * state + (delta[..., None] * values)[..., None] * B[:, None, None]
            y = (state * C[:, None, None]).sum(-1) + scan.D[k] * values
            merged[:, p] += y.flatten(1)
    expected = mixer.out_norm(merged).view(2, H, W, width) @ mixer.out_proj.weight.T
    torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-12)


def test_converts_back_to_published_names_and_shapes():
    content = fixture("vmamba", "vmamba_tiny_m2_224x224")
    model = visionssm.create_model("vmamba_tiny_m2")
    weights = rule_state_dict(content)
    load_published(model, weights, model.pretrained_cfg, "fixture")
    back = export_published(model)
    assert set(back) == set(weights)
    assert all(torch.equal(back[name], value) for name, value in weights.items())


def test_it_starts_as_released():
    scan = visionssm.create_model("vmamba_tiny_m2", depths=(1, 1, 1, 1)).stages[3].blocks[0].mixer.scan
    assert not scan.A_log.any() and torch.equal(scan.D, torch.ones_like(scan.D))
    assert scan.dt_bias.min() >= 0 and 0.05 < scan.dt_bias.max() <= 0.1


@pytest.mark.parametrize("options", [{}, {"scan_mode": "cascade"}, {"gate": "silu"}])
def test_it_does_what_every_model_does(options):
    image = torch.randn(2, 3, 33, 47)
    model = nano(**options)
    model(image).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert {
        n for n, _ in model.named_parameters() if n.rpartition(".")[2] in ("A_log", "D", "dt_bias")
    } <= model.no_weight_decay()
    model.eval()
    with torch.no_grad():
        expected = model(image)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                assert (model(image) - expected).abs().max() < 0.05 * expected.abs().max()
        exported = torch.export.export(model, (image,)).module()(image)
        torch.testing.assert_close(exported, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.double()(image.double()).float(), expected, rtol=1e-4, atol=1e-5)
