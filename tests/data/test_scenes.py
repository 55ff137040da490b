from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionssm.cli.main import main
from visionssm.data.ade20k import load_ade20k
from visionssm.data.coco import load_coco
from visionssm.data.digits import load_digits
from visionssm.data.scenes import compose_scene, make_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("data") / "scenes", images=12, size=96, seed=3)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_arguments_write_the_same_bytes_and_another_seed_others(scenes: Path, tmp_path: Path) -> None:
    again, other = (make_scenes(tmp_path / str(seed), images=12, size=96, seed=seed) for seed in (3, 4))
    assert _files(again) == _files(scenes)
    assert _files(other) != _files(scenes)
    # 15 scenes in two layouts, 15 label maps, two annotation files, the names of the classes, and what they were made with.
    assert len(_files(scenes)) == 3 * 15 + 4


def test_both_readers_see_the_same_scenes(scenes: Path) -> None:
    coco, ade = load_coco(scenes), load_ade20k(scenes)
    assert ade[0].class_names == ["background", *coco[0].class_names]
    for objects, labels in zip(coco, ade, strict=True):
        assert not objects.problems and not labels.problems
        assert len(objects) == len(labels) == (12 if objects is coco[0] else 3)
        for index in range(len(objects)):
            image, target, _ = objects.load(index)
            same_image, label_target, problems = labels.load(index)
            assert np.array_equal(image, same_image) and not problems
            # Label maps number the background 0, and digit d, whose label as an object is d + 1, as d + 1.
            expected = np.zeros((96, 96), np.uint8)
            for label, mask in zip(target["labels"].tolist(), np.asarray(target["masks"]), strict=True):
                assert not expected[mask == 1].any(), "masks of visible pixels don't overlap"
                expected[mask == 1] = label
            assert np.array_equal(expected, label_target["label_map"])


def test_boxes_are_the_extents_of_the_masks(scenes: Path) -> None:
    for index in range(12):
        _, target, _ = load_coco(scenes)[0].load(index)
        for box, mask in zip(target["boxes"].tolist(), np.asarray(target["masks"]), strict=True):
            rows, columns = np.nonzero(mask)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_digits_overlap_differ_in_size_and_stay_half_visible() -> None:
    digits = load_digits().train
    scenes = [compose_scene(digits, 128, np.random.default_rng(seed)) for seed in range(40)]
    heights = [int(mask.any(1).sum()) for scene in scenes for mask in scene.masks]
    assert min(heights) < 52 and max(heights) > 75
    assert {digit for scene in scenes for digit in scene.digits} == set(range(10))
    # Boxes overlap: digits lie over one another.
    in_boxes = [sum(np.outer(mask.any(1), mask.any(0)).astype(int) for mask in scene.masks).max() for scene in scenes]
    assert sum(count > 1 for count in in_boxes) >= 5


def test_an_inked_pixel_differs_from_the_background() -> None:
    scene = compose_scene(load_digits().train, 96, np.random.default_rng(1))
    background = scene.image[~scene.masks.any(0)].mean()
    for mask in scene.masks:
        assert abs(scene.image[mask].mean() - background) > 20


def test_the_command_writes_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "make-scenes", str(tmp_path / "s"), "--images", "2", "--size", "48", "--seed", "1"]) == 0
    assert "visionssm train --task detection" in capsys.readouterr().out
    with Image.open(tmp_path / "s/coco/train2017/000000000001.png") as image:
        assert image.size == (48, 48)
    assert not (tmp_path / "s.tmp").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "0"], "images is 0"),
        (["--size", "8"], "size is 8"),
        (["--seed", "-1"], "seed is -1"),
        ([], "isn't an empty folder"),
    ],
)
def test_bad_arguments_are_answered_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["data", "make-scenes", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
