"""The model that a run starts from: fresh, with published weights, or with those of a file."""

from dataclasses import dataclass
from typing import Any

from torch import nn

import visionssm
from visionssm.data.transforms import Preprocessing
from visionssm.tasks.checkpoint import CARD, ModelCard, find_checkpoint, model_weights, read_checkpoint
from visionssm.tasks.config import TrainConfig


@dataclass(frozen=True)
class InitialModel:
    """A model, the arguments that build the same model again without weights, and its preprocessing."""

    model: nn.Module
    arguments: dict[str, Any]
    preprocessing: Preprocessing


def build_initial_model(config: TrainConfig, class_names: list[str]) -> InitialModel:
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
    try:
        model = visionssm.create_model(config.model, **arguments, **_weights(config))
    except TypeError as error:
        # Convolutional networks of timm take any size, and don't have the argument.
        if "img_size" not in arguments or "img_size" not in str(error):
            raise
        del arguments["img_size"]
        model = visionssm.create_model(config.model, **arguments, **_weights(config))
    return InitialModel(model, arguments, _preprocessing(model, config))


def _weights(config: TrainConfig) -> dict[str, Any]:
    """What `create_model` needs to know of the weights to start from."""
    if config.checkpoint is None:
        return {"pretrained": config.pretrained}
    path = find_checkpoint(config.checkpoint)
    if path.suffix != ".ckpt":
        return {"checkpoint": path}
    content = read_checkpoint(path)
    card = ModelCard(**content[CARD])
    if card.model != config.model:
        raise ValueError(f"{path} holds weights of {card.model}, not of {config.model}; choose --model {card.model}")
    state, _ = model_weights(content["state_dict"])
    # timm keeps a classifier whose number of classes is the model's, and starts another one afresh.
    weights = {"state_dict": state, "num_classes": len(card.class_names)}
    return {"pretrained": True, "pretrained_cfg_overlay": weights}


def _preprocessing(model: nn.Module, config: TrainConfig) -> Preprocessing:
    """The model's own, at the size and with the channels asked for; a digit is shown whole."""
    channels, height, width = Preprocessing.of_model(model).input_size
    if config.img_size is not None:
        height, width = config.img_size
    return Preprocessing.of_model(
        model,
        input_size=(config.in_chans or channels, height, width),
        crop_pct=1.0 if config.data == "digits" else None,
    )
