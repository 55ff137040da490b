"""Plain LayerNorms are replaced by ours, and nothing else is."""

import pytest
import torch
from torch import nn

from visionssm.layers.norm import LayerNorm, LayerNorm2d, norm_gelu, update_norm, use_fast_norm


class OwnNorm(nn.LayerNorm):
    pass


@torch.no_grad()
def test_only_plain_norms_over_one_axis_are_replaced():
    model = nn.Sequential(nn.LayerNorm(8), OwnNorm(8), nn.LayerNorm((3, 8)), LayerNorm2d(8))
    nn.init.normal_(model[0].weight)
    x = torch.randn(2, 3, 8)
    names, expected = list(model.state_dict()), model[0](x)
    assert [type(layer) for layer in use_fast_norm(model)] == [LayerNorm, OwnNorm, nn.LayerNorm, LayerNorm2d]
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model[0](x), expected)


@torch.no_grad()
def test_channels_of_a_map():
    norm, x = LayerNorm2d(8), torch.randn(2, 8, 3, 5)
    expected = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(norm(x), expected)


@torch.no_grad()
def test_gelu_after_a_norm_leaves_alone_what_others_see():
    x, norm, seen = torch.randn(3, 8), LayerNorm(8), []
    expected = nn.functional.gelu(norm(x))
    torch.testing.assert_close(norm_gelu(norm, x), expected)
    torch.testing.assert_close(norm_gelu(nn.Identity(), x.clone()), nn.functional.gelu(x))
    kept = x.clone()
    norm_gelu(nn.Identity(), x)
    assert torch.equal(x, kept)
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    norm_gelu(norm, x)
    torch.testing.assert_close(seen[0], nn.functional.layer_norm(x, (8,)))


@torch.no_grad()
def test_hooks_and_other_norms_take_part_where_the_sum_is_normalised():
    x, update, norm, seen = torch.randn(3, 8), torch.randn(3, 8), LayerNorm(8), []
    expected = norm(x + update), x + update
    for layer in (norm, nn.LayerNorm(8), nn.Sequential(norm)):
        torch.testing.assert_close(update_norm(layer, x, update), expected)
    assert torch.equal(update_norm(nn.Identity(), x, update)[0], x + update)
    norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    torch.testing.assert_close(update_norm(norm, x, update), expected)
    assert len(seen) == 1 and torch.equal(seen[0], x + update)


@pytest.mark.parametrize("affine", [True, False])
@torch.no_grad()
def test_maps_of_another_width_are_refused(affine):
    with pytest.raises(RuntimeError, match="normalized_shape"):
        LayerNorm(4, elementwise_affine=affine)(torch.randn(2, 8))


@torch.no_grad()
def test_more_than_one_axis():
    norm, x = LayerNorm((3, 8)), torch.randn(2, 3, 8)
    assert torch.equal(norm(x), nn.functional.layer_norm(x, (3, 8), norm.weight, norm.bias))
