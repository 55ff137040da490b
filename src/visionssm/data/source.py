"""From what `--data` points at to labelled images, whatever form they are stored in."""

import glob
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from visionssm.data.digits import load_digits
from visionssm.data.folder import folder_parts
from visionssm.data.hugging_face import is_saved_dataset, saved_dataset_parts
from visionssm.data.imagenet import imagenet_parts, is_imagenet
from visionssm.data.images import LabeledImages, Parts, Splits, splits_of_parts
from visionssm.data.shards import shard_parts
from visionssm.data.table import table_parts
from visionssm.data.tar import class_tar_parts, tar_parts
from visionssm.data.tar_index import index_tar

FORMS = """digits; a folder with one sub-folder per class, or with train/ and val/ that have them; a .tar of such a folder; \
a folder with one .tar per class, or with ImageNet's own three files; a folder or a pattern of webdataset shards \
('shards/train-{0000..0146}.tar'); a folder that Hugging Face's `save_to_disk` wrote; a .csv with path, label and split"""


def load_data(source: str | Path, val_share: float = 0.2, split_seed: int = 0) -> Splits:
    """Labelled images in any form that `FORMS` lists, split for training.

    Args:
        source: "digits", or a path or pattern.
        val_share: share of each class that is held back for validation where the data has no such part.
        split_seed: chooses the images that are held back.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it isn't a data set of a form that is understood, or can't be used; the message says why.

    Example:
        >>> load_data("digits").class_names
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']
    """
    if source == "digits":
        return load_digits()
    return splits_of_parts(read_parts(source), data_name(source), str(source), val_share, split_seed)


def data_name(source: str | Path) -> str:
    """A short name of a data set, for the folder of a run.

    Example:
        >>> data_name("digits"), data_name("shards/train-{0000..0146}.tar"), data_name("data/photos.tar")
        ('digits', 'shards', 'photos')
    """
    path = Path(source).expanduser()
    if set("*?[{") & set(path.name):
        path = path.parent
    return (path.with_suffix("") if path.suffix in (".tar", ".csv") else path).resolve().name


def read_parts(source: str | Path) -> Parts:
    """The parts that a data set has as it lies there, see `load_data`; without parts, all of it is "train"."""
    if source == "digits":
        return load_digits().parts
    path = Path(source).expanduser()
    if not path.exists():
        shards = expand_pattern(str(path))
        if not shards:
            raise FileNotFoundError(f"{source}: no such file or folder. Data can be: {FORMS}")
        return shard_parts(shards)
    if path.is_file():
        if path.suffix.lower() == ".csv":
            return table_parts(path)
        if ".tar" not in path.suffixes and path.suffix != ".tgz":
            raise ValueError(f"{path} isn't a data set. Data can be: {FORMS}")
        return shard_parts([path]) if are_shards([path]) else tar_parts(path)
    if is_saved_dataset(path):
        return saved_dataset_parts(path)
    if is_imagenet(path):
        return imagenet_parts(path)
    tars = sorted(path.glob("*.tar")) or sorted(path.glob("*/*.tar"))
    if not tars:
        try:
            return folder_parts(path)
        except ValueError as error:
            if any(child.is_dir() for child in path.iterdir()):
                raise
            raise ValueError(f"{error}. Data can be: {FORMS}") from error
    return shard_parts(tars) if are_shards(tars) else class_tar_parts(path)


def choose_part(parts: Mapping[str, LabeledImages], part: str | None, what: str) -> tuple[LabeledImages, str]:
    """The images of a part and its name; by default of the part that is furthest from training: test, else val.

    Raises:
        ValueError: `what`, the data, has no such part.
    """
    name = part or next(name for name in ("test", "val", "train") if name in parts)
    if name not in parts:
        raise ValueError(f"{what} has no {name} images, only {', '.join(parts)}")
    return parts[name], name


def are_shards(tars: Sequence[Path]) -> bool:
    """Whether the images of the first tar file that can be read have labels beside them, as webdataset's samples do."""
    for path in tars:
        with suppress(ValueError):  # damaged: whoever reads all of them names it
            return any(index_tar(path).labels)
    return False


def expand_pattern(pattern: str) -> list[Path]:
    """The files that a pattern with `{000..146}`, `*` or `?` stands for, sorted; none if it isn't a pattern.

    Raises:
        FileNotFoundError: files of a `{000..146}` are missing.

    Example:
        >>> expand_pattern("photos")
        []
    """
    names = [pattern]
    while span := re.search(r"\{(\d+)\.\.(\d+)\}", names[0]):
        width = len(span[1])
        numbers = [f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1)]
        names = [name[: span.start()] + number + name[span.end() :] for name in names for number in numbers]
    if len(names) > 1:
        missing = [name for name in names if not Path(name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{pattern}: {len(missing)} of its {len(names)} files are missing; the first: {missing[0]}"
            )
        return [Path(name) for name in names]
    return [Path(name) for name in sorted(glob.glob(pattern, recursive=True))] if set("*?[") & set(pattern) else []
