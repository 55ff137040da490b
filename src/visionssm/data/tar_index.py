"""What is in a tar file, and where: members are then read one by one, in any order, without unpacking.

The list is made once by going through the file's headers, and kept in a cache folder (`$XDG_CACHE_HOME/visionssm`, else
`~/.cache/visionssm`), for a large file on a slow disk takes minutes.
"""

import json
import os
import sys
import tarfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from visionssm._files import write_atomically
from visionssm.data.folder import IMAGE_SUFFIXES
from visionssm.data.images import decode_image, hash_lines

LABEL_SUFFIXES = (".cls", ".json")  # of webdataset's samples, beside the image
MOST_OPEN = 64


@dataclass(frozen=True)
class TarIndex:
    """The images of a tar file, in the order of the file."""

    path: Path
    size: int  # of the tar file, in bytes
    names: list[str]  # with folders; the members of a tar inside the tar lie in a folder called like it
    offsets: np.ndarray  # (images,), int64: where the image's bytes begin
    sizes: np.ndarray  # (images,), int64
    labels: list[str]  # what the member NAME.cls or NAME.json beside NAME.jpg says; "" without one


def index_tar(path: Path, progress: bool = True) -> TarIndex:
    """List the images of an uncompressed tar file; tar files inside it are looked into.

    Args:
        path: the file.
        progress: show a bar on standard error if it takes longer than two seconds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it isn't a tar file, is compressed, or is cut short.
    """
    status = path.stat()
    cached = cache_folder() / f"{hash_lines([str(path.resolve()), str(status.st_size), str(status.st_mtime_ns)])}.npz"
    if cached.is_file():
        return _load(cached, path, status.st_size)
    index = _scan(path, status.st_size, progress)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, lambda temporary: _save(index, temporary))
    except OSError as error:
        print(f"the list of {path} isn't kept, and will be made again: {cached.parent} ({error})", file=sys.stderr)
    return index


def cache_folder() -> Path:
    """Where the lists are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "visionssm" / "tar"


def read_member(path: Path, offset: int, size: int) -> Image.Image:
    """Decode the image that lies at a place of a tar file.

    Raises:
        OSError: the bytes can't be read or aren't an image; the message is the reason.
    """
    file = _open_files.get(path)
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise OSError("the tar file is cut short")
    return decode_image(data)


class _OpenFiles:
    """Files that stay open, each process having its own: a position in a file is shared by those that inherit it."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.files: OrderedDict[Path, IO[bytes]] = OrderedDict()

    def get(self, path: Path) -> IO[bytes]:
        if self.process != os.getpid():
            self.close()
            self.process = os.getpid()
        if path not in self.files:
            if len(self.files) >= MOST_OPEN:
                self.files.popitem(last=False)[1].close()
            self.files[path] = open(path, "rb")  # noqa: SIM115
        self.files.move_to_end(path)
        return self.files[path]

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        self.files.clear()


_open_files = _OpenFiles()


def _scan(path: Path, size: int, progress: bool) -> TarIndex:
    from tqdm import tqdm

    rows: list[tuple[str, int, int]] = []
    labels: dict[str, str] = {}
    bar = tqdm(desc=f"listing {path.name}", unit=" images", delay=2, disable=not progress, leave=False)
    with open(path, "rb") as file, bar:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                _collect(archive, "", 0, rows, labels, bar)
        except tarfile.ReadError as error:
            raise ValueError(_what_is_wrong(path, len(rows), error)) from error
    names = [name for name, _, _ in rows]
    return TarIndex(
        path,
        size,
        names,
        np.array([offset for _, offset, _ in rows], dtype=np.int64),
        np.array([length for _, _, length in rows], dtype=np.int64),
        [labels.get(sample_key(name), "") for name in names],
    )


def _collect(
    archive: tarfile.TarFile,
    folder: str,
    start: int,
    rows: list[tuple[str, int, int]],
    labels: dict[str, str],
    bar: Any,
) -> None:
    """Add the members of an archive whose first byte lies at `start`."""
    for member in archive:
        suffix = Path(member.name).suffix.lower()
        name = f"{folder}{member.name.removeprefix('./')}"
        if not member.isfile() or Path(name).name.startswith("."):
            continue
        if suffix in IMAGE_SUFFIXES:
            rows.append((name, start + member.offset_data, member.size))
            bar.update()
        elif suffix in LABEL_SUFFIXES:
            content = archive.extractfile(member)
            assert content is not None
            _note_label(labels, sample_key(name), suffix, content.read())
        elif suffix == ".tar":
            with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inner:
                _collect(inner, f"{name.removesuffix('.tar')}/", start + member.offset_data, rows, labels, bar)


def sample_key(name: str) -> str:
    """What the files of one webdataset sample share: the name up to the first dot of its last part.

    Example:
        >>> sample_key("shots/a.b/0001.seg.png")
        'shots/a.b/0001'
    """
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _note_label(labels: dict[str, str], key: str, suffix: str, content: bytes) -> None:
    if suffix == ".cls":
        labels[key] = content.decode("utf-8", errors="replace").strip()
        return
    try:
        description = json.loads(content)
    except ValueError:
        return
    label = description.get("label", description.get("cls")) if isinstance(description, dict) else None
    if label is not None:
        labels.setdefault(key, str(label))


def _what_is_wrong(path: Path, images: int, error: Exception) -> str:
    with open(path, "rb") as file:
        head = file.read(6)
    if not head:
        return f"{path} is empty"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return (
            f"{path} is compressed, and can't be read in any order: unpack it to a plain .tar (images don't compress)"
        )
    if images:
        return f"{path} is cut short or damaged after {images} images ({error}); copy it again"
    return f"{path} isn't a tar file, or is cut short before its first image ({error})"


def _save(index: TarIndex, path: Path) -> None:
    text = np.frombuffer(json.dumps([index.names, index.labels]).encode(), dtype=np.uint8)
    with open(path, "wb") as file:
        np.savez(file, text=text, offsets=index.offsets, sizes=index.sizes)


def _load(cached: Path, path: Path, size: int) -> TarIndex:
    with np.load(cached) as content:
        names, labels = json.loads(content["text"].tobytes())
        return TarIndex(path, size, names, content["offsets"], content["sizes"], labels)
