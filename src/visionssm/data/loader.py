"""Loaders whose every batch is a function of the seed, the epoch and the position in it, and that resume exactly.

Nothing depends on the state of a global random generator, on the number of workers, or on what was loaded before: a run
that starts again in the middle of an epoch sees the same pixels as one that was never interrupted.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from visionssm.data.images import LabeledImages
from visionssm.data.transforms import Transform


class Draw(NamedTuple):
    """One image of an epoch: `position` counts the images of the epoch, over all processes."""

    epoch: int
    position: int
    image: int  # its place in the data set


class Unreadable(NamedTuple):
    """An image that couldn't be decoded."""

    name: str
    reason: str


class Batch(TypedDict):
    """What a loader yields. The images that couldn't be read aren't in `images`: they are listed beside them."""

    images: torch.Tensor  # (batch, channels, H, W), float32
    labels: torch.Tensor  # (batch,), int64
    indices: torch.Tensor  # (batch,), int64: position in the data set
    unreadable: list[Unreadable]


def random_seed(*key: int) -> int:
    """A well-mixed 63-bit seed from any numbers.

    Example:
        >>> random_seed(0, 1) == random_seed(0, 1), random_seed(0, 1) == random_seed(1, 0)
        (True, False)
    """
    high, low = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)


def seed_everything(*key: int) -> None:
    """Seed the generators of Python, NumPy and torch (all devices) from any numbers."""
    seed = random_seed(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def fixed_randomness(*key: int) -> Iterator[None]:
    """Seed the CPU generators of Python, NumPy and torch inside the block, and put them back after it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = random_seed(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class TransformedImages(Dataset):
    """A data set as a loader sees it: decodes and transforms one draw, with randomness that belongs to the draw."""

    def __init__(self, images: LabeledImages, transform: Transform, seed: int):
        self.images = images
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, draw: Draw) -> tuple[torch.Tensor, int, int] | Unreadable:
        try:
            image = self.images.load(draw.image)
        except OSError as error:
            return Unreadable(self.images.name(draw.image), str(error))
        with fixed_randomness(self.seed, draw.epoch, draw.position):
            return self.transform(image), self.images.labels[draw.image], draw.image


class EpochSampler(Sampler[list[Draw]]):
    """Batches of one process. Global batch g of an epoch is the same set of images for any number of processes.

    Args:
        length: images in the data set.
        batch_size: images per batch and process.
        shuffle: a new order in every epoch; else the order of the data set.
        drop_last: leave out the images at the end of the order that don't fill a global batch, unless there is no
            full batch at all.
        seed: chooses the orders.
        rank, world_size: this process and the number of processes.
        repeats: repeated augmentation (Hoffer et al. 2020): an image comes so many times in a row, each time changed in
            another way. The epoch stays as long, and has as many times fewer images. The versions of an image go to
            different processes, as far as there are enough, as in the published runs.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 1,
    ):
        self.length = length
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.repeats = repeats
        global_batch = batch_size * world_size
        self.num_batches = (
            length // global_batch if drop_last and length >= global_batch else -(-length // global_batch)
        )
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(random_seed(self.seed, self.epoch))
            order = torch.randperm(self.length, generator=generator).tolist()
        else:
            order = list(range(self.length))
        for batch in range(self.first_batch, self.num_batches):
            yield [Draw(self.epoch, position, order[position // self.repeats]) for position in self._positions(batch)]

    def _positions(self, batch: int) -> range:
        """Which images of the epoch's order are in a batch of this process."""
        start = batch * self.world_size * self.batch_size
        if self.repeats > 1:
            end = min(start + self.world_size * self.batch_size, self.length)
            return range(start + self.rank, end, self.world_size)
        start += self.rank * self.batch_size
        return range(start, min(start + self.batch_size, self.length))


class ResumableLoader(DataLoader):
    """A `DataLoader` over `TransformedImages` that knows its epoch and its place in it, and can be put there.

    Every iteration is one epoch; the next one follows on it. `state_dict` counts the batches that were handed out, not
    those that workers have prepared.
    """

    def __init__(self, images: TransformedImages, sampler: EpochSampler, **kwargs: Any):
        super().__init__(images, batch_sampler=sampler, **{"collate_fn": collate, **kwargs})
        self.draws = sampler
        self.epoch = 0
        self.batches_done = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # The engine asks for the number of batches and never runs into the end, so the turn of the epoch is seen here.
        if self.batches_done >= len(self.draws):
            self.epoch += 1
            self.batches_done = 0
        self.draws.epoch = self.epoch
        self.draws.first_batch = self.batches_done
        for batch in super().__iter__():
            self.batches_done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch, and batches of it that were handed out."""
        return {"epoch": self.epoch, "batches_done": self.batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batch at which `state` was taken."""
        self.epoch = state["epoch"]
        self.batches_done = state["batches_done"]


def collate(samples: list[tuple[torch.Tensor, int, int] | Unreadable]) -> Batch:
    """Stack the images that were read, and list those that were not."""
    read = [sample for sample in samples if not isinstance(sample, Unreadable)]
    return Batch(
        images=torch.stack([image for image, _, _ in read]) if read else torch.empty(0),
        labels=torch.tensor([label for _, label, _ in read], dtype=torch.int64),
        indices=torch.tensor([index for _, _, index in read], dtype=torch.int64),
        unreadable=[sample for sample in samples if isinstance(sample, Unreadable)],
    )


def make_loader(
    images: LabeledImages,
    transform: Transform,
    batch_size: int,
    training: bool = False,
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    repeats: int = 1,
) -> ResumableLoader:
    """A loader for training (shuffled, full batches only) or for evaluation (in order, every image).

    Raises:
        ValueError: batch_size is below 1, or workers below 0.

    Example:
        >>> from visionssm.data import Preprocessing, eval_transform, load_digits
        >>> preprocessing = Preprocessing((1, 32, 32), "bicubic", (0.5,), (0.5,), crop_pct=1.0, crop_mode="center")
        >>> loader = make_loader(load_digits().val, eval_transform(preprocessing), batch_size=100)
        >>> [tuple(batch["images"].shape) for batch in loader]
        [(100, 1, 32, 32), (43, 1, 32, 32)]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    from visionssm.data.shards import ShardSampler, shard_numbers  # which is built on this module

    shards = shard_numbers(images) if training else None
    if shards is None:
        sampler = EpochSampler(len(images.labels), batch_size, training, training, seed, rank, world_size, repeats)
    elif repeats > 1:
        raise ValueError("repeated augmentation isn't available for shards; use the images as a folder or a tar")
    else:
        sampler = ShardSampler(shards, batch_size, seed, rank, world_size)
    return ResumableLoader(
        TransformedImages(images, transform, seed),
        sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
    )
