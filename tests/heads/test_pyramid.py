"""The pyramids for plain backbones against the published code's numbers."""

import numpy as np
import pytest
import torch
from parity_data import assert_maps, fixture

from visionssm.heads import RescalingPyramid, SimpleFeaturePyramid
from visionssm.models._checkpoint import load_weights
from visionssm.testing.parity import rule_state_dict

TOLERANCE = 2e-5


def test_simple_feature_pyramid_matches_the_published_one():
    content = fixture("vim", "simple_fpn_192")
    pyramid = SimpleFeaturePyramid(192).eval()
    state = pyramid.key_table.from_published(rule_state_dict(content), pyramid.state_dict())
    load_weights(pyramid, state, source="fixture")
    feature = np.random.RandomState(3).standard_normal((1, 192, 16, 16)).astype(np.float32)
    with torch.inference_mode():
        assert_maps(pyramid(torch.from_numpy(feature)), content["stages"], TOLERANCE)


def test_simple_feature_pyramid_has_the_published_names_and_shapes():
    pyramid = SimpleFeaturePyramid(192)
    published = pyramid.key_table.to_published(pyramid.state_dict())
    expected = fixture("vim", "simple_fpn_192")["state_dict"]
    assert {name: list(value.shape) for name, value in published.items()} == {n: s for n, (s, _) in expected.items()}


@pytest.mark.parametrize("size", [(16, 16), (5, 7), (1, 3)])
def test_simple_feature_pyramid_at_any_size(size):
    H, W = size
    maps = SimpleFeaturePyramid(16, 8)(torch.randn(2, 16, max(H, 2), max(W, 2)))
    H, W = max(H, 2), max(W, 2)
    expected = [(4 * H, 4 * W), (2 * H, 2 * W), (H, W), (H // 2, W // 2), ((H // 2 + 1) // 2, (W // 2 + 1) // 2)]
    assert [tuple(level.shape) for level in maps] == [(2, 8, *size) for size in expected]


@pytest.mark.parametrize(("stride", "factors"), [(16, (4, 2, 1, 0.5)), (8, (2, 1, 0.5, 0.25))])
def test_rescaling_pyramid_reaches_strides_4_to_32(stride, factors):
    features = [torch.randn(2, 6, 8, 12) for _ in range(4)]
    maps = RescalingPyramid(6, stride)(features)
    assert [tuple(level.shape) for level in maps] == [(2, 6, int(8 * f), int(12 * f)) for f in factors]
    unchanged = factors.index(1)
    assert torch.equal(maps[unchanged], features[unchanged])


def test_rescaling_pyramid_has_the_published_names():
    def names(stride):
        pyramid = RescalingPyramid(6, stride)
        return set(pyramid.key_table.to_published(dict(pyramid.named_parameters())))

    assert names(8) == {"fpn1.0.weight", "fpn1.0.bias"}
    up1, norm, up2, up = (
        {f"fpn{place}.{part}" for part in ("weight", "bias")} for place in ("1.0", "1.1", "1.3", "2.0")
    )
    assert names(16) == up1 | norm | up2 | up


def test_rescaling_pyramid_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"stride: got 4, need 8 or 16"):
        RescalingPyramid(6, stride=4)
    with pytest.raises(ValueError, match=r"features: got 3, need 4"):
        RescalingPyramid(6)([torch.zeros(1, 6, 4, 4)] * 3)
