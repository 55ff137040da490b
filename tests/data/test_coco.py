import copy
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from visionssm.data.coco import CLIPPED, CocoImages, decode_mask, load_coco, read_coco
from visionssm.data.dense_loader import ShapeSampler, StreamSampler, make_dense_loader
from visionssm.data.dense_transforms import DropEmptyObjects, detection_train_transform, eval_dense_transform
from visionssm.data.problems import summarize_problems
from visionssm.data.scenes import make_scenes

SQUARE = [[2, 2, 8, 2, 8, 6, 2, 6]]  # a rectangle of 6 x 4 pixels as a polygon
CROWD = {"size": [20, 30], "counts": [100, 50, 450]}


def _annotation(**changes: Any) -> dict[str, Any]:
    usual = {
        "id": 1,
        "image_id": 5,
        "category_id": 3,
        "bbox": [2, 2, 6, 4],
        "area": 24,
        "iscrowd": 0,
        "segmentation": SQUARE,
    }
    return usual | changes


def _write(root: Path, annotations: list[dict[str, Any]], **changes: Any) -> Path:
    """A folder in COCO's layout with the same three images, 30 x 20 pixels, to train and to validate on."""
    images = [{"id": number, "file_name": f"{number}.png", "width": 30, "height": 20} for number in (5, 6, 7)]
    categories = [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}]
    content = {"images": images, "annotations": annotations, "categories": categories} | changes
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for part in ("train2017", "val2017"):
        (root / part).mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
        for image in images:
            Image.new("RGB", (30, 20), (image["id"], 0, 0)).save(root / part / image["file_name"])
    return root


def _train(root: Path, **options: Any) -> CocoImages:
    return load_coco(root, **options)[0]


def test_categories_with_gaps_become_labels_from_one_on(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        [_annotation(), _annotation(id=2, category_id=9, bbox=[0, 0, 5, 5], segmentation=[[0, 0, 5, 0, 5, 5]])],
    )
    images = _train(root)
    assert (images.class_names, images.category_ids) == (["cat", "dog"], [3, 9])
    image, target, _ = images.load(0)
    assert tuple(image.shape) == (3, 20, 30) and int(image[0, 0, 0]) == 5
    assert target["labels"].tolist() == [1, 2]
    assert target["boxes"].tolist() == [[2, 2, 8, 6], [0, 0, 5, 5]]
    expected = np.zeros((20, 30), np.uint8)
    expected[2:6, 2:8] = 1
    assert np.array_equal(target["masks"][0], expected)


def test_crowds_are_not_trained_on_but_judged_with(tmp_path: Path) -> None:
    crowd = _annotation(id=2, iscrowd=1, bbox=[5, 0, 3, 20], segmentation=CROWD)
    train, val = load_coco(_write(tmp_path, [_annotation(), crowd]))
    assert train.load(0)[1]["labels"].tolist() == val.load(0)[1]["labels"].tolist() == [1]
    assert [annotation["iscrowd"] for annotation in val.ground_truth()["annotations"]] == [0, 1]


def test_empty_images_are_an_option_of_training_and_always_validated(tmp_path: Path) -> None:
    crowd = _annotation(id=2, image_id=6, iscrowd=1, bbox=[5, 0, 3, 20], segmentation=CROWD)
    root = _write(tmp_path, [_annotation(), crowd])
    train, val = load_coco(root)
    assert (len(train), len(val), len(_train(root, keep_empty=True))) == (1, 3, 3)
    _, target, _ = val.load(2)
    assert tuple(target["boxes"].shape) == (0, 4) and tuple(target["masks"].shape) == (0, 20, 30)


@pytest.mark.parametrize(
    ("segmentation", "pixels"),
    [
        ([[0, 0, 4, 0, 4, 4, 0, 4], [10, 0, 12, 0, 12, 4, 10, 4]], 24),
        (CROWD, 50),
        ({"size": [20, 30], "counts": "T3b16"}, None),
    ],
)
def test_masks_decode_as_pycocotools_decodes_them(segmentation: Any, pixels: int | None) -> None:
    mask_api = pytest.importorskip("pycocotools.mask")
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
        pattern = np.asfortranarray(np.eye(20, 30, dtype=np.uint8))
        segmentation = {"size": [20, 30], "counts": mask_api.encode(pattern)["counts"].decode()}
        pixels = 20
    theirs = copy.deepcopy(segmentation)
    if isinstance(theirs, list):
        theirs = mask_api.merge(mask_api.frPyObjects(theirs, 20, 30))
    elif isinstance(theirs["counts"], list):
        theirs = mask_api.frPyObjects(theirs, 20, 30)
    mask = decode_mask(segmentation, 20, 30)
    assert np.array_equal(mask, mask_api.decode(theirs))
    assert mask.sum() == pixels


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"category_id": 4}, "category id isn't in the list of categories: left out"),
        ({"image_id": 99}, "image id isn't in the list of images: left out"),
        ({"bbox": [2, 2, 0, 4]}, "box of zero area: left out"),
        ({"bbox": [2, 2, 6, -4]}, "box of zero area: left out"),
        ({"bbox": [40, 2, 6, 4]}, "box lies outside the image: left out"),
        ({"bbox": [2, 2, 6]}, "box isn't four finite numbers: left out"),
        ({"bbox": [2, 2, float("nan"), 4]}, "box isn't four finite numbers: left out"),
        ({"bbox": [2, 2, 600, 4]}, CLIPPED),
        ({"segmentation": []}, "mask is missing: left out"),
        ({"segmentation": [[1, 2, 3, 4]]}, "mask has a polygon of fewer than three points: left out"),
        ({"segmentation": [[20, 12, 28, 12, 28, 18]]}, "mask lies outside its box: left out"),
        ({"segmentation": {"size": [10, 10], "counts": [0, 100]}}, "mask isn't of the image's size: left out"),
        (
            {"segmentation": {"size": [20, 30], "counts": [0, 100]}},
            "mask has run lengths that don't add up to the image: left out",
        ),
        ({"segmentation": {"size": [20, 30], "counts": [600]}}, "mask is empty: left out"),
    ],
)
def test_a_bad_annotation_is_counted_named_and_does_no_harm(changes: dict[str, Any], kind: str, tmp_path: Path) -> None:
    root = _write(tmp_path, [_annotation(id=1), _annotation(id=2, **changes)])
    images = _train(root)
    assert [problem.kind for problem in images.problems] == [kind]
    assert "annotation 2" in images.problems[0].where
    assert summarize_problems(images.problems)[0].startswith(f"1 x {kind}")
    _, target, _ = images.load(0)
    assert len(target["labels"]) == (2 if kind == CLIPPED else 1)
    assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
    assert target["boxes"][:, 2].max() <= 30 and target["boxes"][:, 3].max() <= 20


def test_a_box_without_a_mask_is_enough_for_a_detector_of_boxes(tmp_path: Path) -> None:
    images = _train(_write(tmp_path, [_annotation(segmentation=[])]), with_masks=False)
    _, target, _ = images.load(0)
    assert not images.problems and "masks" not in target and target["boxes"].tolist() == [[2, 2, 8, 6]]
    _, target = detection_train_transform("none")(*images.load(0)[:2])
    assert len(target["boxes"]) == 1


def test_images_that_are_missing_broken_or_of_another_size_are_named(tmp_path: Path) -> None:
    root = _write(tmp_path, [_annotation(id=n, image_id=n) for n in (5, 6, 7)])
    (root / "train2017" / "5.png").unlink()
    (root / "train2017" / "6.png").write_bytes(b"broken")
    Image.new("RGB", (31, 20)).save(root / "train2017" / "7.png")
    images = _train(root)
    assert [(Path(p.where).name, p.kind) for p in images.problems] == [("5.png", "image file is missing: left out")]
    (batch,) = make_dense_loader(images, eval_dense_transform(), batch_size=2)
    assert [(Path(item.name).name, item.reason) for item in batch["unreadable"]] == [
        ("6.png", "not an image in a format that Pillow reads"),
        ("7.png", "is 31x20, but its annotations are for 30x20"),
    ]
    assert batch["images"] == [] and batch["targets"] == []


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "annotations" / "instances_val2017.json").unlink(), "no annotations/instances_val"),
        (lambda root: (root / "annotations" / "instances_val2017.json").write_text("{"), "isn't a JSON file"),
        (lambda root: (root / "annotations" / "instances_val2017.json").write_text("[]"), "has no list 'images'"),
        (lambda root: [path.unlink() for path in (root / "val2017").iterdir()], "not one of its 3 images"),
        (lambda root: _write(root, []), "not one training image has an object"),
        (lambda root: _write(root, [], images=[{"id": 1}]), "lacks file_name, width, height"),
        (lambda root: _write(root, [], categories=[]), "names no categories"),
    ],
)
def test_a_folder_that_cannot_be_used_is_explained(break_it: Any, message: str, tmp_path: Path) -> None:
    root = _write(tmp_path, [_annotation()])
    break_it(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_coco(root)


@pytest.mark.parametrize("resize", ["fixed", "multiscale", "lsj"])
def test_boxes_follow_their_masks_through_the_published_pipelines(resize: str, tmp_path: Path) -> None:
    images = load_coco(make_scenes(tmp_path / "s", images=4, size=128))[0]
    transform = detection_train_transform(
        resize, short_sides=(192, 256), long_side=300, crop_size=160, scale=(0.5, 2.0)
    )
    for index in range(4):
        image, target = transform(*images.load(index)[:2])
        height, width = image.shape[-2:]
        assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
        assert (height, width) == (160, 160) if resize == "lsj" else min(height, width) <= 256
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            extent = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            # Masks are resized by the nearest pixel, and the crop may cut an object between its box's and its mask's end.
            inside = (extent[:2] >= box[:2] - 3).all() and (extent[2:] <= box[2:] + 3).all()
            assert inside, (box, extent)


def test_what_a_crop_cuts_away_is_left_out() -> None:
    boxes = tv_tensors.BoundingBoxes(
        [[0.0, 0, 5, 5], [50, 50, 60, 60], [2, 2, 4, 4]], format="XYXY", canvas_size=(20, 20)
    )
    masks = torch.zeros(3, 20, 20, dtype=torch.uint8)
    masks[0, 0, 0] = masks[1, 0, 0] = 1
    image = torch.zeros(3, 20, 20)
    _, target = DropEmptyObjects()(
        image, {"boxes": boxes, "labels": torch.tensor([1, 2, 3]), "masks": tv_tensors.Mask(masks)}
    )
    assert target["labels"].tolist() == [1] and len(target["masks"]) == 1


@pytest.mark.parametrize("batches", [0, 1, 4, 5, 7])
def test_batches_of_like_shapes_resume_with_the_same_pixels(batches: int, tmp_path: Path) -> None:
    images = load_coco(make_scenes(tmp_path / "s", images=11, size=64))[0]
    wide = [index % 3 == 0 for index in range(11)]

    def loader(workers: int = 0) -> Any:
        transform = detection_train_transform("fixed", short_sides=(48, 64))
        return make_dense_loader(images, transform, 2, training=True, seed=5, workers=workers, wide=wide)

    whole = loader()
    everything = [batch for _ in range(2) for batch in whole]
    assert len(everything) == 10
    first, seen = loader(), 0
    while seen < batches:
        seen += sum(1 for _ in islice(first, batches - seen))
    second = loader()
    second.load_state_dict(first.state_dict())
    rest = [batch for _ in range(2) for batch in second][: 10 - batches]
    for a, b in zip(rest, everything[batches:], strict=True):
        assert torch.equal(a["indices"], b["indices"])
        assert all(torch.equal(x, y) for x, y in zip(a["images"], b["images"], strict=True))
        assert all(torch.equal(x["boxes"], y["boxes"]) for x, y in zip(a["targets"], b["targets"], strict=True))


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_hold_one_shape_and_an_epoch_every_image_once(world_size: int) -> None:
    wide = [index % 4 == 0 for index in range(100)]
    ranks = [list(ShapeSampler(wide, 4, True, True, 5, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert all(len(batches) == 100 // (4 * world_size) for batches in ranks)
    together = [[draw for batches in ranks for draw in batches[number]] for number in range(len(ranks[0]))]
    assert len({draw.image for batch in together for draw in batch}) == len(together) * 4 * world_size
    assert [draw.position for batch in together for draw in batch] == list(range(len(together) * 4 * world_size))
    mixed = sum(len({wide[draw.image] for draw in batch}) > 1 for batch in together)
    assert mixed <= 1


def test_an_annotation_file_alone_can_be_read(tmp_path: Path) -> None:
    root = _write(tmp_path, [_annotation()])
    assert len(read_coco(root / "annotations" / "instances_val2017.json", root / "val2017")) == 3


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stream_shows_every_image_once_before_it_shows_one_again(world_size: int) -> None:
    shown: list[int] = []
    ranks = [StreamSampler(10, 3, 2, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)]
    for epoch in range(10):
        for sampler in ranks:
            sampler.epoch = epoch
        for batches in zip(*ranks, strict=True):
            shown += [draw.image for batch in batches for draw in batch]
    assert len(shown) == 60 * world_size
    passes = [shown[start : start + 10] for start in range(0, len(shown), 10)]
    assert all(sorted(images) == list(range(10)) for images in passes)
    assert len({tuple(images) for images in passes}) == len(passes)
    # Put into the middle of an epoch, it goes on as it would have.
    whole, rest = StreamSampler(10, 3, 2, seed=1), StreamSampler(10, 3, 2, seed=1)
    whole.epoch = rest.epoch = 4
    rest.first_batch = 2
    assert list(rest) == list(whole)[2:]
