import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from visionssm.data import Preprocessing, load_digits, load_image_folder, make_loader, train_transform
from visionssm.data.loader import EpochSampler, ResumableLoader, fixed_randomness

GREY = Preprocessing((1, 16, 16), "bicubic", (0.5,), (0.5,), crop_pct=1.0, crop_mode="center")
TRANSFORM = train_transform(GREY, (0.5, 1.0), (0.75, 1.33), 0.0, 0.0, None, random_erasing=0.3)


def _loader(**options) -> ResumableLoader:
    return make_loader(load_digits().val, TRANSFORM, **{"batch_size": 20, "training": True, "seed": 3, **options})


def _same(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a["images"], b["images"]) for a, b in zip(first, second, strict=True)
    )


def test_an_epoch_shows_every_image_once_and_the_next_one_in_another_order() -> None:
    loader = _loader(batch_size=11)
    first, second = ([index for batch in loader for index in batch["indices"].tolist()] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(143))
    assert first != second


@pytest.mark.parametrize("batches", [0, 1, 6, 7, 10])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_is_put_back_continues_with_the_same_pixels(batches: int, workers: int) -> None:
    whole = _loader()
    everything = [batch for _ in range(3) for batch in whole]
    first = _loader(workers=workers)
    seen = 0
    while seen < batches:
        seen += sum(1 for _ in islice(first, batches - seen))
    second = _loader()
    second.load_state_dict(first.state_dict())
    rest = [batch for _ in range(3) for batch in second][: len(everything) - batches]
    assert _same(rest, everything[batches:])


def test_global_random_generators_neither_matter_nor_move() -> None:
    first = list(_loader())
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    states = random.getstate(), np.random.get_state()[1].tolist()
    with fixed_randomness(1):
        torch.rand(3)
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(99)))
    assert _same(first, list(_loader()))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_out_the_batches_of_one_process(world_size: int) -> None:
    one = list(EpochSampler(100, 4 * world_size, shuffle=True, drop_last=True, seed=5))
    several = [
        list(EpochSampler(100, 4, shuffle=True, drop_last=True, seed=5, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    together = [[draw for rank in several for draw in rank[batch]] for batch in range(len(one))]
    assert together == one


def test_a_data_set_smaller_than_a_batch_is_one_batch() -> None:
    assert [len(batch) for batch in EpochSampler(5, 64, shuffle=True, drop_last=True, seed=0)] == [5]


def test_images_that_cannot_be_read_are_listed_and_left_out(class_folders: Path) -> None:
    images = load_image_folder(class_folders).train
    Path(images.name(2)).write_bytes(b"broken")
    batches = list(make_loader(images, TRANSFORM, batch_size=5))
    assert sum(len(batch["labels"]) for batch in batches) == len(images.labels) - 1
    assert [(item.name, item.reason) for batch in batches for item in batch["unreadable"]] == [
        (images.name(2), "not an image in a format that Pillow reads")
    ]
