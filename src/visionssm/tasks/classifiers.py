"""Any model as a classifier to measure or to predict with: a run of ours, a published model, or weights in a file."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset

from visionssm._messages import shortened
from visionssm.data.images import LabeledImages, Subset, listing, with_classes
from visionssm.data.transforms import Preprocessing
from visionssm.tasks.checkpoint import (
    CARD,
    Classifier,
    ModelCard,
    find_checkpoint,
    load_classifier,
    model_weights,
    read_checkpoint,
)
from visionssm.tasks.initial import create_at_size

Size = tuple[int, int]  # height, width


def run_classifier(
    path: str | Path, device: torch.device | str = "cpu", averaged: bool = True, img_size: Size | None = None
) -> Classifier:
    """The classifier that `visionssm train` left in a checkpoint or a folder, see `load_classifier`.

    Args:
        path: checkpoint, or folder of a run.
        device: where to put the model.
        averaged: take the averaged weights (EMA), if the run kept them.
        img_size: another input size than the run's; what depends on it in the weights is resized.
    """
    if img_size is None:
        return load_classifier(path, device, averaged)
    source = find_checkpoint(path)
    content = read_checkpoint(source)
    card = ModelCard(**content[CARD])
    state, weights = model_weights(content["state_dict"], averaged)
    overlay = {"state_dict": state, "num_classes": len(card.class_names)}
    arguments = {**card.model_kwargs, "img_size": img_size}
    model, _ = create_at_size(card.model, arguments, pretrained=True, pretrained_cfg_overlay=overlay)
    return Classifier(
        model=model.eval().to(device),
        class_names=card.class_names,
        preprocessing=_at_size(Preprocessing.from_dict(card.preprocessing), img_size),
        config=card.config,
        source=source,
        weights=weights,
    )


def named_classifier(
    name: str,
    file: str | Path | None = None,
    device: torch.device | str = "cpu",
    img_size: Size | None = None,
    class_names: list[str] | None = None,
) -> Classifier:
    """A model of this library or of timm, with its published weights or with those of a file, and its own preprocessing.

    Args:
        name: as `visionssm list` or timm call it; `timm/` in front changes nothing, `name.tag` chooses among weights.
        file: a weight file of this model; by default the published weights are fetched.
        device: where to put the model.
        img_size: another input size than that of the weights.
        class_names: what the weights in the file were trained on; by default the classes of the published weights.

    Raises:
        ValueError: no such model, or a file that doesn't fit it.
        FileNotFoundError: no such file, or the published weights can't be fetched.
    """
    name = name.removeprefix("timm/")
    cfg: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
    arguments: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
    if file is None:
        if cfg is not None and not cfg.has_weights:
            raise ValueError(f"there are no published weights of {name}; name a file with --checkpoint FILE")
        weights: dict[str, Any] = {"pretrained": True}
    else:
        classes = len(class_names) if class_names else None if cfg is None else cfg.num_classes
        if classes is not None:
            arguments["num_classes"] = classes
        # Weights that are said to have the classes asked for are loaded with their classifier, or not at all.
        weights = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(_existing(file)), "num_classes": classes}}
    try:
        model, _ = create_at_size(name, arguments, **weights)
    except (OSError, RuntimeError) as error:
        reason = shortened(" ".join(str(error).split()), 300)
        if file is not None:
            raise ValueError(
                f"{file} doesn't fit {name} with {arguments.get('num_classes')} classes: {reason}"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise
        raise FileNotFoundError(
            f"the weights of {name} can't be fetched ({reason}); name a file with --checkpoint FILE"
        ) from error
    own: Any = model.pretrained_cfg
    return Classifier(
        model=model.eval().to(device),
        class_names=class_names or published_class_names(own, int(model.num_classes)),  # type: ignore[arg-type]
        preprocessing=_at_size(Preprocessing.of_model(model), img_size),
        config={"model": name, "data": None},
        source=Path(file) if file is not None else Path(name),
        weights="published" if file is None else "given",
    )


def published_class_names(cfg: dict[str, Any], count: int) -> list[str]:
    """What the classes of published weights are called: WordNet ids for ImageNet, in alphabetical order for its 1000.

    Example:
        >>> published_class_names({}, 1000)[:2], published_class_names({"label_names": ("cat", "dog")}, 2)
        (['n01440764', 'n01443537'], ['cat', 'dog'])
    """
    if cfg.get("label_names") and len(cfg["label_names"]) == count:
        return list(cfg["label_names"])
    subset = infer_imagenet_subset({"num_classes": count})
    return list(ImageNetInfo(subset).label_names()) if subset else [str(number) for number in range(count)]


def readable_names(class_names: list[str]) -> list[str]:
    """The same names, with words in place of WordNet ids.

    Example:
        >>> readable_names(["n01440764", "dog"])
        ['tench, Tinca tinca', 'dog']
    """
    words = (
        ImageNetInfo().label_descriptions(as_dict=True) if any(name.startswith("n0") for name in class_names) else {}
    )
    return [words.get(name, name) for name in class_names]  # type: ignore[union-attr]


def labels_for(classifier: Classifier, images: LabeledImages, what: str) -> tuple[LabeledImages, bool]:
    """Images with labels that follow a classifier's classes.

    Classes are matched by name; the data may have some of the classifier's only. Data that has numbers or words in place
    of the WordNet ids of a published ImageNet classifier is matched by order, if the counts agree.

    Args:
        classifier: whose classes count.
        images: labelled images.
        what: the data, for the message.

    Returns:
        The images, and whether the classes were matched by order.

    Raises:
        ValueError: the classes don't fit.
    """
    known = set(classifier.class_names)
    wordnet = classifier.config["data"] is None and all(re.fullmatch(r"n\d+", name) for name in known)
    if wordnet and len(images.class_names) == len(known) and not known & set(images.class_names):
        return Subset(images, list(range(len(images.labels))), images.labels, classifier.class_names), True
    try:
        return with_classes(images, classifier.class_names, f"{classifier.source}"), False
    except ValueError as error:
        raise ValueError(
            f"{what} has {listing(images.class_names, 'class')}, but {classifier.source} tells "
            f"{listing(classifier.class_names, 'class')} apart: {error}"
        ) from error


def _at_size(preprocessing: Preprocessing, img_size: Size | None) -> Preprocessing:
    if img_size is None:
        return preprocessing
    return replace(preprocessing, input_size=(preprocessing.input_size[0], *img_size))


def _existing(file: str | Path) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weight file")
    return path
