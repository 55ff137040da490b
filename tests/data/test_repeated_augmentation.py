"""Repeated augmentation: an epoch has a third of the images, three versions of each, spread over the processes."""

from collections import Counter

import pytest
import torch

from visionssm.data import Preprocessing, load_digits
from visionssm.data.loader import EpochSampler, make_loader
from visionssm.data.transforms import train_transform


def _epoch(length: int, batch_size: int, world_size: int, repeats: int, epoch: int = 0) -> list[list[list]]:
    """Draws by process and batch."""
    samplers = [
        EpochSampler(length, batch_size, True, True, 0, rank, world_size, repeats) for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.epoch = epoch
    return [list(sampler) for sampler in samplers]


def test_an_epoch_is_as_long_and_has_a_third_of_the_images():
    (batches,) = _epoch(100, 6, 1, 3)
    counts = Counter(draw.image for batch in batches for draw in batch)
    assert [len(batch) for batch in batches] == [6] * 16
    assert set(counts.values()) == {3} and len(counts) == 32


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_every_number_of_processes_sees_the_same_global_batches(world_size):
    (whole,) = _epoch(100, 12, 1, 3)
    parts = _epoch(100, 12 // world_size, world_size, 3)
    for number, batch in enumerate(whole):
        assert sorted(draw for part in parts for draw in part[number]) == batch


def test_the_versions_of_an_image_go_to_different_processes():
    for number in range(5):
        holders: dict[int, list[int]] = {}
        for rank, part in enumerate(_epoch(90, 6, 3, 3)):
            for draw in part[number]:
                holders.setdefault(draw.image, []).append(rank)
        assert all(sorted(ranks) == [0, 1, 2] for ranks in holders.values())


def test_all_images_come_over_the_epochs_and_the_order_changes():
    epochs = [[draw.image for batch in _epoch(30, 3, 1, 3, epoch)[0] for draw in batch] for epoch in range(30)]
    assert epochs[0] != epochs[1]
    assert {image for epoch in epochs for image in epoch} == set(range(30))


def test_the_versions_of_an_image_differ():
    preprocessing = Preprocessing((3, 16, 16), "bicubic", (0.5,) * 3, (0.5,) * 3, 1.0, "center")
    transform = train_transform(preprocessing, (0.2, 1.0), (0.75, 4 / 3), 0.5, 0.4, None, 0.0, interpolation="random")
    loader = make_loader(load_digits().train, transform, 6, training=True, repeats=3)
    batch = next(iter(loader))
    first = batch["images"][batch["indices"] == batch["indices"][0]]
    assert len(first) == 3
    assert not any(torch.equal(first[i], first[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_interpolation_of_crops_can_be_chosen():
    preprocessing = Preprocessing((1, 32, 32), "bicubic", (0.5,), (0.5,), 1.0, "center")
    images = load_digits().train

    def crop(interpolation: str | None) -> torch.Tensor:
        transform = train_transform(preprocessing, (1.0, 1.0), (1.0, 1.0), 0.0, 0.0, None, 0.0, interpolation)
        return transform(images.load(0))

    assert torch.equal(crop(None), crop("bicubic"))
    assert not torch.allclose(crop("bilinear"), crop("bicubic"), atol=1e-2)
    drawn = {crop("random").numpy().tobytes() for _ in range(20)}
    assert drawn == {crop("bilinear").numpy().tobytes(), crop("bicubic").numpy().tobytes()}
