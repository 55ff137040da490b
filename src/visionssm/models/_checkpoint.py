"""Weight files: reading every published container safely, and loading strictly.

Files are untrusted: only tensors and plain containers are built from them. What else a training script pickled beside
the weights (argument namespaces, configuration nodes) is replaced by an inert placeholder; its code never runs.
"""

import logging
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import write_atomically
from .._messages import shortened

CONTAINERS = ("model", "state_dict", "model_ema", "state_dict_ema", "ema_model")
PREFIXES = ("module.", "model.", "backbone.")
_log = logging.getLogger(__name__)
StateDict = dict[str, Tensor]
Convert = Callable[[Mapping[str, Tensor], nn.Module], StateDict]


def read_checkpoint(path: str | Path, *, prefer: Iterable[str] = (), backbone_only: bool = True) -> StateDict:
    """Reads the tensors of a weight file, whatever published container they are in.

    Args:
        path: a safetensors file, or any that torch.save ever wrote: a bare state dict or one under `model`, `state_dict`,
            `model_ema`, `state_dict_ema` or `ema_model`; prefixes `module.`, `model.` and `backbone.` that all names
            share are removed.
        prefer: containers to look for first, such as ("model_ema",); where the file has others only, that is logged.
        backbone_only: of a detector or segmenter, take only what is under `backbone.`; what is left out is logged.

    Returns:
        Names as in the file, without container and prefix, to tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, not a weight file (a saved web page, say), or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: there is no file {path}")
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    content = _unpacked(content, tuple(prefer), path) if isinstance(content, Mapping) else {}
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors: expected a state dict, or one under {', '.join(CONTAINERS)}")
    tensors = _strip_prefixes(tensors)
    return _backbone_only(tensors, path) if backbone_only else tensors


def _unpacked(content: Mapping[str, Any], prefer: tuple[str, ...], path: Path) -> Mapping[str, Any]:
    for name in (*prefer, *CONTAINERS):
        if isinstance(content.get(name), Mapping):
            if prefer and name not in prefer:
                _log.warning(f"{path}: there is no {' or '.join(prefer)} in it; took {name}")
            return content[name]
    return content


def _backbone_only(tensors: StateDict, path: Path) -> StateDict:
    """The backbone of a detector's or segmenter's file, without the parts around it."""
    backbone = {name: value for name, value in tensors.items() if name.startswith("backbone.")}
    if not backbone:
        return tensors
    left = len(tensors) - len(backbone)
    _log.warning(f"{path}: took the {len(backbone)} tensors of the backbone, and left {left} of the parts around it")
    return _strip_prefixes(backbone)


def _strip_prefixes(tensors: StateDict) -> StateDict:
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
                stripped = True
    return tensors


def _read_safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(_unreadable(path, error)) from error


def _is_safetensors(path: Path) -> bool:
    """By its first bytes, the length of a JSON header and the header: names of files are not to be relied on."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_torch(path: Path) -> Any:
    try:
        if zipfile.is_zipfile(path):
            return _load(path, set(torch.serialization.get_unsafe_globals_in_checkpoint(path)))
        return _read_old_torch(path)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
    ) as error:
        raise ValueError(_unreadable(path, error)) from error


def _read_old_torch(path: Path) -> Any:
    """The format of torch before 1.6, whose foreign classes are found one by one."""
    foreign: set[str] = set()
    while True:
        try:
            return _load(path, foreign)
        except pickle.UnpicklingError as error:
            refused = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
            name = refused[1] if refused else ""
            name = name if "." in name else f"builtins.{name}"
            if refused is None or name in foreign:
                raise
            foreign.add(name)


def _load(path: Path, foreign: set[str]) -> Any:
    """Reads with torch's safe unpickler; a placeholder stands for every class in `foreign`."""
    placeholders: list[Any] = [(_placeholder(name), name) for name in foreign]
    # Given a path instead of an open file torch would go by the file's name.
    with path.open("rb") as file, torch.serialization.safe_globals(placeholders):
        return torch.load(file, map_location="cpu", weights_only=True)


def _placeholder(name: str) -> type:
    """A class that runs nothing: its instances become plain dictionaries of what the pickled objects held.

    Objects of numpy, whose state is no dictionary, become empty ones.
    """

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        return dict.__new__(cls) if name.startswith("numpy.") else OrderedDict()

    def swallow(self: Any, *args: Any, **kwargs: Any) -> None:
        pass

    return type(name.rpartition(".")[2], (dict,), {"__new__": new, "__init__": swallow, "__setstate__": swallow})


def _unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(256).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            f"{path} is a web page, not a weight file: download the file itself (a link that ends in the file's name)"
        )
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not the weights: fetch the file itself (`git lfs pull`)"
    size = path.stat().st_size
    return f"{path} cannot be read as a weight file ({size:,} bytes; truncated, or of another kind?): {shortened(str(error))}"


def save_checkpoint(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes a state dict as safetensors, or as a torch file under any other suffix; the file appears whole or not at
    all.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: it cannot be written to.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save: Callable[[StateDict, Path], object] = torch.save
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file as save
    write_atomically(path, lambda temporary: save(tensors, temporary))


def load_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    fresh: Iterable[str] = (),
    published: Callable[[str], Iterable[str]] | None = None,
) -> None:
    """Copies a state dict under our names into a model, strictly.

    Args:
        model: the model.
        state: names to tensors.
        source: what to call the weights in an error.
        fresh: tensors that keep the model's values, because the model was asked to differ there (another number of
            classes).
        published: the published names of one of our tensors, for the error about those that are missing.

    Raises:
        ValueError: with all missing, unexpected and differently shaped tensors at once.
    """
    own = model.state_dict()
    fresh = set(fresh)
    # Counters of batches seen are not weights; older files do without.
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    missing = [
        _with_published_names(name, published) for name in own if name not in state and name not in fresh | optional
    ]
    unexpected = [name for name in state if name not in own and name not in fresh]
    reshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and name not in fresh and state[name].shape != own[name].shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if problems:
        raise ValueError(f"{source} does not fit {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict({name: state[name] for name in own if name in state and name not in fresh}, strict=False)


def _with_published_names(name: str, published: Callable[[str], Iterable[str]] | None) -> str:
    others = [other for other in published(name) if other != name] if published else []
    return f"{name} (published as {' and '.join(others)})" if others else name
