"""The library's front door: models by name, weights from a file."""

from pathlib import Path
from typing import Any

import timm
from torch import nn

from ._messages import near_matches
from .models._build import load_published
from .models._checkpoint import read_checkpoint
from .models._release import all_releases


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Names of this library's models.

    Args:
        pattern: shell-style wildcard.
        pretrained: only those with published weights, as `name.tag`.

    Example:
        >>> "vmamba_tiny" in list_models("vmamba*")
        True
    """
    ours = {name.partition(".")[0] for name in all_releases()}
    names = timm.list_models(pattern, pretrained=pretrained)
    return [name for name in names if name.partition(".")[0] in ours]


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    img_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> nn.Module:
    """Builds a model by name, as `timm.create_model` does, and says what is wrong with a name, an option or a file.

    Args:
        name: one of :func:`list_models`, or any name that timm knows; `name.tag` chooses among several weights.
        pretrained: fetch and load the published weights.
        checkpoint: load this file instead: published or own names, any published container.
        img_size: (H, W) that the model is built for; models that depend on it resize what they load.
        options: `num_classes`, `in_chans`, `drop_path_rate`, `features_only`, `out_indices`, and the family's own.

    Raises:
        ValueError: an unknown name, or weights that do not fit, all of them listed.
        TypeError: an option that the model does not have.
        FileNotFoundError: no such file, or the published weights cannot be fetched.

    Example:
        >>> model = create_model("vmamba_nano", num_classes=3)
        >>> create_model("vmamba_tinny")
        Traceback (most recent call last):
        ...
        ValueError: model: there is no 'vmamba_tinny'; did you mean vmamba_tiny, ...?
    """
    check_name(name)
    if img_size is not None:
        options["img_size"] = img_size
    if checkpoint is not None:
        if not Path(checkpoint).exists():
            raise FileNotFoundError(f"checkpoint: there is no file {checkpoint}")
        pretrained = True
        options["pretrained_cfg_overlay"] = {**(options.get("pretrained_cfg_overlay") or {}), "file": str(checkpoint)}
    return timm.create_model(name, pretrained=pretrained, **options)


def check_name(name: str) -> None:
    """ValueError, with near matches, for a name that neither this library nor timm knows."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise ValueError(f"model: there is no {name!r}{near_matches(architecture, timm.list_models())}")


def load_checkpoint(model: nn.Module, path: str | Path, *, prefer: tuple[str, ...] = ()) -> None:
    """Loads a weight file into one of our models, strictly; see :func:`create_model` for what files are understood.

    Args:
        model: a model of this library, not wrapped by `features_only`.
        path: the file.
        prefer: containers to look for first, such as ("model_ema",).

    Raises:
        FileNotFoundError, ValueError: as :func:`create_model`.
    """
    cfg = getattr(model, "pretrained_cfg", {})
    load_published(model, read_checkpoint(path, prefer=prefer), cfg, str(path))
