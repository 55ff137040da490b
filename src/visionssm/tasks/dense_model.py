"""Detectors and segmenters: built from settings, and read back from the checkpoints of their training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from visionssm.tasks.checkpoint import CARD, ModelCard, find_checkpoint, is_run, model_weights, read_checkpoint
from visionssm.tasks.dense_config import DenseConfig, DetectionConfig, SegmentationConfig

HEADS = {
    "mask_rcnn": "MaskRCNN",
    "cascade_mask_rcnn": "CascadeMaskRCNN",
    "retinanet": "RetinaNet",
    "upernet": "UperNet",
}
CONFIGS: dict[str, type[DenseConfig]] = {config.task: config for config in (DetectionConfig, SegmentationConfig)}


@dataclass(frozen=True)
class DenseModel:
    """A trained detector or segmenter, ready to use."""

    model: nn.Module  # in eval mode
    class_names: list[str]
    category_ids: list[int]  # of the classes in COCO files
    config: DenseConfig
    source: Path
    weights: str  # "averaged" (EMA) or "trained"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


def build_dense_model(config: DenseConfig, classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a run, with the weights to start from.

    Args:
        config: settings with nothing left open.
        classes: without the background.

    Returns:
        The model, and the arguments that build the same model again without weights.

    Raises:
        ValueError: no such model, or weights that don't fit it.
        FileNotFoundError: no such weight file.
    """
    arguments = head_arguments(config, classes)
    model = make_head(head_name(config), arguments)
    if config.checkpoint is None:
        model.load_backbone(config.pretrained)  # type: ignore[operator]
        return model, arguments
    path = find_checkpoint(config.checkpoint)
    if is_run(path):
        _load_run(model, path, config)
    else:
        model.load_backbone(checkpoint=path)  # type: ignore[operator]
    return model, arguments


def head_arguments(config: DenseConfig, classes: int) -> dict[str, Any]:
    """Arguments of the head's class: plain values, as they are kept in checkpoints."""
    from visionssm.heads.settings import published_cascade

    arguments = {"backbone": config.model, "num_classes": classes, "backbone_options": config.model_kwargs}
    arguments |= config.head_kwargs
    if isinstance(config, DetectionConfig):
        min_size, max_size = config.test_size or (None, config.long_side)
        arguments |= {"min_size": min_size, "max_size": max_size, "size_divisible": config.size_divisible}
        preset = config.preset
        if preset is None and config.head == "cascade_mask_rcnn":
            preset = published_cascade(config.model)
        if preset is not None:
            arguments["preset"] = preset
    return arguments


def head_name(config: DenseConfig) -> str:
    """Which of `HEADS` the settings ask for."""
    return config.head if isinstance(config, DetectionConfig) else "upernet"


def make_head(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A model of `visionssm.heads`, by one of the names in `HEADS`."""
    from visionssm import heads

    try:
        return getattr(heads, HEADS[name])(**arguments)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ValueError(f"{name}: {error}; see head_kwargs and model_kwargs") from error


def load_dense_model(
    path: str | Path, device: torch.device | str = "cpu", averaged: bool = True, task: str | None = None
) -> DenseModel:
    """The detector or segmenter in a checkpoint, or in the folder of a run.

    Args:
        path: a checkpoint of `visionssm train`, or the folder of a run.
        device: where to put the model.
        averaged: take the averaged weights (EMA), if the run kept them.
        task: "detection" or "segmentation"; None: either.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is from another task, or its weights don't fit the model it names.
    """
    source = find_checkpoint(path)
    content = read_checkpoint(source)
    card = ModelCard(**content[CARD])
    if card.task not in CONFIGS or task not in (None, card.task):
        raise ValueError(
            f"{source} is from the task {card.task}" + (f", not from {task}; choose --task {card.task}" if task else "")
        )
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in card.config.items() if name != "task"
    }
    config = CONFIGS[card.task](**values)
    model = make_head(head_name(config), card.model_kwargs)
    state, weights = model_weights(content["state_dict"], averaged)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        mismatch = " ".join(str(error).split())
        raise ValueError(f"{source} doesn't fit the model {card.model} that it names: {mismatch[:300]}") from error
    ids = card.preprocessing.get("category_ids") or list(range(1, len(card.class_names) + 1))
    return DenseModel(model.eval().to(device), card.class_names, ids, config, source, weights)


def _load_run(model: nn.Module, path: Path, config: DenseConfig) -> None:
    """Start from a run: all its weights if it had the same task, those of the backbone if it was a classifier's."""
    content = read_checkpoint(path)
    card = ModelCard(**content[CARD])
    if card.model != config.model:
        raise ValueError(f"{path} holds weights of {card.model}, not of {config.model}; choose --model {card.model}")
    state, _ = model_weights(content["state_dict"])
    own = model.state_dict()
    if card.task == "classification":
        state = {f"backbone.body.model.{name}": value for name, value in state.items()}
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not any(name.startswith("backbone.body.model.") for name in fitting):
        raise ValueError(f"{path} has no tensor that fits {config.model}; were model_kwargs the same?")
    model.load_state_dict(fitting, strict=False)
    fresh = sum(name not in fitting for name in own)
    print(f"weights   {len(fitting)} tensors from {path}; {fresh} start afresh")
