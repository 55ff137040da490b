"""Each difference between torchvision's defaults and the published detectors, one by one, against plain computations."""

import math

import pytest
import torch
import torch.nn.functional as F
from dense_cases import SMALL, scene
from torch import nn
from torchvision.models.detection._utils import BoxCoder as TorchvisionBoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, box_iou

from visionssm.heads import CASCADE_MASK_RCNN, MASK_RCNN, cascade_mask_rcnn, mask_rcnn, retinanet
from visionssm.heads.images import fitted_size, paste_masks
from visionssm.heads.pooling import RoIPool, mask_targets
from visionssm.heads.proposals import Anchors, BoxCoder, LowQualityMatcher
from visionssm.heads.roi_heads import Samples
from visionssm.heads.settings import DetectorSettings, StageSettings


def build(kind=mask_rcnn, backbone="vmamba_nano", **settings):
    torch.manual_seed(0)
    return kind(backbone, 3, min_size=None, settings=SMALL | settings)


def test_presets_are_the_published_numbers():
    ours, theirs = MASK_RCNN["mmdetection"], MASK_RCNN["torchvision"]
    assert (ours.proposals_train, ours.proposals_test, theirs.proposals_train) == (
        (2000, 1000),
        (1000, 1000),
        (2000, 2000),
    )
    assert (ours.aligned, ours.sampling_ratio, theirs.aligned, theirs.sampling_ratio) == (True, 0, False, 2)
    assert (ours.box_beta, theirs.box_beta, ours.rpn_beta) == (0.0, 1 / 9, 0.0)
    mamba, vim, plain = (CASCADE_MASK_RCNN[name] for name in ("mambavision", "vim", "mmdetection"))
    for cascade in (mamba, vim, plain):
        assert [stage.iou for stage in cascade.stages] == [0.5, 0.6, 0.7]
    for cascade in (mamba, plain):
        assert cascade.rpn_inside_only and cascade.proposals_train == (2000, 2000)
    assert not (vim.rpn_inside_only or ours.rpn_inside_only) and vim.proposals_train == (2000, 1000)
    assert [stage.loss_weight for stage in mamba.stages] == [1.0, 0.5, 0.25]
    deviations = [[1 / w for w in stage.box_weights] for stage in mamba.stages]
    expected = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    assert all(a == pytest.approx(b) for a, b in zip(deviations, expected, strict=True))
    assert (mamba.box_head, mamba.box_norm, mamba.class_agnostic) == ("4conv1fc", "batch", False)
    assert (mamba.box_loss, mamba.box_loss_weight, mamba.mask_heads, mamba.rpn_beta) == ("giou", 10.0, 3, 1 / 9)
    assert [stage.box_weights for stage in vim.stages] == [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
    assert [stage.loss_weight for stage in vim.stages] == [1.0, 1.0, 1.0]
    assert (vim.box_head, vim.box_norm, vim.mask_norm, vim.class_agnostic) == ("4conv1fc", "layer", "layer", True)
    assert (vim.rpn_convs, vim.mask_heads, vim.resample, vim.average) == (2, 1, False, "probabilities")
    assert (plain.box_head, plain.class_agnostic, plain.box_beta) == ("2fc", True, 1.0)


# Anchors.


def test_anchors_are_not_rounded_and_keep_the_stride():
    """At 800 pixels the coarsest map has 13 rows, and torchvision spaces its anchors by 800 // 13 = 61."""
    strides = (4, 8, 16, 32, 64)
    images = ImageList(torch.empty(1, 3, 800, 1344, device="meta"), [(800, 1333)])
    maps = [torch.empty(1, 1, -(-800 // s), -(-1344 // s)) for s in strides]
    exact = Anchors(strides, (8.0,))(images, maps)[0]
    theirs = AnchorGenerator(tuple((8 * s,) for s in strides), ((0.5, 1.0, 2.0),) * 5)(images, maps)[0]
    assert exact.shape == theirs.shape
    expected = [
        [x * s - w / 2, y * s - h / 2, x * s + w / 2, y * s + h / 2]
        for s, entry in zip(strides, maps, strict=True)
        for y in range(entry.shape[2])
        for x in range(entry.shape[3])
        for ratio in (0.5, 1.0, 2.0)
        for w, h in [(8 * s / math.sqrt(ratio), 8 * s * math.sqrt(ratio))]
    ]
    torch.testing.assert_close(exact, torch.tensor(expected), rtol=1e-5, atol=1e-3)
    rows = [(a[-3 * 13 * 21 :, 1::2].sum(1) / 2).round().unique() for a in (exact, theirs)]
    assert rows[0].diff().tolist() == [64.0] * 12
    assert rows[1].diff().tolist() == [61.0] * 12
    assert torch.equal(Anchors(strides, (8.0,), rounded=True)(images, maps)[0], theirs)
    assert Anchors(strides, (8.0,))(images, [m.bfloat16() for m in maps])[0].dtype == torch.float32


def test_retinanets_anchors_have_three_scales_per_octave():
    cell = retinanet("vmamba_nano", 3, channels=8).anchor_generator.cell_anchors[0]
    sides = (cell[:, 2:] - cell[:, :2]).prod(1).sqrt()
    torch.testing.assert_close(sides, torch.tensor([32.0, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)] * 3))


# Assignment.


def assigned_by_loops(overlaps, high, low, least):
    objects, boxes = overlaps.shape
    result = []
    for box in range(boxes):
        best = max(range(objects), key=lambda i: overlaps[i, box])
        value = overlaps[best, box]
        result.append(best if value >= high else -1 if value < low else -2)
    for i in range(objects):
        top = overlaps[i].max()
        if top >= least and top > 0:
            result = [i if overlaps[i, box] == top else found for box, found in enumerate(result)]
    return result


@pytest.mark.parametrize(("high", "low", "least"), [(0.7, 0.3, 0.3), (0.7, 0.3, 0.0), (0.5, 0.5, 0.5), (0.5, 0.4, 0.0)])
def test_objects_take_the_boxes_that_overlap_them_most(high, low, least):
    generator = torch.Generator().manual_seed(0)
    changed = 0
    for _ in range(50):
        overlaps = (torch.rand(4, 9, generator=generator) * 10).round() / 10
        overlaps[3] *= 0.3
        found = LowQualityMatcher(high, low, least)(overlaps).tolist()
        assert found == assigned_by_loops(overlaps, high, low, least)
        changed += found != assigned_by_loops(overlaps, high, low, least=2.0)
    assert changed > 5


@pytest.mark.parametrize(("least", "taken"), [(0.3, False), (0.0, True), (None, True)])
def test_an_object_that_no_anchor_overlaps_well_is_left_out_as_published(least, taken):
    """mmdetection leaves objects without an anchor of IoU 0.3 to nobody; detectron2 and torchvision give them one."""
    model = build(rpn_low_quality_iou=least)
    anchors = torch.tensor([[0.0, 0, 32, 32], [32, 32, 64, 64]])
    tiny = {"boxes": torch.tensor([[10.0, 10, 14, 14]])}
    labels, _ = model.rpn.assign_targets_to_anchors([anchors], [tiny])
    assert bool(labels[0].any()) is taken


@pytest.mark.parametrize("inside_only", [True, False])
def test_anchors_beyond_the_image_are_left_out_of_the_losses(inside_only):
    """The image is 40 x 50; the rest of the batch is filling."""
    model = build(rpn_inside_only=inside_only)
    anchors = torch.tensor([[0.0, 0, 30, 30], [0, 0, 49, 39], [0, 0, 50, 39], [-1, 0, 30, 30], [20, 20, 40, 60]])
    target = {"boxes": torch.tensor([[0.0, 0, 30, 30]]), "size": torch.tensor([40, 50])}
    labels, boxes = model.rpn.assign_targets_to_anchors([anchors], [target])
    assert labels[0].tolist() == ([1, -1, -1, -1, -1] if inside_only else [1, -1, -1, 1, 0])
    torch.testing.assert_close(boxes[0][0], target["boxes"][0])
    far = target | {"boxes": torch.tensor([[45.0, 35, 49, 39]])}
    labels, _ = model.rpn.assign_targets_to_anchors([anchors[1:]], [far])
    assert labels[0].tolist() == ([0, -1, -1, -1] if inside_only else [0, 0, 0, 0])
    labels, _ = model.rpn.assign_targets_to_anchors([anchors[2:4]], [far])
    assert labels[0].tolist() == ([-1, -1] if inside_only else [0, 0])


# Proposals.


@pytest.mark.parametrize("training", [True, False])
def test_numbers_of_proposals(training):
    model = build(proposals_train=[40, 30], proposals_test=[20, 12])
    model.train(training)
    image, target = scene(64, 96)
    images, targets = model.transform([image], [target])
    with torch.no_grad():
        proposals, _ = model.rpn(images, model.backbone(images.tensors), targets)
    assert len(proposals[0]) == (30 if training else 12)
    assert model.rpn.pre_nms_top_n() == (40 if training else 20)


@pytest.mark.parametrize(("preset", "beta"), [("mmdetection", 0.0), ("torchvision", 1 / 9)])
def test_loss_of_the_proposals_boxes(preset, beta):
    model = mask_rcnn("vmamba_nano", 3, preset=preset, settings=SMALL | {"rpn_samples": 6})
    labels = [torch.tensor([1.0, 1, 0, 0, 0, -1, -1])]
    deltas, goal = 0.1 * torch.randn(7, 4), torch.zeros(7, 4)
    logits = torch.randn(7, 1)
    objectness, box = model.rpn.compute_loss(logits, deltas, labels, [goal])
    d = deltas[:2].abs()
    expected = d.sum() if beta == 0 else torch.where(d < beta, d**2 / 2 / beta, d - beta / 2).sum()
    torch.testing.assert_close(box, expected / 5)  # all that were sampled
    expected = -(torch.sigmoid(logits[:2, 0]).log().sum() + torch.sigmoid(-logits[2:5, 0]).log().sum()) / 5
    torch.testing.assert_close(objectness, expected)


def test_boxes_shrink_no_more_than_they_may_grow():
    codes, box = torch.tensor([[0.0, 0, -100, -100], [0.0, 0, 100, 100]]), torch.tensor([[0.0, 0, 125, 125]] * 2)
    low = TorchvisionBoxCoder((1,) * 4).decode_single(codes, box)
    found = BoxCoder((1,) * 4).decode_single(codes, box)
    assert (found[0, 2] - found[0, 0]).item() == pytest.approx(2.0, abs=1e-4)
    assert (low[0, 2] - low[0, 0]).item() == 0
    torch.testing.assert_close(found[1], low[1])


# RoIAlign.


def ramp(H, W):
    """A map whose value is its cell's place: (1, 2, H, W) of columns and rows."""
    return torch.stack(torch.meshgrid(torch.arange(W), torch.arange(H), indexing="xy")).float()[None]


def test_aligned_pooling_reads_a_ramp_where_it_is():
    """A cell's value belongs to its centre, half a pixel from its corner; torchvision's default reads half a cell off."""
    box = torch.tensor([[8.0, 12.0, 36.0, 40.0]])
    aligned, shifted = (RoIPool(7, (4,), 0, a)([ramp(16, 16)], [box])[0, 0, 0] for a in (True, False))
    centres = torch.tensor([(8 + 28 * (i + 0.5) / 7) / 4 - 0.5 for i in range(7)])
    torch.testing.assert_close(aligned, centres)
    torch.testing.assert_close(shifted, centres + 0.5)


def test_sampling_adapts_to_the_box():
    """With ratio 0 a box of whole cells is averaged over all of them; with ratio 2, over four points."""
    torch.manual_seed(0)
    entry = torch.randn(1, 1, 56, 56)
    box = torch.tensor([[0.0, 0.0, 56.0, 56.0]])
    adaptive, four = (RoIPool(7, (1,), ratio)([entry], [box])[0, 0] for ratio in (0, 2))
    average = F.avg_pool2d(entry, 8)[0, 0]
    torch.testing.assert_close(adaptive, average, rtol=1e-4, atol=1e-5)
    assert (four - average).abs().max() > 0.1


def test_pooling_equals_torchvisions_with_its_options():
    torch.manual_seed(0)
    strides = (4, 8, 16, 32)
    maps = [torch.randn(2, 3, 256 // s, 192 // s) for s in strides]
    corners = torch.rand(2, 40, 2) * 20
    boxes = [torch.cat([c, c + 1 + 250 * torch.rand(40, 1) ** 2 + torch.rand(40, 2)], dim=1) for c in corners]
    ours = RoIPool(7, strides, 2, aligned=False)(maps, boxes)
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    theirs = pool({str(i): m for i, m in enumerate(maps)}, boxes, [(256, 192)] * 2)
    assert len(RoIPool(7, strides).levels(torch.cat(boxes)).unique()) >= 3
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("side", "level"), [(55, 0), (56, 0), (111.9, 0), (112.1, 1), (223, 1), (225, 2), (449, 3), (4000, 3), (0, 0)]
)
def test_levels_of_boxes(side, level):
    assert RoIPool(7, (4, 8, 16, 32)).levels(torch.tensor([[10.0, 10.0, 10.0 + side, 10.0 + side]])) == level


# Sampling.


def crowd(n=900):
    torch.manual_seed(0)
    true = torch.tensor([[10.0, 10, 40, 40], [50, 20, 90, 60]])
    near = true[torch.arange(n) % 2] + 4 * torch.randn(n, 4)
    far = torch.rand(n, 4) * 20 + torch.tensor([100.0, 100, 130, 130])
    return torch.cat([near, far]), {"boxes": true, "labels": torch.tensor([2, 3])}


def test_a_quarter_of_the_samples_lies_on_objects_and_true_boxes_are_among_the_proposals():
    heads = build(roi_samples=512).roi_heads
    proposals, target = crowd()
    samples = heads.sample(0, proposals, target)
    assert len(samples.boxes) == 512
    assert (samples.objects >= 0).sum() == 128
    assert torch.equal(
        samples.labels[samples.objects >= 0], torch.tensor([1, 2])[samples.objects[samples.objects >= 0]]
    )
    assert (samples.labels[samples.objects < 0] == 3).all()
    overlap = box_iou(target["boxes"], samples.boxes).amax(0)
    assert (overlap[samples.objects >= 0] >= 0.5).all() and (overlap[samples.objects < 0] < 0.5).all()
    alone = heads.sample(0, proposals[:0], target)
    assert torch.equal(alone.boxes, target["boxes"]) and alone.true.all()


def test_low_quality_matching_of_proposals():
    """A proposal that overlaps B more than A still belongs to A, if none overlaps A more."""
    proposals = torch.tensor([[0.0, 0, 10, 12]])
    target = {"boxes": torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 13]]), "labels": torch.tensor([1, 2])}
    overlaps = box_iou(target["boxes"], proposals)[:, 0]
    assert overlaps[1] > overlaps[0] > 0.5
    found = {
        on: build(roi_low_quality=on).roi_heads.sample(
            0, proposals, target | {"boxes": target["boxes"][[1, 0]]}, anew=False
        )
        for on in (True, False)
    }
    assert (found[True].objects.item(), found[False].objects.item()) == (1, 0)


# Losses of the box heads.


def samples_and_predictions(model, index=0):
    torch.manual_seed(2)
    heads = model.roi_heads
    true = torch.tensor([[10.0, 10, 40, 40], [50, 20, 90, 60]])
    boxes = torch.cat([true + torch.tensor([2.0, -1, 3, 1]), torch.rand(3, 4) + torch.tensor([5.0, 5, 20, 20])])
    labels, objects = torch.tensor([1, 2, 3, 3, 3]), torch.tensor([0, 1, -1, -1, -1])
    samples = [Samples(boxes, labels, objects, torch.zeros(5, dtype=torch.bool))]
    targets = [{"boxes": true, "labels": torch.tensor([2, 3])}]
    outputs = 1 if heads.settings.class_agnostic else 3
    logits, deltas = torch.randn(5, 4), 0.1 * torch.randn(5, outputs, 4)
    return heads, heads._box_losses(index, logits, deltas, samples, targets), logits, deltas, boxes, labels, true


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_box_loss_is_smooth_l1_of_the_targets(beta, class_agnostic):
    _, (cls, box), logits, deltas, boxes, labels, true = samples_and_predictions(
        build(box_beta=beta, class_agnostic=class_agnostic)
    )
    total = 0.0
    for i in (0, 1):
        (x1, y1, x2, y2), (a1, b1, a2, b2) = boxes[i].tolist(), true[i].tolist()
        w, h = x2 - x1, y2 - y1
        goal = [
            10 * ((a1 + a2) / 2 - (x1 + x2) / 2) / w,
            10 * ((b1 + b2) / 2 - (y1 + y2) / 2) / h,
            5 * math.log((a2 - a1) / w),
            5 * math.log((b2 - b1) / h),
        ]
        for g, p in zip(goal, deltas[i, 0 if class_agnostic else labels[i]].tolist(), strict=True):
            d = abs(g - p)
            total += d - beta / 2 if d >= beta else d * d / 2 / beta
    assert box.item() == pytest.approx(total / 5, rel=1e-4)
    expected = -logits.log_softmax(1)[torch.arange(5), labels].mean()
    torch.testing.assert_close(cls, expected)


def test_box_loss_is_giou_of_the_decoded_boxes():
    heads, (_, box), _, deltas, boxes, labels, true = samples_and_predictions(
        build(cascade_mask_rcnn, "mambavision_nano"), index=1
    )
    total = 0.0
    for i in (0, 1):
        x1, y1, x2, y2 = boxes[i].tolist()
        dx, dy, dw, dh = deltas[i, labels[i]].tolist()
        w, h = (x2 - x1) * math.exp(0.1 * dw), (y2 - y1) * math.exp(0.1 * dh)
        cx, cy = (x1 + x2) / 2 + 0.05 * dx * (x2 - x1), (y1 + y2) / 2 + 0.05 * dy * (y2 - y1)
        p = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
        t = true[i].tolist()
        inter = max(0, min(p[2], t[2]) - max(p[0], t[0])) * max(0, min(p[3], t[3]) - max(p[1], t[1]))
        union = w * h + (t[2] - t[0]) * (t[3] - t[1]) - inter
        hull = (max(p[2], t[2]) - min(p[0], t[0])) * (max(p[3], t[3]) - min(p[1], t[1]))
        total += 1 - inter / union + (hull - union) / hull
    assert box.item() == pytest.approx(10 * total / 5, rel=1e-4)
    assert heads.settings.stages[1].loss_weight == 0.5


# Cascades.


def test_refined_boxes_leave_the_true_ones_out_where_they_are_added_again():
    model = build(cascade_mask_rcnn, "mambavision_nano")
    proposals, target = crowd(40)
    samples = model.roi_heads.sample(0, proposals, target)
    n = len(samples.boxes)
    logits, deltas = torch.randn(n, 4), torch.zeros(n, 3, 4)
    refined = model.roi_heads._refined_samples(0, logits, deltas, [samples], [(200, 200)])[0]
    assert samples.true.sum() == 2 and len(refined) == n - 2
    torch.testing.assert_close(refined, samples.boxes[~samples.true].clamp(0, 200))


def test_vims_later_stages_take_all_samples_of_the_first():
    heads = build(cascade_mask_rcnn, "vim_nano").roi_heads
    proposals, target = crowd(40)
    first = heads.sample(0, proposals, target)
    second = heads.sample(1, first.boxes, target, anew=False)
    assert torch.equal(first.boxes, second.boxes) and not second.true.any()
    overlap = box_iou(target["boxes"], second.boxes).amax(0)
    assert torch.equal(second.objects >= 0, overlap >= 0.6)


def test_boxes_are_refined_by_the_class_of_the_object_or_the_likeliest_one():
    heads = build(cascade_mask_rcnn, "mambavision_nano").roi_heads
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 20]])
    samples = Samples(boxes, torch.tensor([1, 3]), torch.tensor([0, -1]), torch.zeros(2, dtype=torch.bool))
    deltas = torch.zeros(2, 3, 4)
    deltas[0, 1, 0] = deltas[1, 2, 0] = 1.0  # a tenth of the width to the right
    logits = torch.tensor([[9.0, 0, 0, 0], [0, 1, 2, 9]])
    refined = heads._refined_samples(0, logits, deltas, [samples], [(64, 64)])[0]
    assert refined[:, 0].tolist() == pytest.approx([2.0, 2.0])


def test_gradients_of_vims_stages_are_shared():
    shares = []
    for shared in (True, False):
        heads = build(cascade_mask_rcnn, "vim_nano", shared_gradient=shared).roi_heads.train()
        torch.manual_seed(1)
        maps = [torch.randn(1, 32, 16, 16, requires_grad=True) for _ in range(4)]
        logits, _ = heads._run_box_head(0, maps, [torch.tensor([[2.0, 2, 40, 40]])])
        logits.square().sum().backward()
        shares.append((logits.detach(), maps[0].grad))
    torch.testing.assert_close(shares[0][0], shares[1][0])
    torch.testing.assert_close(shares[0][1], shares[1][1] / 3)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_scores_are_averaged_over_the_stages(average):
    heads = build(cascade_mask_rcnn, "vim_nano", average=average).roi_heads
    stages = [3 * torch.randn(5, 4) for _ in range(3)]
    found = heads._mean_scores(stages)
    if average == "logits":
        expected = F.softmax(sum(stages) / 3, 1)
    else:
        expected = sum(F.softmax(s, 1) for s in stages) / 3
    torch.testing.assert_close(found, expected[:, :3])


@pytest.mark.parametrize(("backbone", "heads"), [("mambavision_nano", 3), ("vim_nano", 1)])
def test_mask_heads_per_stage(backbone, heads):
    model = build(cascade_mask_rcnn, backbone).train()
    image, target = scene(64, 96)
    losses = model([image], [target])
    assert [name for name in losses if "mask" in name] == [f"loss_mask_{i}" for i in range(heads)]
    assert len(model.roi_heads.mask_heads) == heads


def test_stages_are_weighted():
    losses = []
    for weights in ((1.0, 0.5, 0.25), (1.0, 1.0, 1.0)):
        stages = [StageSettings(iou, (10, 10, 5, 5), w) for iou, w in zip((0.5, 0.6, 0.7), weights, strict=True)]
        model = build(cascade_mask_rcnn, "mambavision_nano", stages=stages).train()
        torch.manual_seed(4)
        losses.append(model([scene()[0]], [scene()[1]]))
    for i, weight in enumerate((1.0, 0.5, 0.25)):
        for part in ("classifier", "box_reg", "mask"):
            name = f"loss_{part}_{i}"
            torch.testing.assert_close(losses[0][name], weight * losses[1][name])


# Masks.


def test_mask_targets_are_exact_and_binary():
    """Each cell of the target is 1 where at least half of what it covers is."""
    torch.manual_seed(0)
    mask = (torch.rand(1, 64, 64) > 0.5).byte()
    box = torch.tensor([[8.0, 0.0, 8.0 + 56, 56.0]])
    found = mask_targets(mask, box, torch.tensor([0]), 28)
    share = F.avg_pool2d(mask[:, None, :56, 8:].float(), 2)[:, 0]
    assert torch.equal(found, (share >= 0.5).float())
    grey = mask_targets(mask, box, torch.tensor([0]), 28, binary=False)
    assert not torch.equal(grey, grey.round())


def test_masks_are_pasted_by_linear_interpolation():
    torch.manual_seed(0)
    masks, box = torch.rand(1, 1, 4, 4), torch.tensor([[3.2, 1.7, 13.5, 9.1]])
    found = paste_masks(masks, box, (12, 16))[0, 0]
    x1, y1, x2, y2 = box[0].tolist()
    for y in range(12):
        for x in range(16):
            u, v = (x + 0.5 - x1) / (x2 - x1) * 4 - 0.5, (y + 0.5 - y1) / (y2 - y1) * 4 - 0.5
            value = sum(
                masks[0, 0, i, j].item() * max(0, 1 - abs(v - i)) * max(0, 1 - abs(u - j))
                for i in range(4)
                for j in range(4)
            )
            assert found[y, x].item() == pytest.approx(value, abs=1e-5)
    assert paste_masks(masks[:0], box[:0], (12, 16)).shape == (0, 1, 12, 16)


def test_sizes_are_rounded_where_torchvision_cuts_them():
    assert fitted_size((427, 640), 800, 1333) == (800, 1199)
    assert fitted_size((480, 640), 800, 1333) == (800, 1067)  # 1066.67
    assert fitted_size((100, 1000), 800, 1333) == (133, 1333)


# Starting values.


def deviation(tensor):
    return tensor.std().item()


def test_starting_values_are_the_published_ones():
    full = DetectorSettings()
    torch.manual_seed(0)
    model = mask_rcnn("vmamba_nano", 80, settings={"hidden": 256})
    box, mask = model.roi_heads.box_heads[0], model.roi_heads.mask_heads[0]
    assert deviation(box.cls_score.weight) == pytest.approx(0.01, rel=0.05)
    assert deviation(box.box_pred.weight) == pytest.approx(0.001, rel=0.05)
    for fc in box.fcs:
        bound = math.sqrt(6 / (fc.in_features + fc.out_features))
        assert fc.weight.abs().max() <= bound and deviation(fc.weight) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    for name, conv in model.backbone.neck.named_modules():
        if isinstance(conv, nn.Conv2d):
            bound = math.sqrt(6 / (conv.weight[0].numel() + conv.weight[:, 0].numel()))
            assert deviation(conv.weight) == pytest.approx(bound / math.sqrt(3), rel=0.05), name
    for conv in (*(c.conv for c in mask.convs),):
        assert deviation(conv.weight) == pytest.approx(math.sqrt(2 / (conv.out_channels * 9)), rel=0.05)
    assert deviation(model.rpn.head.conv[0][0].weight) == pytest.approx(0.01, rel=0.05)
    assert all(not p.any() for n, p in model.roi_heads.named_parameters() if n.endswith("bias"))
    assert full.init == "mmdetection"


def test_retinanet_starts_with_rare_objects():
    head = retinanet("vmamba_nano", 80, channels=64).head.classification_head.cls_logits
    torch.testing.assert_close(head.bias, torch.full_like(head.bias, -math.log(99.0)))


# RetinaNet.


def test_retinanets_losses_are_over_the_objects_of_the_whole_batch():
    torch.manual_seed(0)
    head = retinanet("vmamba_nano", 3, channels=8).head
    logits, deltas = torch.randn(2, 6, 3), torch.randn(2, 6, 4)
    anchors = [torch.tensor([[0.0, 0, 10, 10]] * 6)] * 2
    targets = [
        {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
    ]
    objects = [torch.tensor([0, 0, 0, -1, -2, -1]), torch.full((6,), -1)]
    losses = head.compute_loss(targets, {"cls_logits": logits, "bbox_regression": deltas}, anchors, objects)
    torch.testing.assert_close(losses["bbox_regression"], deltas[0, :3].abs().sum() / 3)
    total = 0.0
    for i in range(2):
        for a in range(6):
            if objects[i][a] == -2:
                continue
            for k in range(3):
                p = torch.sigmoid(logits[i, a, k]).item()
                hit = objects[i][a] == 0 and k == 1
                total += -0.25 * (1 - p) ** 2 * math.log(p) if hit else -0.75 * p**2 * math.log(1 - p)
    assert losses["classification"].item() == pytest.approx(total / 3, rel=1e-4)


def test_retinanets_coarse_levels_have_no_relu_between():
    neck = retinanet("vmamba_nano", 3, channels=8).backbone.neck
    maps = [torch.randn(1, c, s, s) for c, s in ((32, 16), (64, 8), (128, 4))]
    levels = list(neck(maps).values())
    extra = neck.fpn.extra_blocks
    p6 = F.conv2d(maps[-1], extra.p6.weight, extra.p6.bias, stride=2, padding=1)
    torch.testing.assert_close(levels[3], p6)
    torch.testing.assert_close(levels[4], F.conv2d(p6, extra.p7.weight, extra.p7.bias, stride=2, padding=1))
    assert (p6 < 0).any()
