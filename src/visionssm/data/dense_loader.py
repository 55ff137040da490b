"""Loaders of images with boxes, masks or labels: batches of like shapes, that resume exactly as those for labels do."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypedDict

import torch
from torch.utils.data import Dataset

from visionssm.data.dense_transforms import DenseTransform
from visionssm.data.loader import Draw, EpochSampler, ResumableLoader, Unreadable, fixed_randomness, random_seed
from visionssm.data.problems import Problem


class DenseImages(Protocol):
    """What the loaders need of a data set: see `CocoImages` and `LabelMapImages`."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[torch.Tensor, Any, list[Problem]]:
        """Image (3, H, W), target and problems of image `index`; OSError with the reason when it can't be used."""
        ...

    def name(self, index: int) -> str:
        """What image `index` is called in lists and messages: its path."""
        ...


class DenseSample(TypedDict):
    """One image, transformed, with its target."""

    image: torch.Tensor
    target: dict[str, torch.Tensor]
    index: int
    problems: list[Problem]


class DenseBatch(TypedDict):
    """What a loader yields. Images may differ in size; those that couldn't be read are listed beside them."""

    images: list[torch.Tensor]  # (3, H, W) each, float32, 0 to 1
    targets: list[dict[str, torch.Tensor]]  # boxes, labels and masks, or a label_map
    indices: torch.Tensor  # (batch,), int64: position in the data set
    unreadable: list[Unreadable]
    problems: list[Problem]


class TransformedScenes(Dataset):
    """A data set as a loader sees it: decodes and transforms one draw, with randomness that belongs to the draw."""

    def __init__(self, images: DenseImages, transform: DenseTransform, seed: int):
        self.images = images
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> DenseSample | Unreadable:
        try:
            image, target, problems = self.images.load(draw.image)
        except OSError as error:
            return Unreadable(self.images.name(draw.image), str(error))
        with fixed_randomness(self.seed, draw.epoch, draw.position):
            image, target = self.transform(image, target)
        plain = {name: value.as_subclass(torch.Tensor) for name, value in target.items()}
        return DenseSample(image=image.as_subclass(torch.Tensor), target=plain, index=draw.image, problems=problems)


class ShapeSampler(EpochSampler):
    """Like `EpochSampler`, but the images of a batch are all wider than high, or all not: less padding.

    Images are drawn in a random order and wait until a global batch of their shape is full. What is left at the end makes
    mixed batches, so that an epoch has as many batches as without shapes.

    Args:
        wide: for every image, whether it is wider than high.
        further arguments: see `EpochSampler`.
    """

    def __init__(self, wide: Sequence[bool], *args: Any, **kwargs: Any):
        super().__init__(len(wide), *args, **kwargs)
        self.wide = wide

    def __iter__(self) -> Iterator[list[Draw]]:
        size = self.batch_size * self.world_size
        order = list(range(self.length))
        if self.shuffle:
            generator = torch.Generator().manual_seed(random_seed(self.seed, self.epoch))
            order = torch.randperm(self.length, generator=generator).tolist()
        batches = _batches_of_like_shapes(order, self.wide, size)
        for number in range(self.first_batch, self.num_batches):
            first = self.rank * self.batch_size
            images = batches[number][first : first + self.batch_size]
            start = number * size + first
            yield [Draw(self.epoch, start + offset, image) for offset, image in enumerate(images)]


def _batches_of_like_shapes(order: list[int], wide: Sequence[bool], size: int) -> list[list[int]]:
    batches: list[list[int]] = []
    waiting: dict[bool, list[int]] = {True: [], False: []}
    for image in order:
        group = waiting[wide[image]]
        group.append(image)
        if len(group) == size:
            batches.append(group.copy())
            group.clear()
    rest = waiting[True] + waiting[False]
    return batches + [rest[start : start + size] for start in range(0, len(rest), size)]


class StreamSampler(EpochSampler):
    """An epoch of any number of batches, taken from an endless stream: one random order of all images after another.

    Args:
        length, batch_size, seed, rank, world_size: see `EpochSampler`.
        num_batches: of an epoch.
    """

    def __init__(self, length: int, num_batches: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        super().__init__(length, batch_size, True, True, seed, rank, world_size)
        self.num_batches = num_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        orders: dict[int, list[int]] = {}
        size = self.batch_size * self.world_size
        for batch in range(self.first_batch, self.num_batches):
            start = batch * size + self.rank * self.batch_size
            draws = []
            for position in range(start, start + self.batch_size):
                passes, place = divmod(self.epoch * self.num_batches * size + position, self.length)
                if passes not in orders:
                    generator = torch.Generator().manual_seed(random_seed(self.seed, passes))
                    orders.clear()  # the stream never turns back
                    orders[passes] = torch.randperm(self.length, generator=generator).tolist()
                draws.append(Draw(self.epoch, position, orders[passes][place]))
            yield draws


def collate_dense(samples: list[DenseSample | Unreadable]) -> DenseBatch:
    """Put samples side by side; images aren't stacked, for they differ in size."""
    read = [sample for sample in samples if not isinstance(sample, Unreadable)]
    return DenseBatch(
        images=[sample["image"] for sample in read],
        targets=[sample["target"] for sample in read],
        indices=torch.tensor([sample["index"] for sample in read], dtype=torch.int64),
        unreadable=[sample for sample in samples if isinstance(sample, Unreadable)],
        problems=[problem for sample in read for problem in sample["problems"]],
    )


def make_dense_loader(
    images: DenseImages,
    transform: DenseTransform,
    batch_size: int,
    training: bool = False,
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    wide: Sequence[bool] | None = None,
    epoch_batches: int | None = None,
) -> ResumableLoader:
    """A loader for training (shuffled, full batches only) or for evaluation (in order, every image).

    Args:
        images: the data set.
        transform: from image and target to image and target.
        batch_size: images per batch and process.
        training: shuffled, full batches only.
        seed: of the order and of the transform.
        workers: processes that load images.
        rank, world_size: this process and the number of processes.
        pin_memory: for faster copies to a GPU.
        wide: for every image, whether it is wider than high: batches of like shapes then. None: as they come.
        epoch_batches: of an epoch, from an endless stream of images. None: every image once.

    Raises:
        ValueError: batch_size is below 1, or both `wide` and `epoch_batches` are given.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    options = (batch_size, training, training, seed, rank, world_size)
    if wide is not None and epoch_batches is not None:
        raise ValueError("batches of like shapes are drawn from epochs of every image once: give up epoch_batches")
    if epoch_batches is not None:
        sampler: EpochSampler = StreamSampler(len(images), epoch_batches, batch_size, seed, rank, world_size)
    elif wide is not None:
        sampler = ShapeSampler(wide, *options)
    else:
        sampler = EpochSampler(len(images), *options)
    return ResumableLoader(
        TransformedScenes(images, transform, seed),  # type: ignore[arg-type]  # the loader only indexes it
        sampler,
        collate_fn=collate_dense,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
    )
