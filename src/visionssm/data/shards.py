"""Shards of webdataset: tar files whose members NAME.jpg and NAME.cls are a sample, each read from beginning to end."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionssm.data.folder import PARTS
from visionssm.data.images import LabeledImages, Parts, Subset, listing
from visionssm.data.loader import Draw, EpochSampler
from visionssm.data.tar import TarImages, index_tars
from visionssm.data.tar_index import TarIndex

CLASS_FILES = ("classes.txt", "class_names.txt")
READERS = 8  # stretches that a process reads at the same time
BUFFER = 1024  # images of a stretch that are shuffled with each other


@dataclass(frozen=True)
class ShardImages(TarImages):
    """The images of some shards. Training reads them in the order of `shard_order`."""


def shard_parts(paths: Sequence[Path]) -> Parts:
    """Shards of webdataset: tar files in which NAME.jpg and NAME.cls (or NAME.json with a "label") are a sample.

    The folder or the name of a shard says which part it belongs to (`train-0001.tar`, `val/0001.tar`); if none does, all
    of it is for training. Names of the classes are read from `classes.txt` beside the shards, a name per line, if there
    is one; otherwise the labels themselves are the names.

    Raises:
        ValueError: damaged or empty shards, images without a label, labels that aren't in `classes.txt`.
    """
    tars = index_tars(paths)
    folder = paths[0].parent
    for tar in tars:
        bare = [name for name, label in zip(tar.names, tar.labels, strict=True) if not label]
        if bare:
            raise ValueError(
                f"{tar.path} has {listing(bare, 'image')} without a label; expected a member NAME.cls, or NAME.json with "
                'a "label", for every NAME.jpg'
            )
    class_names = _class_names(folder, sorted({label for tar in tars for label in tar.labels}))
    parts: Parts = {}
    for part in ("train", "val", "test"):
        chosen = [tar for tar in tars if shard_part(tar.path) == part]
        if chosen:
            labels = [label for tar in chosen for label in _labels(tar, class_names)]
            parts[part] = ShardImages(chosen, labels, class_names)
    return parts


def shard_part(path: Path) -> str:
    """The part that a shard belongs to, from its name or its folder's; "train" if neither says.

    Example:
        >>> shard_part(Path("imagenet1k-validation-07.tar")), shard_part(Path("data/test/07.tar")), shard_part(Path("07.tar"))
        ('val', 'test', 'train')
    """
    words = [*re.split(r"[^a-z]+", path.stem.lower()), path.parent.name.lower()]
    return next((PARTS[word] for word in words if word in PARTS), "train")


def _class_names(folder: Path, labels: list[str]) -> list[str]:
    for file in (folder / name for folder in (folder, folder.parent) for name in CLASS_FILES):
        if file.is_file():
            return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if all(label.isdecimal() for label in labels):
        return [str(number) for number in range(max(int(label) for label in labels) + 1)]
    return labels


def _labels(tar: TarIndex, class_names: list[str]) -> list[int]:
    """The places of a shard's labels, which are numbers or names."""
    places = {str(label): label for label in range(len(class_names))}
    places |= {name: label for label, name in enumerate(class_names)}
    unknown = [text for text in tar.labels if text not in places]
    if unknown:
        raise ValueError(
            f"{tar.path} has label {unknown[0]!r}, which isn't among the {listing(class_names, 'class')} of the shards"
        )
    return [places[text] for text in tar.labels]


def shard_numbers(images: LabeledImages) -> np.ndarray | None:
    """The shard of every image, if the images come from shards that are best read one after the other; else None."""
    if isinstance(images, Subset):
        numbers = shard_numbers(images.images)
        return None if numbers is None else numbers[np.asarray(images.indices, dtype=np.int64)]
    if not isinstance(images, ShardImages):
        return None
    return np.repeat(np.arange(len(images.tars)), [len(tar.names) for tar in images.tars])


class ShardSampler(EpochSampler):
    """Batches of one process in the order of `shard_order`; see `EpochSampler` for the arguments."""

    def __init__(self, shards: np.ndarray, batch_size: int, seed: int, rank: int, world_size: int):
        super().__init__(len(shards), batch_size, True, True, seed, rank, world_size)
        self.shards = shards

    def __iter__(self) -> Iterator[list[Draw]]:
        batches = shard_order(self.shards, self.batch_size, self.seed, self.epoch, self.rank, self.world_size)
        for batch in range(self.first_batch, self.num_batches):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield [Draw(self.epoch, start + place, image) for place, image in enumerate(batches[batch].tolist())]


def shard_order(
    shards: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int,
    world_size: int,
    readers: int = READERS,
    buffer: int = BUFFER,
) -> list[np.ndarray]:
    """The batches of one process in one epoch, such that shards are read from beginning to end, each by one process.

    The shards are put in a new order for each epoch, and this sequence of images is cut into stretches of whole batches,
    one for each reader of each process. A stretch is read in order, through a buffer from which images are drawn at
    random. The batches of a process come from its readers in turn, as PyTorch's loader asks its worker processes: with
    1, 2, 4 or 8 of them, a reader's files are open in one worker only.

    Each image is seen at most once in an epoch; those that don't fill a batch of every process are left out, other ones
    in each epoch. The order is a function of the arguments, and nothing is read to find it: a run continues in the
    middle of an epoch at once, and bit by bit whatever the number of workers. With another number of processes, the
    order is another one.

    Args:
        shards: the shard of every image, (images,).
        batch_size: images per batch and process.
        seed, epoch: choose the order.
        rank, world_size: this process and the number of processes.
        readers: stretches for each process.
        buffer: images that are shuffled with each other.

    Returns:
        For each batch, the places of its images in the data set.

    Example:
        >>> shards = np.repeat(np.arange(4), 6)
        >>> batches = shard_order(shards, 4, seed=0, epoch=0, rank=1, world_size=2, readers=1, buffer=3)
        >>> [batch.tolist() for batch in batches]
        [[2, 1, 0, 4], [3, 18, 20, 5], [19, 21, 22, 23]]
    """
    generator = np.random.default_rng([seed, epoch])
    turn = generator.permutation(int(shards.max()) + 1)
    sequence = np.argsort(turn[shards], kind="stable")
    batches = max(len(shards) // (batch_size * world_size), 1)
    per_reader = [len(range(reader, batches, readers)) for reader in range(readers)]
    ends = rank * batches + np.cumsum([0, *per_reader])
    stretches = [
        _through_buffer(
            sequence[ends[reader] * batch_size : ends[reader + 1] * batch_size],
            buffer,
            np.random.default_rng([seed, epoch, rank, reader]),
        )
        for reader in range(readers)
    ]
    return [
        stretches[batch % readers][batch // readers * batch_size : (batch // readers + 1) * batch_size]
        for batch in range(batches)
    ]


def _through_buffer(stretch: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """What comes out of a buffer of `size` images that is filled in order, and from which one is drawn at random."""
    out = stretch.copy()
    picks = generator.integers(0, size, len(stretch))
    held = out[:size].copy()
    for position, following in enumerate(stretch[size:]):
        slot = picks[position]
        out[position] = held[slot]
        held[slot] = following
    out[len(stretch) - len(held) :] = generator.permutation(held)
    return out
