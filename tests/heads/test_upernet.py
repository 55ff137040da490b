"""UPerNet: against transformers' own model, on odd inputs, learning, saving, and published checkpoints' names."""

import math

import pytest
import torch
import torch.nn.functional as F
from dense_cases import train
from timm.optim import create_optimizer_v2

import visionssm
from visionssm.heads import UperNet, upernet
from visionssm.heads.norms import SyncBatchNorm
from visionssm.models import count_parameters

NANO = [name for name in visionssm.list_models() if "nano" in name]


def small(backbone="vmamba_nano", classes=4, **options):
    torch.manual_seed(0)
    return upernet(backbone, classes, **{"channels": 16, "auxiliary_channels": 8, **options})


def labelled(H=48, W=64):
    """Three vertical stripes in colours of their own, and a frame without label."""
    image, labels = torch.full((3, H, W), 0.1), torch.full((H, W), 255)
    for k in range(3):
        part = (slice(4, H - 4), slice(k * W // 3 + 2, (k + 1) * W // 3 - 2))
        labels[part] = k
        image[k][part] = 0.9
    return image, labels


@pytest.mark.parametrize("backbone", NANO)
def test_every_family_segments_any_size_without_dead_parameters(backbone):
    model = small(backbone).train()
    images = [torch.rand(3, 33, 70), torch.rand(3, 48, 64)]
    losses = model(images, [torch.randint(0, 4, image.shape[1:]) for image in images])
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    with torch.inference_mode():
        assert model.eval()(torch.rand(2, 3, 37, 52)).shape == (2, 4, 37, 52)


def test_logits_are_transformers_own():
    """The same heads as UperNetForSemanticSegmentation, on the maps that our backbone gives."""
    from transformers import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

    model = small().eval()
    config = UperNetConfig(hidden_size=16, num_labels=4, auxiliary_channels=8)
    theirs = UperNetHead(config, model.backbone.channels).eval(), UperNetFCNHead(config, model.backbone.channels).eval()
    for ours, head in zip((model.decode_head, model.auxiliary_head), theirs, strict=True):
        head.load_state_dict({n.replace("classifier.1.", "classifier."): v for n, v in ours.state_dict().items()})
    image = torch.rand(1, 3, 48, 80)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        maps = model.backbone((image - mean[:, None, None]) / std[:, None, None])
        expected = F.interpolate(theirs[0](maps), size=(48, 80), mode="bilinear", align_corners=False)
        torch.testing.assert_close(model(image), expected)
        labels = torch.randint(0, 4, (1, 48, 80))
        auxiliary = F.interpolate(theirs[1](maps), size=(48, 80), mode="bilinear", align_corners=False)
        losses = model(image, labels)
    torch.testing.assert_close(losses["loss_decode"], F.cross_entropy(expected, labels))
    torch.testing.assert_close(losses["loss_auxiliary"], 0.4 * F.cross_entropy(auxiliary, labels))


def test_ignored_pixels_count_in_the_mean_and_never_give_nan():
    model = small().eval()
    image = torch.rand(1, 3, 32, 32)
    labels = torch.randint(0, 4, (1, 32, 32))
    labels[:, :16] = 255
    with torch.inference_mode():
        logits = model(image)
        found = model(image, labels)["loss_decode"]
        nothing = model(image, torch.full_like(labels, 255))
    torch.testing.assert_close(found, F.cross_entropy(logits[:, :, 16:], labels[:, 16:]) / 2)
    assert nothing["loss_decode"] == 0 and nothing["loss_auxiliary"] == 0


def test_images_of_several_sizes_are_filled_up_after_normalisation():
    model = small(size_divisible=32).eval()
    images = [torch.rand(3, 40, 64), torch.rand(3, 48, 50)]
    batch = model.batch_images(images)
    assert batch.shape == (2, 3, 64, 64)
    assert not batch[0, :, 40:].any() and not batch[1, :, :, 50:].any()
    labels = model.batch_labels([torch.zeros(40, 64), torch.zeros(48, 50)], batch)
    assert (labels[0, 40:] == 255).all() and not labels[0, :40].any()
    with torch.inference_mode():
        assert model(images).shape == (2, 4, 48, 64)
        assert model(torch.rand(1, 3, 40, 50)).shape == (1, 4, 40, 50)


@pytest.mark.parametrize("value", [4, -1, 254])
def test_wrong_labels_are_named(value):
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[0, 3, 3] = value
    with pytest.raises(ValueError, match=rf"labels: got \[{value}\], need 0 to 3, or 255"):
        small()(torch.rand(1, 3, 32, 32), labels)


@pytest.mark.parametrize("backbone", ["vmamba_nano", pytest.param("vim_nano", marks=pytest.mark.slow)])
def test_learns_one_image(backbone):
    image, labels = labelled()
    model = small(backbone)
    first, last = train(model, lambda: model([image, image.flip(2)], [labels, labels.flip(1)]), 40, lr=4e-3)
    assert last < first / 2
    with torch.inference_mode():
        found = model(image[None])[0].argmax(0)
    known = labels != 255
    assert (found[known] == labels[known]).float().mean() > 0.95


def test_dropout_of_whole_channels_in_training_only():
    model = small(dropout=0.5)
    drop = model.decode_head.classifier[0]
    assert isinstance(drop, torch.nn.Dropout2d) and drop.p == 0.5
    ones = torch.ones(1, 64, 5, 5)
    dropped = drop.train()(ones)
    assert set(dropped.unique().tolist()) == {0.0, 2.0} and torch.equal(dropped, dropped[:, :, :1, :1].expand_as(ones))
    assert torch.equal(drop.eval()(ones), ones)
    assert small().decode_head.classifier[0].p == 0.1  # as published


def test_norms_of_the_heads_are_synchronised_and_those_of_the_backbone_are_not():
    model = small("mambavision_nano")
    norms = {n: type(m) for n, m in model.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    assert {kind is SyncBatchNorm for n, kind in norms.items() if "_head." in n} == {True}
    assert {kind is SyncBatchNorm for n, kind in norms.items() if n.startswith("backbone.")} == {False}


def test_starting_values():
    model = upernet("vmamba_nano", 150, channels=64)
    for head in (model.decode_head, model.auxiliary_head):
        conv, norm = head.classifier[1], [m for m in head.modules() if isinstance(m, SyncBatchNorm)]
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05) and not conv.bias.any()
        assert all((n.weight == 1).all() and not n.bias.any() for n in norm)
    conv = model.decode_head.fpn_bottleneck.conv
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.05)


@pytest.mark.parametrize("backbone", ["vim_nano", "vmamba_nano"])
def test_saved_for_the_hub_and_back(backbone, tmp_path):
    torch.manual_seed(0)
    saved = UperNet(backbone, 4, channels=16, backbone_options={"drop_path_rate": 0.1}).eval()
    saved.save_pretrained(tmp_path)
    loaded = UperNet.from_pretrained(tmp_path).eval()
    image = torch.rand(1, 3, 48, 64)
    with torch.inference_mode():
        assert torch.equal(saved(image), loaded(image))


def test_without_auxiliary_head():
    model = small(auxiliary_weight=0.0)
    assert model.auxiliary_head is None
    assert list(model(torch.rand(2, 3, 32, 32), torch.zeros(2, 32, 32))) == ["loss_decode"]


def test_layer_decay_reaches_the_blocks():
    model = small("vim_nano")
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.92)
    names = {id(p): n for n, p in model.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    for name, scale in scales.items():
        if "pos_embed" in name or ".stem." in name:
            exponent = 5
        elif ".blocks." in name:
            exponent = 4 - int(name.split(".blocks.")[1].split(".")[0])
        else:
            exponent = 0
        assert scale == pytest.approx(0.92**exponent), name


def test_vims_parameters_and_the_published_count():
    """12,901,100 were logged. Ours at 512 pixels are 589,824 = 256 x 256 x 3 x 3 fewer, with the norm that Vim does not use."""
    with torch.device("meta"):
        model = upernet("vim_tiny", 150, img_size=512)
    unused_norm = 192
    assert count_parameters(model) + unused_norm == 12_901_100 - 256 * 256 * 9
    assert model.decode_head.channels == 192 and model.auxiliary_head.channels == 256


def test_published_forms_of_the_backbones():
    with torch.device("meta"):
        tiny = upernet("vim_tiny", 150).backbone
        local = upernet("local_vim_tiny", 150).backbone
        small_vision = upernet("mambavision_small", 150).backbone
    assert (tiny.body.model.feature, tiny.body.model.class_token, list(tiny.body.out_indices)) == (
        "mixer",
        "none",
        [5, 11, 17, 23],
    )
    assert tiny.strides == [4, 8, 16, 32]
    assert (local.body.model.feature, list(local.body.out_indices), len(local.out_norms)) == (
        "mixer",
        [4, 9, 14, 19],
        4,
    )
    assert local.strides == [16, 16, 16, 16]
    assert [stage.window for stage in small_vision.body.model.stages[2:]] == [(160, 160), (56, 56)]
