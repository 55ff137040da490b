"""Folders of images with one sub-folder per class, and lists of image files."""

import glob
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from visionssm.data.images import Splits, hash_lines, stratified_split

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
VAL_NAMES = ("val", "valid", "validation")


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
        """Hash of paths below the root, file sizes and labels; the pixels aren't read."""
        files = zip(self.paths, self.labels, strict=True)
        lines = [f"{path.relative_to(self.root)} {path.stat().st_size} {label}" for path, label in files]
        return hash_lines([*self.class_names, *lines])

    def subset(self, indices: list[int]) -> "FolderImages":
        """The files at `indices`."""
        paths, labels = [self.paths[i] for i in indices], [self.labels[i] for i in indices]
        return FolderImages(self.root, paths, labels, self.class_names)


def read_image(path: str | Path) -> Image.Image:
    """Read and fully decode an image file.

    Raises:
        OSError: the file is missing, isn't an image, or is cut short or damaged; the message is the reason.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except FileNotFoundError:
        raise
    except Image.UnidentifiedImageError as error:
        size = Path(path).stat().st_size
        raise OSError("the file is empty" if size == 0 else "not an image in a format that Pillow reads") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise OSError(f"damaged image: {error}") from error


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
    root = _existing_folder(root)
    name = root.resolve().name or "images"
    train_folder = root / "train"
    if not train_folder.is_dir():
        images = scan_class_folders(root)
        train, val = _split(images, val_share, split_seed)
        return Splits(name, train, val, None)
    train = scan_class_folders(train_folder)
    val_folder = next((root / candidate for candidate in VAL_NAMES if (root / candidate).is_dir()), None)
    test_folder = root / "test"
    # The images of a test folder without class folders have no labels: nothing can be measured on them.
    has_labels = test_folder.is_dir() and any(_class_folders(test_folder))
    test = scan_class_folders(test_folder, train.class_names) if has_labels else None
    if val_folder is None:
        train, val = _split(train, val_share, split_seed)
    else:
        val = scan_class_folders(val_folder, train.class_names)
    return Splits(name, train, val, test)


def scan_class_folders(folder: str | Path, class_names: list[str] | None = None) -> FolderImages:
    """List the images of a folder with one sub-folder per class.

    Args:
        folder: the folder; its sub-folders are the classes, in alphabetical order.
        class_names: the classes of a trained model. Then the sub-folders must be some of these, and labels follow
            this list.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: see `load_image_folder`.
    """
    folder = _existing_folder(folder)
    found = [path.name for path in _class_folders(folder)]
    if not found:
        loose = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())
        what = f"has {loose} images but no class folders" if loose else "is empty: it has no class folders"
        raise ValueError(f"{folder} {what}; expected one folder per class, such as {folder}/cat/1.jpg")
    if class_names is None:
        class_names = found
        if len(found) < 2:
            raise ValueError(f"{folder} has one class only ({found[0]}); a classifier needs at least two class folders")
    unknown = sorted(set(found) - set(class_names))
    if unknown:
        raise ValueError(
            f"{folder} has {_listing(unknown, 'class')} that the model or the training set doesn't know; "
            f"known are {_listing(class_names, 'class')}"
        )
    paths: list[Path] = []
    labels: list[int] = []
    empty: list[str] = []
    for class_name in found:
        images = list_images(folder / class_name)
        if not images:
            empty.append(class_name)
        paths += images
        labels += [class_names.index(class_name)] * len(images)
    if empty:
        raise ValueError(
            f"{folder} has {_listing(empty, 'class folder')} without images; add images or remove the folder"
            + ("s" if len(empty) > 1 else "")
        )
    return FolderImages(folder, paths, labels, class_names)


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


def _split(images: FolderImages, share: float, seed: int) -> tuple[FolderImages, FolderImages]:
    for label, class_name in enumerate(images.class_names):
        if images.labels.count(label) < 2:
            raise ValueError(
                f"class {class_name} of {images.root} has 1 image: too few to hold one back for validation; "
                "add images, or lay the data out as train/ and val/"
            )
    train, val = stratified_split(images.labels, share, seed)
    return images.subset(train), images.subset(val)


def _listing(names: list[str], noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s") if len(names) > 1 else noun
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} {plural} ({shown})"
