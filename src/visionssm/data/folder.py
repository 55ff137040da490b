"""Folders of images with one sub-folder per class, and lists of image files."""

import glob
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from visionssm.data.images import Parts, Splits, hash_lines, listing, read_image, splits_of_parts

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
# Names of folders, files and columns that stand for a part of a data set.
PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class FolderImages:
    """Image files under a root folder, with a label each."""

    root: Path
    paths: list[Path]
    labels: list[int]
    class_names: list[str]

    def load(self, index: int) -> Image.Image:
        """Decode file `index`; OSError with the reason when it can't be decoded."""
        return read_image(self.paths[index])

    def name(self, index: int) -> str:
        """The path of file `index`."""
        return str(self.paths[index])

    def fingerprint(self) -> str:
        """Hash of paths below the root, file sizes and labels; the pixels aren't read. A missing file has size -1."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        files = zip(self.paths, self.labels, strict=True)
        lines = [f"{_below(path, self.root)} {_size(path)} {label}" for path, label in files]
        return hash_lines([*self.class_names, *lines])


def load_image_folder(root: str | Path, val_share: float = 0.2, split_seed: int = 0) -> Splits:
    """A folder of images, split for training.

    Two layouts are understood: `root/train/CLASS/*.jpg` with `root/val/CLASS/*.jpg` (and `root/test/...` if there is
    one), or `root/CLASS/*.jpg`, of which a stratified share is held back for validation. Files may lie deeper.

    Args:
        root: the folder.
        val_share: share of each class that is held back when there is no `val` folder.
        split_seed: chooses the images that are held back.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no class folders, fewer than two classes, a class folder without images, or a `val` or `test`
            folder with a class that `train` doesn't have.
    """
    return splits_of_parts(folder_parts(root), Path(root).resolve().name, str(root), val_share, split_seed)


def folder_parts(root: str | Path) -> Parts:
    """The parts of a folder, not split any further; without `train/` all of it is for training."""
    root = _existing_folder(root)
    if not (root / "train").is_dir():
        return {"train": scan_class_folders(root)}
    folders = {PARTS[path.name]: path for path in _class_folders(root) if path.name in PARTS}
    # The images of a test folder without class folders have no labels: nothing can be measured on them.
    if "test" in folders and not _class_folders(folders["test"]):
        del folders["test"]
    return {part: scan_class_folders(folder) for part, folder in folders.items()}


def scan_class_folders(folder: str | Path) -> FolderImages:
    """List the images of a folder with one sub-folder per class; the classes are in alphabetical order.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: see `load_image_folder`.
    """
    folder = _existing_folder(folder)
    class_names = [path.name for path in _class_folders(folder)]
    if not class_names:
        loose = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())
        what = f"has {loose} images but no class folders" if loose else "is empty: it has no class folders"
        raise ValueError(f"{folder} {what}; expected one folder per class, such as {folder}/cat/1.jpg")
    images = [list_images(folder / class_name) for class_name in class_names]
    empty = [name for name, paths in zip(class_names, images, strict=True) if not paths]
    if empty:
        raise ValueError(
            f"{folder} has {listing(empty, 'class folder')} without images; add images or remove the folder"
            + ("s" if len(empty) > 1 else "")
        )
    labels = [label for label, paths in enumerate(images) for _ in paths]
    return FolderImages(folder, [path for paths in images for path in paths], labels, class_names)


def list_images(folder: Path) -> list[Path]:
    """All image files below a folder, sorted, hidden ones left out."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return sorted(path for path in files if not path.name.startswith("."))


def find_images(patterns: list[str]) -> list[Path]:
    """Image files that a user means by files, folders (everything below them) and glob patterns.

    Files that are named one by one are taken whatever their suffix.

    Raises:
        FileNotFoundError: a name or a pattern matches nothing.
        ValueError: a folder holds no images.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_file():
            found.append(path)
            continue
        if path.is_dir():
            images = list_images(path)
            if not images:
                raise ValueError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        else:
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
            images = [match for match in matches if match.is_file() and match.suffix.lower() in IMAGE_SUFFIXES]
            if not images:
                raise FileNotFoundError(f"{pattern}: no such image, folder, or pattern that matches an image")
        found += images
    return list(dict.fromkeys(found))


def _existing_folder(path: str | Path) -> Path:
    folder = Path(path).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder with one sub-folder of images per class")
    return folder


def _class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _below(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
