"""Sliding windows, several sizes and mirror images."""

import pytest
import torch
import torch.nn.functional as F

from visionssm.heads import segment, slide


def model(images):
    """Depends on the surroundings and on the window's own edges."""
    kernel = torch.linspace(-1, 1, 2 * 3 * 25).reshape(2, 3, 5, 5)
    return F.conv2d(images, kernel, padding=2) + torch.arange(images.shape[3]) * 0.01


def image(H=21, W=34):
    return torch.rand(3, H, W, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("window", [34, (21, 34), (50, 60)])
def test_one_window_is_the_whole_image(window):
    x = image()[None]
    assert torch.equal(slide(model, x, window, 8), model(x))


@pytest.mark.parametrize(
    ("window", "stride"), [((8, 8), (8, 8)), ((8, 10), (5, 7)), ((8, 40), (3, 40)), ((1, 1), (1, 1))]
)
def test_overlaps_are_averaged(window, stride):
    """Every window by hand: rows and columns start every stride, the last ones end at the edge."""
    x = image()[None]
    total, times = torch.zeros(1, 2, 21, 34), torch.zeros(21, 34)
    tops, lefts = [], []
    for starts, side, size, step in ((tops, 21, window[0], stride[0]), (lefts, 34, window[1], stride[1])):
        place = 0
        while True:
            starts.append(max(min(place, side - size), 0))
            if place + size >= side:
                break
            place += step
    for top in tops:
        for left in lefts:
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            total[:, :, rows, columns] += model(x[:, :, rows, columns])
            times[rows, columns] += 1
    assert times.min() >= 1
    torch.testing.assert_close(slide(model, x, window, stride), total / times)


def test_a_pointwise_model_does_not_notice_windows():
    pointwise = lambda x: torch.stack([x.sum(1), x.square().mean(1)], 1)  # noqa: E731
    x = image()[None]
    torch.testing.assert_close(slide(pointwise, x, 9, 4), pointwise(x))
    torch.testing.assert_close(segment(pointwise, x[0], window=9), pointwise(x)[0].softmax(0))


def test_gaps_between_windows_are_refused():
    with pytest.raises(ValueError, match=r"stride: got 9, need 1 to the window's 8"):
        slide(model, image()[None], 8, 9)


def test_probabilities_are_averaged_over_sizes_and_mirror_images():
    x = image(20, 30)
    found = segment(model, x, ratios=(1.0, 1.5), flip=True)
    total = 0
    for size in ((20, 30), (30, 45)):
        scaled = F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)
        for mirrored in (False, True):
            logits = model(scaled.flip(3) if mirrored else scaled)
            logits = logits.flip(3) if mirrored else logits
            total = total + F.interpolate(logits, size=(20, 30), mode="bilinear", align_corners=False)[0].softmax(0)
    torch.testing.assert_close(found, total / 4)
    torch.testing.assert_close(found.sum(0), torch.ones(20, 30))


def test_mirror_images_make_the_result_mirror():
    x = image()
    a, b = segment(model, x, flip=True), segment(model, x.flip(2), flip=True)
    torch.testing.assert_close(a, b.flip(2))


def test_published_test_size():
    seen = []

    def spy(images):
        seen.append(tuple(images.shape[2:]))
        return images[:, :2]

    segment(spy, image(21, 34), short_side=42, long_side=200)
    segment(spy, image(21, 34), short_side=42, long_side=51)
    segment(spy, image(21, 34), short_side=42, long_side=200, ratios=(0.5, 1.0))
    assert seen == [(42, 68), (32, 51), (21, 34), (42, 68)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 512}, "need both or none"),
        ({"stride": 3}, "a window for a stride"),
        ({"ratios": ()}, "need a ratio"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        segment(model, image(), **options)
