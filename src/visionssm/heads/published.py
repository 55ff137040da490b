"""Whole published detectors and segmenters: the names that mmdetection and mmsegmentation give their tensors, and ours."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from ..models._checkpoint import load_weights, read_checkpoint
from ..models._keys import Key, KeyTable
from .detectors import MaskRCNN
from .upernet import UperNet

BODY = "backbone.body.model."


def load_published(model: nn.Module, path: str | Path) -> None:
    """Loads a whole detector or segmenter, as MambaVision and VMamba publish them, strictly: every tensor has its place.

    Args:
        model: a :class:`MaskRCNN`, :class:`CascadeMaskRCNN` or :class:`UperNet` with the file's backbone and number of classes
            (80 for COCO, 150 for ADE20K), and the settings that it was trained with.
        path: a file of mmdetection or mmsegmentation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: tensors that are missing, left over or of another shape, all of them named.
        TypeError: a model whose published names are not known.
    """
    table = published_names(model)
    state = read_checkpoint(path, backbone_only=False)
    load_weights(
        model, table.from_published(state, model.state_dict()), source=str(path), published=table.published_names
    )


def published_names(model: nn.Module) -> KeyTable:
    """The two-way table of names for a whole detector or segmenter.

    Example:
        >>> from visionssm.heads import mask_rcnn
        >>> published_names(mask_rcnn("vmamba_nano", 3)).published_names("rpn.head.cls_logits.weight")
        ['rpn_head.rpn_cls.weight']
    """
    if isinstance(model, MaskRCNN):
        keys = _detector(len(model.settings.stages) > 1)
    elif isinstance(model, UperNet):
        keys = _segmenter()
    else:
        raise TypeError(f"model: got {type(model).__name__}, need a MaskRCNN, CascadeMaskRCNN or UperNet")
    return KeyTable([*_backbone(model.backbone.body.model), *keys])


def _backbone(body: nn.Module) -> list[Key]:
    table = body.key_table
    assert isinstance(table, KeyTable)
    below = [
        replace(
            key,
            published=tuple(f"backbone.{name}" for name in key.sources)
            if isinstance(key.published, tuple)
            else f"backbone.{key.published}",
            ours=BODY + key.ours,
        )
        for key in table.keys
    ]
    return [*below, Key("backbone.**", f"{BODY}**")]


def _detector(cascade: bool) -> list[Key]:
    stage = "*." if cascade else ""
    ours = "*." if cascade else "0."
    box, own_box = f"roi_head.bbox_head.{stage}", f"roi_heads.box_heads.{ours}"
    mask, own_mask = f"roi_head.mask_head.{stage}", f"roi_heads.mask_heads.{ours}"
    return [
        Key("neck.lateral_convs.*.conv.*", "backbone.neck.fpn.inner_blocks.*.0.*"),
        Key("neck.fpn_convs.*.conv.*", "backbone.neck.fpn.layer_blocks.*.0.*"),
        Key("rpn_head.rpn_conv.*", "rpn.head.conv.0.0.*"),
        Key("rpn_head.rpn_cls.*", "rpn.head.cls_logits.*"),
        Key("rpn_head.rpn_reg.*", "rpn.head.bbox_pred.*"),
        Key(f"{box}shared_convs.*.conv.*", f"{own_box}convs.*.conv.*"),
        Key(f"{box}shared_convs.*.bn.*", f"{own_box}convs.*.norm.*"),
        Key(f"{box}shared_fcs.*.*", f"{own_box}fcs.*.*"),
        Key(f"{box}fc_cls.*", f"{own_box}cls_score.*"),
        Key(f"{box}fc_reg.*", f"{own_box}box_pred.*"),
        Key(f"{mask}convs.*.conv.*", f"{own_mask}convs.*.conv.*"),
        Key(f"{mask}upsample.*", f"{own_mask}upsample.*"),
        Key(f"{mask}conv_logits.*", f"{own_mask}logits.*"),
    ]


def _segmenter() -> list[Key]:
    return [
        key
        for head in ("decode_head", "auxiliary_head")
        for key in (
            Key(f"{head}.conv_seg.*", f"{head}.classifier.1.*"),
            Key(f"{head}.psp_modules.*.1.bn.*", f"{head}.psp_modules.*.1.batch_norm.*"),
            Key(f"{head}.*.bn.*", f"{head}.*.batch_norm.*"),
            Key(f"{head}.*.*.bn.*", f"{head}.*.*.batch_norm.*"),
        )
    ]
