"""Published detectors and segmenters: their documented names and shapes, written out here, load strictly."""

import pytest
import torch
from torch import nn

from visionssm.heads import cascade_mask_rcnn, load_published, mask_rcnn, retinanet, upernet
from visionssm.heads.published import published_names

NORM = {"weight": (), "bias": (), "running_mean": (), "running_var": ()}


def conv(name, out, into, kernel, bias=True):
    return {f"{name}.weight": (out, into, kernel, kernel)} | ({f"{name}.bias": (out,)} if bias else {})


def linear(name, out, into):
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name, channels):
    return {f"{name}.{part}": (channels,) for part in NORM}


def pyramid(channels):
    names = {}
    for i, c in enumerate(channels):
        names |= conv(f"neck.lateral_convs.{i}.conv", 256, c, 1) | conv(f"neck.fpn_convs.{i}.conv", 256, 256, 3)
    return (
        names
        | conv("rpn_head.rpn_conv", 256, 256, 3)
        | conv("rpn_head.rpn_cls", 3, 256, 1)
        | conv("rpn_head.rpn_reg", 12, 256, 1)
    )


def mask_head(name, classes=80):
    names = {}
    for i in range(4):
        names |= conv(f"{name}.convs.{i}.conv", 256, 256, 3)
    return names | conv(f"{name}.upsample", 256, 256, 2) | conv(f"{name}.conv_logits", classes, 256, 1)


def mambavision_heads(classes=80):
    """Three stages of four convolutions with norm and one linear layer, boxes per class, and a mask head each."""
    names = {}
    for stage in range(3):
        box = f"roi_head.bbox_head.{stage}"
        for i in range(4):
            names |= conv(f"{box}.shared_convs.{i}.conv", 256, 256, 3, bias=False) | norm(
                f"{box}.shared_convs.{i}.bn", 256
            )
        names |= linear(f"{box}.shared_fcs.0", 1024, 256 * 49)
        names |= linear(f"{box}.fc_cls", classes + 1, 1024) | linear(f"{box}.fc_reg", 4 * classes, 1024)
        names |= mask_head(f"roi_head.mask_head.{stage}")
    return names


def mask_rcnn_heads(classes=80):
    return (
        linear("roi_head.bbox_head.shared_fcs.0", 1024, 256 * 49)
        | linear("roi_head.bbox_head.shared_fcs.1", 1024, 1024)
        | linear("roi_head.bbox_head.fc_cls", classes + 1, 1024)
        | linear("roi_head.bbox_head.fc_reg", 4 * classes, 1024)
        | mask_head("roi_head.mask_head")
    )


def segmenter_heads(channels, classes=150):
    def module(name, out, into, kernel):
        return conv(f"{name}.conv", out, into, kernel, bias=False) | norm(f"{name}.bn", out)

    names = {}
    for i in range(4):
        names |= module(f"decode_head.psp_modules.{i}.1", 512, channels[-1], 1)
    for i in range(3):
        names |= module(f"decode_head.lateral_convs.{i}", 512, channels[i], 1)
        names |= module(f"decode_head.fpn_convs.{i}", 512, 512, 3)
    names |= module("decode_head.bottleneck", 512, channels[-1] + 4 * 512, 3)
    names |= module("decode_head.fpn_bottleneck", 512, 4 * 512, 3) | conv("decode_head.conv_seg", classes, 512, 1)
    return (
        names | module("auxiliary_head.convs.0", 256, channels[2], 3) | conv("auxiliary_head.conv_seg", classes, 256, 1)
    )


MODELS = {
    "cascade": (cascade_mask_rcnn, "mambavision_nano", 80, lambda c: pyramid(c) | mambavision_heads()),
    "mask": (mask_rcnn, "vmamba_nano", 80, lambda c: pyramid(c) | mask_rcnn_heads()),
    "upernet": (upernet, "mambavision_nano", 150, segmenter_heads),
}


def published(key):
    kind, backbone, classes, heads = MODELS[key]
    torch.manual_seed(0)
    model = kind(backbone, classes)
    body = model.backbone.body
    names = heads(body.feature_info.channels())
    for name, value in body.model.key_table.to_published(body.model.state_dict()).items():
        names[f"backbone.{name}"] = tuple(value.shape)
    generator = torch.Generator().manual_seed(1)
    return model, {name: torch.randn(shape, generator=generator) for name, shape in names.items()}


@pytest.mark.parametrize("key", MODELS)
def test_published_names_and_shapes_are_ours(key, tmp_path):
    """Every tensor arrives, unchanged, under its own name in our model."""
    model, state = published(key)
    counters = {n.replace(".weight", ".num_batches_tracked"): torch.tensor(7) for n in state if n.endswith("bn.weight")}
    file = {"meta": {"epoch": 36}, "state_dict": state | counters}
    torch.save(file, tmp_path / "published.pth")
    load_published(model, tmp_path / "published.pth")
    back = published_names(model).to_published(model.state_dict())
    back = {name: value for name, value in back.items() if "num_batches_tracked" not in name}
    assert {n for n in back if not n.startswith("backbone.")} == {n for n in state if not n.startswith("backbone.")}
    assert back.keys() >= {n for n in state if "num_batches_tracked" not in n}
    for name, value in back.items():
        assert torch.equal(value, state[name]), name


def test_backbone_norms_of_detectors_have_their_published_names():
    model, state = published("cascade")
    names = {n for n in state if n.startswith("backbone.")}
    assert {f"backbone.outnorm{i}.weight" for i in range(4)} <= names
    assert "backbone.patch_embed.conv_down.0.weight" in names and "backbone.levels.3.blocks.0.norm1.weight" in names
    assert not any(n.startswith(("backbone.norm.", "backbone.head.")) for n in names)
    assert isinstance(model, nn.Module)


def test_what_is_missing_left_over_or_of_another_shape_is_named(tmp_path):
    model, state = published("mask")
    state["roi_head.bbox_head.fc_cls.weight"] = torch.zeros(21, 1024)
    state["roi_head.extra"] = torch.zeros(1)
    del state["rpn_head.rpn_cls.bias"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError) as error:
        load_published(model, tmp_path / "other.pth")
    for part in (
        "rpn.head.cls_logits.bias (published as rpn_head.rpn_cls.bias)",
        "roi_head.extra",
        "(21, 1024) instead of (81, 1024)",
    ):
        assert part in str(error.value)


def test_models_without_published_names_are_refused(tmp_path):
    with pytest.raises(TypeError, match="RetinaNet"):
        load_published(retinanet("vmamba_nano", 3, channels=8), tmp_path / "none.pth")


def test_classes_are_where_the_published_heads_have_them():
    """The background is the last score; boxes and masks have no background."""
    model, _ = published("mask")
    box = model.roi_heads.box_heads[0]
    assert box.cls_score.out_features == 81 and box.box_pred.out_features == 320
    scores = model.roi_heads._mean_scores([torch.tensor([[0.0] * 80 + [50.0]])])
    assert scores.shape == (1, 80) and scores.max() < 1e-9
