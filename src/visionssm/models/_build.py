"""From a name to a model: timm's builder, with weights read and loaded strictly by us."""

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from timm.models import build_model_with_cfg
from timm.models._builder import resolve_pretrained_cfg
from torch import Tensor, nn

from ..layers.linear import use_fast_linear
from ..layers.norm import use_fast_norm
from ._checkpoint import StateDict, load_weights, read_checkpoint
from ._keys import KeyTable
from ._release import find_release

_log = logging.getLogger(__name__)


def build_model(
    model_class: type[nn.Module],
    variant: str,
    pretrained: bool,
    feature_indices: Sequence[int] = (0, 1, 2, 3),
    **kwargs: Any,
) -> nn.Module:
    """What every registered function calls.

    Args:
        model_class: has `key_table`, and may have `prepare_weights(state) -> state`, which resizes what depends on the
            input size.
        variant: registered name.
        pretrained: load the weights that `pretrained_cfg`, possibly overlaid with `file` or `state_dict`, points to.
        feature_indices: the `out_indices` of `features_only=True` by default.
        kwargs: the variant's configuration and the user's options; what the class does not know raises a TypeError.
    """
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")).to_dict()
    tag = cfg.get("tag")

    def construct(**options: Any) -> nn.Module:
        model = model_class(**options)
        use_fast_linear(model)
        use_fast_norm(model)
        if pretrained:
            state = _fetch(f"{variant}.{tag}" if tag else variant, cfg)
            source = str(cfg.get("file") or f"the published {variant}")
            load_published(model, state, cfg, source)
        return model

    feature_cfg = {"out_indices": tuple(feature_indices), "feature_cls": "getter"}
    return build_model_with_cfg(construct, variant, False, feature_cfg=feature_cfg, **kwargs)


def load_published(model: nn.Module, state: Mapping[str, Tensor], cfg: Mapping[str, Any], source: str) -> None:
    """Loads a state dict under published or own names, adapted to the model's classes and input channels.

    Args:
        model: one of our models.
        state: names to tensors.
        cfg: `num_classes`, `first_conv` and `classifier` as in a pretrained configuration.
        source: what to call the weights in an error.
    """
    own = model.state_dict()
    table = _key_table(model)
    converted = table.from_published(state, own)
    if state.keys() <= own.keys() or len(own.keys() & state.keys()) > len(own.keys() & converted.keys()):
        converted = dict(state)  # the names are ours already
    prepare = getattr(model, "prepare_weights", None)
    if prepare is not None:
        converted = prepare(converted)
    _adapt_first_conv(model, converted, cfg.get("first_conv"))
    fresh = [*_replaced_head(model, converted, cfg), *_parts_of_other_form(own, converted, source)]
    load_weights(model, converted, source=source, fresh=fresh, published=table.published_names)


def _parts_of_other_form(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> list[str]:
    """What a classifier's file lacks for the dense-prediction form, norms on the features, or the other way round."""
    dense = any(name.startswith("out_norms.") for name in state)
    parts = ("norm.", "head.") if dense else ("out_norms.",)
    names = [name for name in own if name.startswith(parts) and name not in state]
    if dense and names:
        _log.warning(f"{source} is a dense-prediction model: {', '.join(names)} are not in it and start fresh")
    return names


def export_published(model: nn.Module) -> StateDict:
    """The model's weights under the published names and in the published shapes."""
    return _key_table(model).to_published(model.state_dict())


def _key_table(model: nn.Module) -> KeyTable:
    table = getattr(model, "key_table", None)
    if not isinstance(table, KeyTable):
        raise TypeError(f"{type(model).__name__} has no table of published names")
    return table


def _fetch(name: str, cfg: Mapping[str, Any]) -> StateDict:
    if cfg.get("state_dict"):
        return dict(cfg["state_dict"])
    release = find_release(name)
    prefer = release.prefer if release else ()
    if cfg.get("file"):
        path = Path(cfg["file"])
        if path.is_dir():
            path = next((path / f for f in ("model.safetensors", "pytorch_model.bin") if (path / f).is_file()), path)
        return read_checkpoint(path, prefer=prefer)
    if not cfg.get("url") and not cfg.get("hf_hub_id"):
        raise ValueError(
            f"{name}: no weights were ever published for this model; use pretrained=False, or checkpoint=FILE for your own"
        )
    return read_checkpoint(_download(name, cfg), prefer=prefer)


def _download(name: str, cfg: Mapping[str, Any]) -> Path:
    release = find_release(name)
    address = release.source if release else cfg.get("url")
    if release is not None and release.commercial is False:
        _print_licence(release.weights_license)
    try:
        if cfg.get("hf_hub_id"):
            return _from_hub(cfg["hf_hub_id"], cfg.get("hf_hub_filename") or "model.safetensors")
        from timm.models._hub import download_cached_file

        url = cfg["url"]
        if release is not None and release.file_name and url == release.url:
            url = (url, release.file_name)
        return Path(download_cached_file(url, check_hash=False, progress=True))
    except Exception as error:  # every transport has errors of its own, all meaning the same to the user
        raise FileNotFoundError(
            f"{name}: its weights could not be fetched ({type(error).__name__}). Download {address} on a machine with network, "
            f"and pass the file: visionssm.create_model({name.partition('.')[0]!r}, checkpoint='FILE')"
        ) from error


def _from_hub(repository: str, filename: str) -> Path:
    """A file of the hub: from its cache where it is there, without asking for a newer one, or fetched."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, filename)
    if isinstance(cached, str):
        return Path(cached)
    if not constants.HF_HUB_OFFLINE:
        # Without network the hub's client retries for half a minute; this says so at once.
        with suppress(HTTPError):  # an answer, whatever it is
            urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=10).close()
    return Path(hf_hub_download(repository, filename))


@cache
def _print_licence(licence: str) -> None:
    """Once per process and licence, before the first download."""
    print(f"These weights are not for commercial use ({licence}).", file=sys.stderr)


def _adapt_first_conv(model: nn.Module, state: StateDict, first_conv: str | None) -> None:
    """Sums or repeats the first kernels over colours when the model was asked for other input channels."""
    name = f"{first_conv}.weight"
    if not first_conv or name not in state:
        return
    wanted = cast(Tensor, model.get_submodule(first_conv).weight).shape[1]
    if state[name].shape[1] != wanted:
        state[name] = _with_channels(state[name], wanted)


def _with_channels(weight: Tensor, wanted: int) -> Tensor:
    """A convolution's weight for another number of input channels, by timm's rule: summed for one, else repeated and scaled."""
    own = weight.shape[1]
    if wanted == 1:
        return weight.sum(1, keepdim=True)
    return weight.repeat(1, -(-wanted // own), 1, 1)[:, :wanted] * (own / wanted)


def _replaced_head(model: nn.Module, state: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> list[str]:
    """Names of the classifier's tensors when the model has another number of classes than the weights."""
    classes = getattr(model, "num_classes", None)
    heads = cfg.get("classifier") or ()
    names = [
        f"{head}.{part}" for head in ((heads,) if isinstance(heads, str) else heads) for part in ("weight", "bias")
    ]
    held = {state[name].shape[0] for name in names if name in state}
    return names if held and classes is not None and held != {classes} else []


@torch.no_grad()
def init_linear_layers(model: nn.Module, std: float = 0.02) -> None:
    """Truncated normal weights (cut at +-2) and zero biases for every nn.Linear; what most of these models start
    from.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
