"""Labelled images inside tar files, read where they lie: class folders in a tar, or one tar for each class.

Nothing is unpacked. Every image is read by its place, so that shuffling, splitting and continuing a run work as they do
for files in folders.
"""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from visionssm.data.folder import PARTS
from visionssm.data.images import Parts, hash_lines, subset
from visionssm.data.tar_index import TarIndex, index_tar, read_member


@dataclass(frozen=True)
class TarImages:
    """The images of some tar files, one after the other."""

    tars: list[TarIndex]
    labels: list[int]
    class_names: list[str]

    @cached_property
    def ends(self) -> np.ndarray:
        """How many images there are up to the end of each tar."""
        return np.cumsum([len(tar.names) for tar in self.tars])

    def place(self, index: int) -> tuple[int, int]:
        """The number of the tar that image `index` lies in, and the image's number in it."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        return number, index - (int(self.ends[number - 1]) if number else 0)

    def load(self, index: int) -> Image.Image:
        """Decode image `index`; OSError with the reason when it can't be decoded."""
        number, row = self.place(index)
        tar = self.tars[number]
        return read_member(tar.path, int(tar.offsets[row]), int(tar.sizes[row]))

    def name(self, index: int) -> str:
        """Path of the tar file, and name in it."""
        number, row = self.place(index)
        return f"{self.tars[number].path}/{self.tars[number].names[row]}"

    def fingerprint(self) -> str:
        """Hash of the names and sizes of the tar files and of what is in them; the pixels aren't read."""
        lines = [f"{tar.path.name} {tar.size} {hash_lines(tar.names)}" for tar in self.tars]
        return hash_lines([*self.class_names, *lines, str(self.labels)])


def tar_parts(path: Path) -> Parts:
    """A tar file with class folders, with `train/` and `val/` above them or not, or with one tar file per class.

    Raises:
        ValueError: the file can't be used; the message says why.
    """
    index = index_tar(path)
    names = [name.split("/") for name in index.names]
    # A folder that everything lies in says nothing, as long as there are class folders below it.
    while names and len({name[0] for name in names}) == 1 and all(len(name) > 2 for name in names):
        names = [name[1:] for name in names]
    if not names or any(len(name) < 2 for name in names):
        raise ValueError(
            f"{path} has {len(names)} images"
            + (", some of them in no folder" if names else "")
            + "; expected one folder "
            "per class inside it, with train/ and val/ above them or not, or one tar file per class"
        )
    if "train" in {name[0] for name in names}:
        found = [PARTS.get(name[0]) for name in names]
        classes = [name[1] if len(name) > 2 else None for name in names]
    else:
        found = ["train"] * len(names)
        classes = [name[0] for name in names]
    class_names = sorted({name for name in classes if name is not None})
    places = {name: label for label, name in enumerate(class_names)}
    everything = TarImages([index], [places.get(name or "", -1) for name in classes], class_names)
    rows = {
        part: [i for i, other in enumerate(found) if other == part and classes[i]] for part in ("train", "val", "test")
    }
    left_out = sum(part is None or not (classes[i] or part == "test") for i, part in enumerate(found))
    if left_out:
        print(
            f"left out: {left_out} images of {path} that lie in no class folder of train/, val/ or test/",
            file=sys.stderr,
        )
    return {part: subset(everything, chosen) for part, chosen in rows.items() if chosen}


def class_tar_parts(root: Path) -> Parts:
    """A folder with one tar file per class, or with `train/` and `val/` that have them."""
    folders = {PARTS[path.name]: path for path in sorted(root.iterdir()) if path.is_dir() and path.name in PARTS}
    return {part: class_tars(folder) for part, folder in (folders or {"train": root}).items()}


def class_tars(folder: Path) -> TarImages:
    """The images of a folder with one tar file per class, named like it."""
    tars = index_tars(sorted(folder.glob("*.tar")))
    class_names = [tar.path.stem for tar in tars]
    return TarImages(tars, [label for label, tar in enumerate(tars) for _ in tar.names], class_names)


def index_tars(paths: Sequence[Path]) -> list[TarIndex]:
    """The lists of several tar files.

    Raises:
        ValueError: files that are damaged or hold no images, all of them named.
    """
    from tqdm import tqdm

    indices: list[TarIndex] = []
    wrong: list[str] = []
    with ThreadPoolExecutor(8) as pool:  # going through headers is waiting for the disk
        futures = [pool.submit(index_tar, path, progress=False) for path in paths]
        for future in tqdm(futures, desc="listing tar files", unit=" files", delay=2, leave=False):
            try:
                indices.append(future.result())
            except ValueError as error:
                wrong.append(str(error))
    wrong += [f"{index.path} holds no images" for index in indices if not index.names]
    if wrong:
        more = f"; and {len(wrong) - 3} more files" if len(wrong) > 3 else ""
        raise ValueError("; ".join(wrong[:3]) + more)
    return indices
