"""Average precision of boxes and masks by COCO's protocol, computed by faster-coco-eval."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

# The numbers of COCO's summary that are reported, by their place in it. Areas: below 32 x 32, to 96 x 96, above.
NUMBERS = {"AP": 0, "AP50": 1, "AP75": 2, "AP_small": 3, "AP_medium": 4, "AP_large": 5, "AR": 8}


def coco_results(
    image_id: int, prediction: dict[str, torch.Tensor], category_ids: list[int], threshold: float = 0.5
) -> list[dict[str, Any]]:
    """What a detector found in one image, as entries of a COCO results file.

    Args:
        image_id: of the image.
        prediction: boxes (n, 4) as left, top, right, bottom; labels (n,) from 1 on; scores (n,); and, if there are any,
            masks (n, 1, H, W), 0 to 1.
        category_ids: the category of label k is `category_ids[k - 1]`.
        threshold: a pixel from this value on belongs to the mask.

    Example:
        >>> found = {"boxes": torch.tensor([[1.0, 2, 4, 6]]), "labels": torch.tensor([2]), "scores": torch.tensor([0.5])}
        >>> coco_results(7, found, [1, 3])
        [{'image_id': 7, 'category_id': 3, 'bbox': [1.0, 2.0, 3.0, 4.0], 'score': 0.5}]
    """
    boxes = prediction["boxes"].float().cpu()
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    entries: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for label, box, score in zip(
            prediction["labels"].tolist(), boxes.tolist(), prediction["scores"].float().tolist(), strict=True
        )
    ]
    if "masks" in prediction:
        from faster_coco_eval.core import mask

        pixels = (prediction["masks"][:, 0] >= threshold).to(torch.uint8).cpu().numpy()
        for entry, found in zip(entries, pixels, strict=True):
            run_lengths = mask.encode(np.asfortranarray(found))
            entry["segmentation"] = {"size": list(found.shape), "counts": run_lengths["counts"].decode()}
    return entries


def coco_metrics(ground_truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> dict[str, float | None]:
    """Average precision and recall of a results file.

    Args:
        ground_truth: the content of an annotation file; crowds are regions where nothing counts.
        results: entries of a results file.
        kind: "bbox" or "segm".

    Returns:
        AP (mean over IoU 0.50 to 0.95), AP50, AP75, AP of small, medium and large objects, and AR (100 detections), as
        shares; None where there are no such objects.

    Example:
        >>> truth = {"images": [{"id": 1, "height": 9, "width": 9}], "categories": [{"id": 1, "name": "cat"}],
        ...          "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}]}
        >>> coco_metrics(truth, [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "score": 0.9}], "bbox")["AP"]
        1.0
    """
    from faster_coco_eval import COCO, COCOeval_faster

    if not results:
        present = {bool(annotation.get("iscrowd")) for annotation in ground_truth["annotations"]}
        return dict.fromkeys(NUMBERS, 0.0 if False in present else None)
    # Copies, for faster-coco-eval writes into what it reads. Boxes are judged as they are, without the masks beside them.
    copies = [{name: value for name, value in entry.items() if name != "segmentation"} for entry in results]
    if kind == "segm":
        for copied, entry in zip(copies, results, strict=True):
            copied["segmentation"] = dict(entry["segmentation"])
    truth = COCO({"info": {}, **ground_truth}, use_deepcopy=True)
    evaluation = COCOeval_faster(truth, truth.loadRes(copies), kind, print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {name: _share(evaluation.stats[place]) for name, place in NUMBERS.items()}


def metric_lines(metrics: dict[str, dict[str, float | None]]) -> list[str]:
    """A table of metrics: one line for each kind, numbers in per cent.

    Example:
        >>> print(*metric_lines({"box": {"AP": 0.5, "AP50": None}}), sep="\\n")
                  AP    AP50
        box     50.0       -
    """
    names: Iterable[str] = next(iter(metrics.values()))
    width = max(8, *(len(name) + 2 for name in names))
    lines = [" " * 5 + "".join(f"{name:>{width}}" for name in names)]
    for kind, values in metrics.items():
        cells = ("-" if value is None else f"{100 * value:.1f}" for value in values.values())
        lines.append(f"{kind:<5}" + "".join(f"{cell:>{width}}" for cell in cells))
    return lines


def _share(value: float) -> float | None:
    """COCO writes -1 where there is nothing to measure."""
    return None if value < 0 else float(value)
