import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visionssm.tasks.detection_metrics import NUMBERS, coco_metrics, coco_results, metric_lines

CATEGORIES = [{"id": 1, "name": "a"}, {"id": 5, "name": "b"}, {"id": 6, "name": "never seen"}]
SIDE = 160


def _blob(rng: np.random.Generator) -> np.ndarray:
    """An ellipse anywhere, of any size that COCO tells apart."""
    radii = np.exp(rng.uniform(np.log(4), np.log(90), 2))
    centre = rng.uniform(10, SIDE - 10, 2)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1


def _box(mask: np.ndarray) -> list[float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(columns[0]), float(rows[0]), float(columns[-1] - columns[0] + 1), float(rows[-1] - rows[0] + 1)]


@pytest.fixture(scope="module")
def judged() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations with crowds, and results that hit, miss, come twice and lie beside."""
    from pycocotools import mask as mask_api

    def encode(mask: np.ndarray) -> dict[str, Any]:
        found = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": found["size"], "counts": found["counts"].decode()}

    rng = np.random.default_rng(0)
    annotations, results = [], []
    for image in range(1, 13):
        for _ in range(int(rng.integers(0, 9))):
            mask, category = _blob(rng), int(rng.choice([1, 5]))
            crowd = int(rng.random() < 0.15)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": category, "bbox": _box(mask),
                 "area": int(mask.sum()), "iscrowd": crowd, "segmentation": encode(mask)}
            )  # fmt: skip
            for _ in range(int(rng.integers(0, 3))):
                shift = rng.integers(-5, 6, 2)
                moved = np.roll(mask, shift, (0, 1))
                seen = category if rng.random() < 0.8 else int(rng.choice([1, 5]))
                results.append(
                    {"image_id": image, "category_id": seen, "bbox": _box(moved), "score": float(rng.random()),
                     "segmentation": encode(moved)}
                )  # fmt: skip
    images = [{"id": image, "height": SIDE, "width": SIDE, "file_name": f"{image}.png"} for image in range(1, 13)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": CATEGORIES}, results


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_numbers_are_those_of_pycocotools_on_the_same_results_file(
    judged: tuple[dict[str, Any], list[dict[str, Any]]], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = judged
    before = copy.deepcopy(judged)
    ours = coco_metrics(truth, results, kind)
    assert judged == before, "what is judged isn't changed"
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    # From a file that holds both, pycocotools takes areas from the masks only if it finds no boxes.
    entries = [{k: v for k, v in e.items() if kind == "segm" or k != "segmentation"} for e in results]
    (tmp_path / "results.json").write_text(json.dumps(entries))
    coco = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "results.json")), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    theirs = {name: evaluation.stats[place] for name, place in NUMBERS.items()}
    assert 0.1 < ours["AP"] < 0.8 and all(ours[f"AP_{size}"] is not None for size in ("small", "medium", "large"))
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_perfect_results_have_an_ap_of_one_and_no_results_of_zero(
    judged: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    truth, _ = judged
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9,
         "segmentation": a["segmentation"]} for a in truth["annotations"] if not a["iscrowd"]
    ]  # fmt: skip
    for kind in ("bbox", "segm"):
        assert coco_metrics(truth, perfect, kind)["AP"] == pytest.approx(1.0)
        assert coco_metrics(truth, [], kind)["AP"] == 0.0
    empty = {**truth, "annotations": []}
    assert coco_metrics(empty, [], "bbox")["AP"] is None
    assert coco_metrics(empty, perfect, "bbox")["AP"] is None


def test_results_hold_boxes_as_coco_writes_them_and_masks_from_one_half_on() -> None:
    from pycocotools import mask as mask_api

    masks = torch.zeros(1, 1, 6, 8)
    masks[0, 0, 2:4, 3:7], masks[0, 0, 0, 0] = 0.5, 0.49
    found = {
        "boxes": torch.tensor([[3.0, 2, 7, 4]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.25]),
        "masks": masks,
    }
    (entry,) = coco_results(17, found, [1, 5, 6])
    assert (entry["image_id"], entry["category_id"], entry["bbox"], entry["score"]) == (17, 5, [3, 2, 4, 2], 0.25)
    assert np.array_equal(mask_api.decode(entry["segmentation"]), masks[0, 0] >= 0.5)
    assert json.loads(json.dumps(entry)) == entry


def test_the_table_shows_per_cent_and_marks_what_was_not_measured() -> None:
    assert metric_lines({"box": {"AP": 0.123, "AP75": None}}) == ["           AP    AP75", "box      12.3       -"]
