from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from visionssm.data.ade20k import IGNORE, load_ade20k
from visionssm.data.dense_loader import make_dense_loader
from visionssm.data.dense_transforms import PhotometricDistortion, RandomLabelCrop, segmentation_train_transform


def _write(root: Path, labels: np.ndarray, names: str = "sky\ntree\nsea\n") -> Path:
    """A folder in ADE20K's layout with one image to train and one to validate on."""
    for part in ("training", "validation"):
        for kind in ("images", "annotations"):
            (root / kind / part).mkdir(parents=True)
        Image.new("RGB", labels.shape[::-1], (200, 100, 50)).save(root / "images" / part / "a.jpg")
        Image.fromarray(labels).save(root / "annotations" / part / "a.png")
    (root / "classes.txt").write_text(names)
    return root


LABELS = np.array([[0, 1, 2, 3]] * 3, dtype=np.uint8)


def test_labels_are_shifted_and_zero_is_ignored(tmp_path: Path) -> None:
    images, _ = load_ade20k(_write(tmp_path, LABELS))
    image, target, problems = images.load(0)
    assert tuple(image.shape) == (3, 3, 4) and not problems
    assert target["label_map"].tolist() == [[IGNORE, 0, 1, 2]] * 3
    assert images.class_names == ["sky", "tree", "sea"]


def test_labels_above_the_classes_are_ignored_and_named(tmp_path: Path) -> None:
    images, _ = load_ade20k(_write(tmp_path, np.array([[1, 4, 255, 3]], dtype=np.uint8)))
    _, target, problems = images.load(0)
    assert target["label_map"].tolist() == [[0, IGNORE, IGNORE, 2]]
    assert [(Path(problem.where).name, problem.kind) for problem in problems] == [
        ("a.png", "label values above the 3 classes: these pixels are ignored")
    ]
    (batch,) = make_dense_loader(images, segmentation_train_transform((4, 4), None), 1)
    assert batch["problems"] == problems


def test_the_published_table_of_classes_is_understood(tmp_path: Path) -> None:
    root = _write(tmp_path / "ADEChallengeData2016", LABELS)
    (root / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.15\t11\t1\t1\twall\n2\t0.1\t6\t0\t1\tbuilding, edifice\n3\t1\t1\t1\t1\tsky\n"
    )
    assert load_ade20k(tmp_path)[0].class_names == ["wall", "building, edifice", "sky"]


def test_files_without_a_partner_are_named(tmp_path: Path) -> None:
    root = _write(tmp_path, LABELS)
    Image.new("RGB", (4, 3)).save(root / "images/training/b.jpg")
    Image.new("L", (4, 3)).save(root / "annotations/training/c.png")
    images, _ = load_ade20k(root)
    assert [(Path(problem.where).name, problem.kind) for problem in images.problems] == [
        ("b.jpg", "image has no label map: left out"),
        ("c.png", "label map has no image: left out"),
    ]
    assert len(images) == 1


@pytest.mark.parametrize(
    ("label_map", "reason"),
    [
        (Image.new("L", (4, 4)), "is 4x3, but its label map is 4x4"),
        (Image.new("RGB", (4, 3)), "has 3 channels; expected one"),
    ],
)
def test_a_label_map_that_does_not_fit_is_listed_as_unreadable(
    label_map: Image.Image, reason: str, tmp_path: Path
) -> None:
    images, _ = load_ade20k(_write(tmp_path, LABELS))
    label_map.save(images.label_maps[0])
    (batch,) = make_dense_loader(images, segmentation_train_transform((4, 4), None), 1)
    assert batch["images"] == [] and reason in batch["unreadable"][0].reason


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "classes.txt").unlink(), "names no classes"),
        (lambda root: (root / "classes.txt").write_text("\n"), "names 0 classes"),
        (lambda root: (root / "classes.txt").write_text("x\n" * 255), "names 255 classes"),
        (lambda root: (root / "annotations/training/a.png").unlink(), "not one has a label map"),
        (lambda root: (root / "images").rename(root / "pictures"), "no such folder"),
    ],
)
def test_a_folder_that_cannot_be_used_is_explained(break_it, message: str, tmp_path: Path) -> None:
    root = _write(tmp_path, LABELS)
    break_it(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_ade20k(root)


def test_crops_avoid_a_single_class() -> None:
    # One column in eight is of class 1: a crop of 4 x 4 holds it in every second place at most.
    labels = torch.zeros(32, 32, dtype=torch.uint8)
    labels[:, ::8] = 1
    target = {"label_map": tv_tensors.Mask(labels)}
    image = tv_tensors.Image(torch.zeros(3, 32, 32))
    shares = []
    for largest_share in (0.99, 1.1):
        crop = RandomLabelCrop((4, 4), largest_share)
        shares.append(np.mean([len(crop(image, target)[1]["label_map"].unique()) == 2 for _ in range(100)]))
    assert shares[0] > 0.95


def test_labels_to_ignore_do_not_count_as_a_class() -> None:
    labels = torch.full((8, 8), IGNORE, dtype=torch.uint8)
    labels[:, :2] = 1
    image, target = RandomLabelCrop((8, 8), 0.75)(
        tv_tensors.Image(torch.zeros(3, 8, 8)), {"label_map": tv_tensors.Mask(labels)}
    )
    assert tuple(image.shape) == (3, 8, 8) and target["label_map"].unique().tolist() == [1, IGNORE]


def test_the_pipeline_gives_crops_of_one_size_padded_with_labels_to_ignore() -> None:
    transform = segmentation_train_transform((64, 48), short_side=40, long_side=100, ratios=(0.5, 1.0))
    for _ in range(5):
        image, target = transform(
            tv_tensors.Image(torch.randint(0, 256, (3, 30, 50), dtype=torch.uint8)),
            {"label_map": tv_tensors.Mask(torch.randint(0, 3, (30, 50), dtype=torch.uint8))},
        )
        assert tuple(image.shape) == (3, 64, 48) and tuple(target["label_map"].shape) == (64, 48)
        assert image.min() >= 0 and image.max() <= 1
        assert set(target["label_map"].unique().tolist()) == {0, 1, 2, IGNORE}
        assert (target["label_map"][41:] == IGNORE).all()


def test_image_and_labels_move_together() -> None:
    labels = torch.zeros(60, 80, dtype=torch.uint8)
    labels[10:40, 30:70] = 1
    image = (labels * 200).expand(3, -1, -1).contiguous()
    transform = segmentation_train_transform(
        (40, 40), short_side=120, long_side=200, ratios=(1.0, 2.0), photometric=False
    )
    for _ in range(5):
        pixels, target = transform(tv_tensors.Image(image), {"label_map": tv_tensors.Mask(labels)})
        counted = target["label_map"] != IGNORE
        agree = ((pixels[0] > 0.4) == (target["label_map"] == 1))[counted]
        assert agree.float().mean() > 0.97  # edges are interpolated


def test_distortion_changes_colours_within_bounds_and_not_the_labels() -> None:
    image = tv_tensors.Image(torch.rand(3, 16, 16))
    labels = tv_tensors.Mask(torch.zeros(16, 16, dtype=torch.uint8))
    changed = 0
    for _ in range(20):
        distorted, target = PhotometricDistortion()(image, {"label_map": labels})
        assert distorted.min() >= 0 and distorted.max() <= 1
        assert torch.equal(target["label_map"], labels)
        changed += not torch.equal(distorted, image)
    assert changed > 10
