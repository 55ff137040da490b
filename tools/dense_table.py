"""Writes docs/dense-models.md: detectors and segmenters with their size and cost, ours and the published ones.

python tools/dense_table.py                  write the page; a minute
python tools/dense_table.py --train-step     measure one training step of Mask R-CNN on VMamba-T instead
"""

import argparse
import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from models_table import count, rule_of
from torch import Tensor, nn

from visionssm import heads
from visionssm.models import count_parameters

PAGE = Path(__file__).parents[1] / "docs" / "dense-models.md"

INTRODUCTION = """\
# Sizes of detectors and segmenters

Made by `tools/dense_table.py`; do not edit.

- **Parameters** are exact for ours, with 80 classes for COCO and 150 for ADE20K; published ones are what the papers print.
- **GFLOPs** are 10^9 multiply-adds, by the rule that the backbone's authors use where it is known (see [models](models.md)),
  otherwise by ours. Detectors: one image of 1280 x 800, 1000 proposals through the box heads and 100 through the mask heads, as
  mmdetection counts. Segmenters: one image of 2048 x 512 without the auxiliary head, which only helps in training.
- MambaVision's rule leaves attention products out, and its windows are those that the detectors were trained with unless the
  row says `window_size="map"`.
"""


@dataclass(frozen=True)
class Row:
    """A detector or segmenter; what is published of it in millions of parameters and GFLOPs, and why ours differ."""

    head: str
    backbone: str
    params: float | None = None
    gflops: float | None = None
    note: str = ""
    options: dict[str, Any] = field(default_factory=dict)


ROWS = [
    Row("mask_rcnn", "vmamba_tiny_s1l8", 50, 271),
    Row("mask_rcnn", "vmamba_tiny_s2l5", 50, 270),
    Row("mask_rcnn", "vmamba_small_s2l15", 70, 384, "the authors' own measurement is 348.9"),
    Row("mask_rcnn", "vmamba_base_s2l15", 108, 485),
    Row("mask_rcnn", "vanilla_vmamba_tiny", 42, 286),
    Row("mask_rcnn", "vanilla_vmamba_small", 64, 400),
    Row("mask_rcnn", "vanilla_vmamba_base", 96, 540),
    Row("mask_rcnn", "local_vmamba_tiny", 45, 291, "the authors' rule is not known"),
    Row("mask_rcnn", "local_vmamba_small", 69, 414, "the authors' rule is not known"),
    Row("mask_rcnn", "groupmamba_tiny", note="published as a fifth smaller than VMamba-T's"),
    Row(
        "mask_rcnn",
        "efficient_vmamba_tiny",
        11,
        60,
        "its head must be narrower than 256 channels; how is not published",
    ),
    Row("mask_rcnn", "efficient_vmamba_small", 31, 197),
    Row("mask_rcnn", "efficient_vmamba_base", 53, 252),
    Row("mask_rcnn", "simba_small", 60, 382, "which of SiMBA's mixers is not published, and none is that large"),
    Row("mask_rcnn", "simba_small_mlp", 60, 382, "as above"),
    Row("retinanet", "efficient_vmamba_tiny", 13, None, "a narrower head is not published"),
    Row("retinanet", "efficient_vmamba_small", 19, None, "a narrower head is not published"),
    Row("retinanet", "efficient_vmamba_base", 44),
    Row(
        "cascade_mask_rcnn",
        "mambavision_tiny",
        86,
        740,
        "86 is the number of Swin-T's detector, whose backbone is smaller by 3.6",
    ),
    Row("cascade_mask_rcnn", "mambavision_tiny", 86, 740, "", {"window_size": "map"}),
    Row("cascade_mask_rcnn", "mambavision_small", 108, 828),
    Row("cascade_mask_rcnn", "mambavision_small", 108, 828, "", {"window_size": "map"}),
    Row(
        "cascade_mask_rcnn",
        "mambavision_base",
        145,
        964,
        "145 is the number of Swin-B's detector, whose backbone is smaller by 10",
    ),
    Row("cascade_mask_rcnn", "mambavision_base", 145, 964, "", {"window_size": "map"}),
    Row("cascade_mask_rcnn", "vim_tiny", note="nothing published", options={"img_size": 1024}),
    Row("cascade_mask_rcnn", "local_vim_tiny", 31, 403, "LocalVim's pyramid and heads are not published in detail"),
    Row("upernet", "vmamba_tiny_s1l8", 62, 949),
    Row("upernet", "vmamba_tiny_s2l5", 62, 948),
    Row("upernet", "vmamba_small_s2l15", 82, 1028),
    Row("upernet", "vmamba_base_s2l15", 122, 1170),
    Row("upernet", "vanilla_vmamba_tiny", 55, 964),
    Row("upernet", "local_vmamba_tiny", 57, 970, "the authors' rule is not known"),
    Row("upernet", "groupmamba_tiny", 49, 955, "49.8 without the auxiliary head"),
    Row("upernet", "efficient_vmamba_tiny", 14, 230, "a head of 256 channels, which both numbers imply"),
    Row("upernet", "efficient_vmamba_small", 29, 505, "a head of 384 channels, which both numbers imply"),
    Row("upernet", "efficient_vmamba_base", 65, 930),
    Row("upernet", "simba_small", 62, 1040, "which of SiMBA's mixers is not published"),
    Row("upernet", "mambavision_tiny", 55, 945, "not explained: the classifier has 31.8 and the head 30.2 of its own"),
    Row("upernet", "mambavision_small", 84, 1135, "not explained"),
    Row("upernet", "mambavision_base", 126, 1342, "the GFLOPs agree, the parameters are not explained"),
    Row("upernet", "mambavision_large3_512", 780, None, "GFLOPs are published for crops of 640"),
    Row(
        "upernet",
        "vim_tiny",
        12.9011,
        None,
        "12,901,100 were logged: 192 more in a norm that is not used, and 256 x 256 x 3 x 3; an auxiliary convolution that "
        "reads 448 channels would have as many, the published configuration says 192",
        {"img_size": 512},
    ),
    Row("upernet", "vim_small", 46, None, options={"img_size": 512}),
    Row("upernet", "local_vim_tiny", 36, 181, "the authors' rule is not known"),
    Row("upernet", "local_vim_small", 58, 297, "the authors' rule is not known"),
]


class Counted(nn.Module):
    """What one image costs, without steps that depend on the data: called on an image, computes every part once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        model: Any = self.model
        maps = model.backbone(x)
        if isinstance(model, heads.UperNet):
            return model.decode_head(maps)
        levels = list(maps.values())
        if isinstance(model, heads.RetinaNet):
            model.head(levels)
            return x
        model.rpn.head(levels)
        for head in model.roi_heads.box_heads:
            head(x.new_empty(1000, levels[0].shape[1], 7, 7))
        for head in model.roi_heads.mask_heads:
            head(x.new_empty(100, levels[0].shape[1], 14, 14))
        return x


def build(row: Row) -> nn.Module:
    """The model of a row on the meta device."""
    classes = 150 if row.head == "upernet" else 80
    with torch.device("meta"):
        return getattr(heads, row.head)(row.backbone, classes, **row.options).eval()


def cost(row: Row, model: nn.Module) -> float:
    """GFLOPs of a row's model."""
    size = (512, 2048) if row.head == "upernet" else (800, 1280)
    counts = count(Counted(model), (3, *size))
    rule = rule_of(row.backbone)
    if rule is not None and not row.backbone.startswith(("vim_", "local_vim_")):
        return rule.gmacs(counts) / 1e9
    products = counts.convolution + counts.linear + counts.batched + counts.step_projection
    return (products + counts.scan(9, 1)) / 1e9


COLUMNS = ("head", "backbone", "parameters", "published, M", "GFLOPs", "published", "")


def line(row: Row) -> str:
    """A row of the table."""
    model = build(row)
    options = ", ".join(f"{name}={value!r}" for name, value in row.options.items())
    cells = (
        f"`{row.head}`",
        f"`{row.backbone}`" + (f" `{options}`" if options else ""),
        f"{count_parameters(model):,}",
        "-" if row.params is None else f"{row.params:g}",
        f"{cost(row, model):.1f}",
        "-" if row.gflops is None else f"{row.gflops:g}",
        row.note,
    )
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """The whole page."""
    header = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    return "\n".join([INTRODUCTION, *header, *(line(row) for row in ROWS), ""])


def train_step(H: int = 800, W: int = 1280) -> str:
    """Time and peak memory of one step of Mask R-CNN on VMamba-T: one image with ten objects, float32, on the CPU."""
    torch.manual_seed(0)
    model = heads.mask_rcnn("vmamba_tiny", 80).train()
    corners = torch.rand(10, 2) * torch.tensor([W - 200, H - 200])
    boxes = torch.cat([corners, corners + 20 + 180 * torch.rand(10, 2)], dim=1)
    masks = torch.zeros(10, H, W, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    targets = [{"boxes": boxes, "labels": torch.arange(1, 11), "masks": masks}]
    start, computed = time.perf_counter(), time.process_time()
    sum(model([torch.rand(3, H, W)], targets).values()).backward()
    seconds, computed = time.perf_counter() - start, time.process_time() - computed
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    threads = torch.get_num_threads()
    return f"one step at {H}x{W} on {threads} threads: {seconds:.1f} s, {computed:.1f} s of CPU time, {peak:.1f} GiB at most"


def main() -> None:
    """Write the page, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-step", action="store_true", help="measure one training step instead")
    if parser.parse_args().train_step:
        print(train_step())
        return
    unfinished = PAGE.with_suffix(".unfinished")
    unfinished.write_text(page())
    os.replace(unfinished, PAGE)
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
