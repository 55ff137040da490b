from itertools import pairwise

import numpy as np
from PIL import Image

from visionssm.tasks.overlay import DrawnObject, class_color, draw_label_map, draw_objects


def test_neighbouring_classes_have_different_colours() -> None:
    colors = [class_color(label) for label in range(20)]
    assert len(set(colors)) == 20
    assert all(max(abs(a - b) for a, b in zip(x, y, strict=True)) > 60 for x, y in pairwise(colors))


def test_boxes_and_masks_are_where_they_belong() -> None:
    mask = np.zeros((60, 80), dtype=bool)
    mask[30:40, 40:50] = True
    drawn = np.array(draw_objects(Image.new("RGB", (80, 60), "white"), [DrawnObject((36, 26, 56, 46), 0, "0", mask)]))
    assert drawn.shape == (480, 640, 3)
    inside, border, outside = drawn[280, 360], drawn[300, 288], drawn[440, 600]
    assert inside.tolist() == [round(0.55 * 255 + 0.45 * part) for part in class_color(0)]
    assert border.tolist() == list(class_color(0))
    assert outside.tolist() == [255, 255, 255]


def test_large_images_keep_their_size() -> None:
    assert draw_objects(Image.new("RGB", (800, 500)), []).size == (800, 500)


def test_the_legend_names_what_is_there_and_values_that_are_no_class_stay_as_they_are() -> None:
    labels = np.full((50, 50), 255)
    labels[:10] = 1
    drawn = np.array(draw_label_map(Image.new("RGB", (50, 50), "white"), labels, ["sky", "sea"]))
    assert drawn[20, 20].tolist() == [round(0.4 * 255 + 0.6 * part) for part in class_color(1)]
    assert drawn[400, 20].tolist() == [255, 255, 255]
    legend = drawn[:, 500:]
    colors = {tuple(pixel) for pixel in legend.reshape(-1, 3).tolist()}
    assert class_color(1) in colors and class_color(0) not in colors
