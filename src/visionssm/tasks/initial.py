"""The model that a run starts from: fresh, with published weights, or with those of a file."""

from dataclasses import dataclass
from typing import Any

import timm
from torch import nn

import visionssm
from visionssm._messages import near_matches
from visionssm.data.images import listing
from visionssm.data.transforms import Preprocessing
from visionssm.models import find_release
from visionssm.tasks.checkpoint import CARD, ModelCard, find_checkpoint, is_run, model_weights, read_checkpoint
from visionssm.tasks.classification_config import ClassificationConfig


@dataclass(frozen=True)
class InitialModel:
    """A model, the arguments that build the same model again without weights, and its preprocessing."""

    model: nn.Module
    arguments: dict[str, Any]
    preprocessing: Preprocessing
    origin: str  # of the weights, in words


def build_initial_model(config: ClassificationConfig, class_names: list[str]) -> InitialModel:
    """Build the model of a run; its classes, input channels and input size follow the data and the settings.

    Raises:
        ValueError: no such model, or weights that don't fit it.
        FileNotFoundError: no such weight file.
        TypeError: an argument in `model_kwargs` that the model doesn't have.
    """
    arguments = {**config.model_kwargs, "num_classes": len(class_names)}
    if config.in_chans is not None:
        arguments["in_chans"] = config.in_chans
    if config.img_size is not None:
        arguments["img_size"] = config.img_size
    weights, known, origin = _weights(config)
    model, arguments = create_at_size(config.model, arguments, **weights)
    if known is not None:
        origin += f", trained on {listing(known, 'class')}"
        if known != class_names:
            model.reset_classifier(len(class_names))  # type: ignore[operator]
            origin += f"; a new classifier for {len(class_names)}"
    return InitialModel(model, arguments, _preprocessing(model, config), origin)


def create_at_size(name: str, arguments: dict[str, Any], **weights: Any) -> tuple[nn.Module, dict[str, Any]]:
    """`visionssm.create_model` for models that are built for an input size and for those that aren't.

    Args:
        name: the model.
        arguments: of the model; `img_size` is left out where the model has no such argument and takes any size.
        weights: where to take weights from.

    Returns:
        The model, and the arguments that it took.
    """
    try:
        return visionssm.create_model(name, **arguments, **weights), arguments
    except TypeError as error:
        # Convolutional networks of timm take any size, and don't have the argument.
        if "img_size" not in arguments or "img_size" not in str(error):
            raise
    arguments = {key: value for key, value in arguments.items() if key != "img_size"}
    return visionssm.create_model(name, **arguments, **weights), arguments


def _weights(config: ClassificationConfig) -> tuple[dict[str, Any], list[str] | None, str]:
    """What `create_model` needs to know of the weights to start from, the names of their classes (None: not known, the
    classifier is taken over if it has as many classes), and where they come from.
    """
    name = config.weights_of or config.model
    if config.checkpoint is None:
        if not config.pretrained:
            return {"pretrained": False}, None, "none: fresh weights"
        cfg: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
        known = list(cfg.label_names) if cfg is not None and cfg.label_names else None
        overlay = {"pretrained_cfg_overlay": _published(name)} if config.weights_of is not None else {}
        return {"pretrained": True, **overlay}, known, f"those published for {name}"
    path = find_checkpoint(config.checkpoint)
    if not is_run(path):
        return {"checkpoint": path}, None, str(path)
    content = read_checkpoint(path)
    card = ModelCard(**content[CARD])
    if card.model != name:
        raise ValueError(f"{path} holds weights of {card.model}, not of {config.model}; choose --model {card.model}")
    state, _ = model_weights(content["state_dict"])
    # timm keeps a classifier whose number of classes is the model's, and starts another one afresh.
    weights = {"state_dict": state, "num_classes": len(card.class_names)}
    return {"pretrained": True, "pretrained_cfg_overlay": weights}, card.class_names, str(path)


def _published(name: str) -> dict[str, Any]:
    """Where the published weights of another model are, and what must be known of them."""
    release = find_release(name)
    if release is None or not release.has_weights:
        raise ValueError(
            f"weights_of: there are no published weights of {name!r}{near_matches(name, visionssm.list_models())}"
        )
    return release.pretrained_cfg()


def _preprocessing(model: nn.Module, config: ClassificationConfig) -> Preprocessing:
    """The model's own, at the size and with the channels asked for; a digit is shown whole."""
    channels, height, width = Preprocessing.of_model(model).input_size
    if config.img_size is not None:
        height, width = config.img_size
    return Preprocessing.of_model(
        model,
        input_size=(config.in_chans or channels, height, width),
        crop_pct=1.0 if config.data == "digits" else None,
    )
