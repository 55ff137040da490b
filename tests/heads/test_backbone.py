"""Backbones in their dense forms against the published code's numbers, and the forms themselves."""

import pytest
import torch
from parity_data import assert_maps, fixture
from torch import nn

from visionssm.heads.backbone import DenseBackbone, dense_options, detection_backbone, segmentation_backbone
from visionssm.models._checkpoint import load_weights
from visionssm.testing.parity import rule_image, rule_state_dict

LEGACY = {"rotary": "hidden_and_residual", "halve": False}


def load(backbone, state, source):
    """Published names into the body and the neck, strictly."""
    body = backbone.body.model
    necks = {key: state.pop(key) for key in list(state) if key.startswith("fpn")}
    own = body.state_dict()
    state = {name: value for name, value in body.key_table.from_published(state, own).items() if "rope" not in name}
    load_weights(
        body,
        {name: value for name, value in state.items() if not name.startswith("norm")},
        source=source,
        fresh=["norm.weight"],
    )
    if necks:
        neck = backbone.neck
        load_weights(neck, neck.key_table.from_published(necks, neck.state_dict()), source=source)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vim_tiny_seg_residual_256x256", {**LEGACY, "feature": "rotated_stream"}),
        pytest.param("vim_tiny_seg_512x512", {}, marks=pytest.mark.slow),
    ],
)
def test_vims_segmentation_backbone_is_the_published_one(name, options):
    """The tiny configuration is what the name alone gives."""
    content = fixture("vim", name)
    backbone = segmentation_backbone("vim_tiny", {"img_size": content["input"]["height"], **options}).eval()
    load(backbone, rule_state_dict(content), name)
    with torch.inference_mode():
        image = rule_image(**content["input"])
        maps = [*backbone.features(image), *backbone(image)]
    assert_maps(maps, content["stages"], 2e-5)


@pytest.mark.slow
def test_vims_detection_backbone_is_the_published_one():
    content = fixture("vim", "vim_tiny_det_512x512")
    backbone = detection_backbone("vim_tiny", {"img_size": 512, **LEGACY}).eval()
    load(backbone, rule_state_dict(content), "det")
    with torch.inference_mode():
        image = rule_image(**content["input"])
        assert_maps(backbone.features(image), content["stages"], 2e-5)
        assert [tuple(m.shape[2:]) for m in backbone(image).values()] == [(s, s) for s in (128, 64, 32, 16, 8)]


@pytest.mark.slow
def test_mambavisions_segmentation_backbone_is_the_published_one():
    """Its large padded windows are what the name alone gives."""
    content = fixture("mambavision", "mamba_vision_T_dense_w64_32_256x320")
    backbone = DenseBackbone("mambavision_tiny", "segmentation", {}).eval()
    load(backbone, rule_state_dict(content), "dense")
    with torch.inference_mode():
        assert_maps(backbone(rule_image(**content["input"])), content["stages"], 1e-5)


@pytest.mark.parametrize(
    ("name", "task", "expected"),
    [
        ("vmamba_tiny", "detection", {"out_norms": True}),
        ("efficient_vmamba_base", "segmentation", {"out_norms": True}),
        ("local_vmamba_small", "detection", {"out_norms": True}),
        ("groupmamba_tiny", "detection", {"last_norm": "final"}),
        ("simba_small", "segmentation", {}),
        ("mambavision_base", "detection", {"out_norms": True, "window_size": (112, 56)}),
        ("mambavision_base", "segmentation", {"out_norms": True, "window_size": (64, 32)}),
        ("mambavision_small", "segmentation", {"out_norms": True, "window_size": (160, 56)}),
        ("mambavision_nano", "detection", {"out_norms": True, "window_size": "map"}),
        ("vim_tiny", "segmentation", {"class_token": "none", "feature": "mixer"}),
        ("vim_small", "segmentation", {"class_token": "none", "feature": "rotated_stream"}),
        ("vim_small", "detection", {"class_token": "none", "feature": "stream"}),
        ("local_vim_small", "detection", {"class_token": "none", "feature": "mixer"}),
        ("resnet50", "detection", {}),
    ],
)
def test_published_forms(name, task, expected):
    assert dense_options(name, task) == expected


def test_own_options_go_before_the_published_ones():
    backbone = DenseBackbone("vmamba_nano", "detection", {"out_norms": False, "out_indices": (1, 3)})
    assert backbone.body.model.out_norms is None
    assert (backbone.channels, backbone.strides) == ([32, 128], [8, 32])


def test_retinanets_levels_start_at_an_eighth():
    for name in ("efficient_vmamba_nano", "vim_nano"):
        backbone = detection_backbone(name, {}, 8, first=1)
        maps = list(backbone(torch.randn(1, 3, 64, 96)).values())
        sizes = [(-(-64 // s), -(-96 // s)) for s in backbone.strides]
        assert [tuple(m.shape[2:]) for m in maps] == sizes and len(maps) == 5
    norms = detection_backbone("efficient_vmamba_nano", {}, 8, first=1).body.model.out_norms
    assert [isinstance(norm, nn.LayerNorm) for norm in norms] == [False, True, True, True]


def test_a_pyramid_of_too_fine_features_is_refused():
    with pytest.raises(ValueError, match="too fine for a pyramid"):
        detection_backbone("vim_nano", {"patch_size": 2, "stride": 2})
