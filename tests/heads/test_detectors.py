"""Whole detectors: against torchvision's, on odd inputs, learning, saving, and as optimizers see them."""

import pytest
import timm
import torch
from dense_cases import SMALL, empty, scene, train
from timm.optim import create_optimizer_v2
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, box_iou

import visionssm
from visionssm.heads import (
    CascadeMaskRCNN,
    DenseBackbone,
    MaskRCNN,
    RetinaNet,
    cascade_mask_rcnn,
    mask_rcnn,
    retinanet,
)

NANO = [name for name in visionssm.list_models() if "nano" in name]


def small(kind=mask_rcnn, backbone="vmamba_nano", **options):
    torch.manual_seed(0)
    options = {"channels": 32, **options} if kind is retinanet else {"settings": SMALL, **options}
    return kind(backbone, 3, min_size=None, **options)


KINDS = pytest.mark.parametrize(
    ("kind", "backbone"),
    [
        (mask_rcnn, "vmamba_nano"),
        (cascade_mask_rcnn, "mambavision_nano"),
        (cascade_mask_rcnn, "vim_nano"),
        (retinanet, "efficient_vmamba_nano"),
        (retinanet, "vim_nano"),
    ],
    ids=["mask", "cascade_mambavision", "cascade_vim", "retinanet", "retinanet_plain"],
)


def torchvisions(ours: MaskRCNN) -> TorchvisionMaskRCNN:
    """torchvision's own Mask R-CNN with its defaults on our backbone, and the weights of our heads."""
    backbone = ours.backbone
    anchors = AnchorGenerator(tuple((8 * stride,) for stride in backbone.strides), ((0.5, 1.0, 2.0),) * 5)
    theirs = TorchvisionMaskRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        mask_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2),
        box_head=TwoMLPHead(32 * 49, 64),
        box_predictor=FastRCNNPredictor(64, 4),
        mask_head=torch.nn.Sequential(*(torch.nn.Conv2d(32, 32, 3, padding=1) for _ in range(4))),
        mask_predictor=MaskRCNNPredictor(32, 32, 4),
        min_size=64,
        max_size=96,
        _skip_resize=True,  # in training; otherwise it draws a size
    )
    theirs.roi_heads.mask_head = torch.nn.Sequential(
        *(part for conv in ours.roi_heads.mask_heads[0].convs for part in (conv.conv, torch.nn.ReLU()))
    )
    theirs.rpn.head = ours.rpn.head
    box, masks = ours.roi_heads.box_heads[0], ours.roi_heads.mask_heads[0]
    head, predictor = theirs.roi_heads.box_head, theirs.roi_heads.box_predictor
    with torch.no_grad():
        for fc, own in zip((head.fc6, head.fc7), box.fcs, strict=True):
            fc.load_state_dict(own.state_dict())
        for value, own in zip(predictor.cls_score.parameters(), box.cls_score.parameters(), strict=True):
            value.copy_(own.roll(1, 0))  # the background comes first there
        for value, own in zip(predictor.bbox_pred.parameters(), box.box_pred.parameters(), strict=True):
            value.zero_()[4:].copy_(own)
        theirs.roi_heads.mask_predictor.conv5_mask.load_state_dict(masks.upsample.state_dict())
        own_logits = masks.logits
        for value, own in zip(
            theirs.roi_heads.mask_predictor.mask_fcn_logits.parameters(), own_logits.parameters(), strict=True
        ):
            value.zero_()[1:].copy_(own)
    return theirs


def test_the_torchvision_preset_is_torchvisions_mask_rcnn():
    """The same losses from the same draws, and the same detections."""
    ours = small(preset="torchvision", settings={"channels": 32, "hidden": 64})
    theirs = torchvisions(ours)
    (image, target), (nothing, no_target) = scene(64, 96), empty(64, 96)
    losses = []
    for model in (ours, theirs):
        model.train()
        torch.manual_seed(1)
        losses.append(model([image, nothing], [target, no_target]))
    assert losses[0].keys() == losses[1].keys()
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name], rtol=1e-5, atol=1e-6, msg=name)
    with torch.inference_mode():
        found, expected = (model.eval()([image])[0] for model in (ours, theirs))
    assert len(found["boxes"]) == len(expected["boxes"]) > 10
    for name in ("boxes", "scores", "labels"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
    # Masks are pasted at the boxes' exact place here, and at whole pixels there.
    assert (found["masks"] - expected["masks"]).abs().mean() < 0.05


@KINDS
def test_images_without_objects_give_finite_losses_and_every_parameter_a_gradient(kind, backbone):
    model = small(kind, backbone).train()
    for batch in ([scene(), empty()], [empty(), empty(33, 47)]):
        images, targets = zip(*batch, strict=True)
        model.zero_grad()
        losses = model(list(images), list(targets))
        sum(losses.values()).backward()
        assert all(loss.isfinite() for loss in losses.values())
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@KINDS
def test_detections_of_images_of_any_size(kind, backbone):
    model = small(kind, backbone).eval()
    images = [torch.rand(3, 33, 70), torch.rand(3, 64, 31)]
    with torch.inference_mode():
        detections = model(images)
    for image, found in zip(images, detections, strict=True):
        boxes, n = found["boxes"], len(found["boxes"])
        H, W = image.shape[1:]
        assert n <= 100 and found["labels"].shape == found["scores"].shape == (n,)
        assert ((boxes >= 0) & (boxes <= torch.tensor([W, H, W, H]))).all()
        assert ((found["labels"] >= 1) & (found["labels"] <= 3)).all()
        assert (found["scores"] > 0.05).all()
        if kind is not retinanet:
            assert found["masks"].shape == (n, 1, H, W)


@pytest.mark.parametrize("backbone", NANO)
def test_every_family_gives_a_pyramid_without_dead_parameters(backbone):
    model = small(backbone=backbone).train()
    image, target = scene(48, 80)
    sum(model([image], [target]).values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    with torch.inference_mode():
        maps = list(model.backbone(torch.randn(1, 3, 64, 96)).values())
    assert [tuple(m.shape[2:]) for m in maps] == [(-(-64 // s), -(-96 // s)) for s in model.backbone.strides]
    assert model.backbone.strides == [model.backbone.strides[0] * 2**i for i in range(5)]


def learned(model, image, target, masks=True, least=0.7):
    with torch.inference_mode():
        found = model([image])[0]
    best = box_iou(target["boxes"], found["boxes"])
    for i, label in enumerate(target["labels"]):
        candidates = found["labels"] == label
        assert candidates.any() and best[i][candidates].max() > least, (label, best[i], found["labels"])
        if masks:
            chosen = torch.where(candidates)[0][best[i][candidates].argmax()]
            mask, true = found["masks"][chosen, 0] >= 0.5, target["masks"][i].bool()
            assert (mask & true).sum() / (mask | true).sum() > 0.7


@pytest.mark.parametrize(
    ("kind", "backbone", "steps"),
    [
        (mask_rcnn, "vmamba_nano", 75),
        (retinanet, "efficient_vmamba_nano", 60),
        pytest.param(cascade_mask_rcnn, "mambavision_nano", 80, marks=pytest.mark.slow),
        pytest.param(mask_rcnn, "groupmamba_nano", 60, marks=pytest.mark.slow),
    ],
)
def test_learns_one_image(kind, backbone, steps):
    image, target = scene(64, 96)
    model = small(kind, backbone)
    first, last = train(model, lambda: model([image], [target]), steps)
    assert last < first / 2
    learned(model, image, target, masks=kind is not retinanet)


@pytest.mark.slow
def test_vims_cascade_begins_to_learn_one_image():
    """Its losses of boxes grow first, with the number of proposals on objects."""
    image, target = scene(64, 96)
    model = small(cascade_mask_rcnn, "vim_nano")
    first, last = train(model, lambda: model([image], [target]), 61, lr=7e-4)
    assert last < 0.75 * first
    learned(model, image, target, masks=False, least=0.5)


def test_evaluation_resizes_and_gives_the_images_coordinates():
    """An image twice as large gives the same detections at twice the size, if both are resized to the same."""
    torch.manual_seed(0)
    model = mask_rcnn("vmamba_nano", 3, min_size=64, max_size=200, settings=SMALL).eval()
    image, _ = scene(64, 96)
    large = image.repeat_interleave(2, 1).repeat_interleave(2, 2)
    with torch.inference_mode():
        a, b = model([image])[0], model([large])[0]
    torch.testing.assert_close(2 * a["boxes"], b["boxes"], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(a["scores"], b["scores"])
    assert b["masks"].shape[2:] == (128, 192)


def test_training_images_are_never_resized():
    model = mask_rcnn("vmamba_nano", 3, settings=SMALL).train()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    model([scene(64, 96)[0], scene(50, 70)[0]], [scene(64, 96)[1], empty()[1] | {"masks": torch.zeros(0, 50, 70)}])
    assert seen == [(2, 3, 64, 96)]


def test_vims_square_padding():
    model = small(cascade_mask_rcnn, "vim_nano", size_divisible=96).eval()
    images, _ = model.transform([torch.rand(3, 40, 96)])
    assert images.tensors.shape == (1, 3, 96, 96)


def test_half_precision_keeps_boxes_in_float32():
    model = small().train()
    image, target = scene(64, 96)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([image], [target])
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
        with torch.no_grad():
            found = model.eval()([image])[0]
    assert found["boxes"].dtype == torch.float32
    assert (found["boxes"] != found["boxes"].bfloat16().float()).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"boxes": torch.tensor([[5.0, 5, 5, 9], [1, 1, 2, 2]])},
            r"targets\[1\]: box \[5.0, 5.0, 5.0, 9.0\] has no area",
        ),
        ({"boxes": torch.tensor([[5.0, 5, float("nan"), 9], [1, 1, 2, 2]])}, r"has no area"),
        ({"labels": torch.tensor([0, 1])}, r"labels from 0 to 1, need 1 to 3; 0 is the background"),
        ({"labels": torch.tensor([1, 4])}, r"labels from 1 to 4, need 1 to 3"),
        ({"labels": torch.tensor([1])}, r"boxes \(2, 4\) and labels \(1,\)"),
        ({"masks": torch.zeros(2, 10, 10)}, r"masks \(2, 10, 10\), need \(2, 64, 96\)"),
    ],
)
def test_wrong_targets_are_named(changes, message):
    model = small().train()
    image, target = scene(64, 96)
    with pytest.raises(ValueError, match=message):
        model([image, image], [target, target | changes])


def test_missing_targets_are_named():
    with pytest.raises(ValueError, match="targets: got none, need one for each of 1 images"):
        small().train()([scene()[0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "detectron"}, "preset: got 'detectron', choose from mmdetection, torchvision"),
        ({"settings": {"boxbeta": 1.0}}, "settings: got 'boxbeta', choose from channels"),
        ({"settings": {"box_head": "3fc"}}, "box_head: got '3fc', choose from 2fc, 4conv1fc"),
        ({"settings": {"mask_heads": 2}}, "mask_heads: got 2"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mask_rcnn("vmamba_nano", 3, **options)


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        (MaskRCNN, {"backbone": "vmamba_nano", "settings": SMALL, "backbone_options": {"drop_path_rate": 0.1}}),
        (CascadeMaskRCNN, {"backbone": "vim_nano", "preset": "vim", "settings": SMALL}),
        (RetinaNet, {"backbone": "efficient_vmamba_nano", "channels": 32}),
    ],
)
def test_saved_for_the_hub_and_back(model, arguments, tmp_path):
    torch.manual_seed(0)
    saved = model(num_classes=3, min_size=None, **arguments).eval()
    saved.save_pretrained(tmp_path)
    loaded = model.from_pretrained(tmp_path).eval()
    image, _ = scene()
    with torch.inference_mode():
        for a, b in zip(saved([image])[0].values(), loaded([image])[0].values(), strict=True):
            assert torch.equal(a, b)
    assert getattr(loaded, "settings", None) == getattr(saved, "settings", None)


@pytest.mark.parametrize("backbone", NANO)
def test_layer_decay_reaches_every_block_of_the_backbone(backbone):
    model = small(backbone=backbone)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    names = {id(p): n for n, p in model.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert set(scales) == set(names.values())
    around = {scale for name, scale in scales.items() if not name.startswith("backbone.body.")}
    assert around == {1.0}
    own = timm.create_model(backbone)
    expected = create_optimizer_v2(own, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    own_names = {id(p): n for n, p in own.named_parameters()}
    own_scales = {own_names[id(p)]: g["lr_scale"] for g in expected.param_groups for p in g["params"]}
    blocks = [n for n in own_scales if "blocks." in n]
    assert len({own_scales[n] for n in blocks}) > 2
    # As for the classifier, but for the layers of its head, which is another one.
    assert len({own_scales[n] / scales[f"backbone.body.model.{n}"] for n in blocks}) == 1
    kept_out = model.no_weight_decay()
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert kept_out and not kept_out & decayed


def test_grad_checkpointing_changes_no_gradient():
    gradients = []
    for enable in (False, True):
        model = small().train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(3)
        sum(model([scene()[0]], [scene()[1]]).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_backbones_weights_come_from_a_classifiers_file(tmp_path):
    torch.manual_seed(5)
    source = visionssm.create_model("vmamba_nano")
    torch.save({"model": visionssm.models.export_published(source)}, tmp_path / "classifier.pth")
    model = small(checkpoint=tmp_path / "classifier.pth")
    own = model.backbone.body.model.state_dict()
    taken = [name for name in own if name in source.state_dict()]
    assert len(taken) > 20 and all(torch.equal(own[name], source.state_dict()[name]) for name in taken)


def test_baselines_of_timm_work_too():
    model = mask_rcnn("resnet10t", 3, min_size=None, settings=SMALL, out_indices=(1, 2, 3, 4)).train()
    assert sum(model([scene()[0]], [scene()[1]]).values()).isfinite()
    assert len({*model.group_matcher()}) >= 2


def test_mambavisions_fast_windows_are_the_map():
    slow, fast = (DenseBackbone("mambavision_nano", "detection", o) for o in ({"window_size": (112, 56)}, {}))
    assert [stage.window for stage in slow.body.model.stages[2:]] == [(112, 112), (56, 56)]
    assert [stage.window for stage in fast.body.model.stages[2:]] == [None, None]
