"""Learning from another model's answers: a trained teacher, or the average of the student's own weights (MESA)."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import visionssm
from visionssm._messages import near_matches, shortened
from visionssm.data.transforms import Preprocessing
from visionssm.models import read_checkpoint as read_weights
from visionssm.tasks.checkpoint import find_checkpoint, is_run, load_classifier
from visionssm.tasks.classification_config import ClassificationConfig


class Teacher:
    """A trained classifier that is only asked. No module: it is in no checkpoint, isn't averaged, and never trains.

    Args:
        model: maps images to logits; is put in eval mode and frozen.
        given: preprocessing of the images that it will be shown: those of the student, after all augmentation.
        expected: preprocessing that it was trained with; where mean or deviation differ, images are normalised anew.
    """

    def __init__(self, model: nn.Module, given: Preprocessing, expected: Preprocessing):
        self.model = model.eval().requires_grad_(False)
        self.renormalisation: tuple[Tensor, Tensor] | None = None
        if (given.mean, given.std) != (expected.mean, expected.std):
            (mean, std), (own_mean, own_std) = (
                (torch.tensor(p.mean)[:, None, None], torch.tensor(p.std)[:, None, None]) for p in (given, expected)
            )
            self.renormalisation = std / own_std, (mean - own_mean) / own_std

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, channels, H, W): in float32, whatever the autocast around it."""
        if next(self.model.parameters()).device != images.device:
            self.model.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            images = images.float()
            if self.renormalisation is not None:
                scale, shift = (value.to(images.device) for value in self.renormalisation)
                images = images * scale + shift
            return self.model(images).float()


def load_teacher(config: ClassificationConfig, class_names: list[str], given: Preprocessing) -> Teacher | None:
    """The teacher that the settings name, or None.

    Args:
        config: `teacher` is a model of timm or of this library, fetched with its published weights; `teacher_checkpoint`
            is a file with weights for it, or the run of `visionssm train` that made it, which also says what model it is.
        class_names: of the data.
        given: preprocessing of the images that the student trains on.

    Raises:
        ValueError: the teacher tells other classes apart, takes other channels, or doesn't fit its file.
        FileNotFoundError: there is no such file, or the published weights can't be fetched.
    """
    if config.distillation == "none":
        return None
    name, path = config.teacher, config.teacher_checkpoint and find_checkpoint(config.teacher_checkpoint)
    if path and is_run(path):
        classifier = load_classifier(path)
        _check_class_names(path, classifier.class_names, class_names)
        return Teacher(classifier.model, given, _fitting(str(path), classifier.preprocessing, given))
    if not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"teacher: there is no model {name!r}{near_matches(name, timm.list_models())}")
    model = (
        _teacher_in_file(name, path, len(class_names), given)
        if path
        else _published_teacher(name, len(class_names), given)
    )
    return Teacher(model, given, _fitting(name, Preprocessing.of_model(model), given))


def distillation_loss(logits: Tensor, teacher_logits: Tensor, kind: str, temperature: float = 1.0) -> Tensor:
    """How far a student is from its teacher, as in DeiT (Touvron et al. 2021, section 4) and GroupMamba.

    Args:
        logits: (batch, classes) of the student's classifier for distillation, or of its only one.
        teacher_logits: (batch, classes).
        kind: "hard": cross-entropy with the class that the teacher finds most likely. "soft": Kullback-Leibler divergence
            of the softened distributions, times temperature squared, divided by batch times classes as in the published
            code (not by batch).
        temperature: of the softmax of both; for "soft" only.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> distillation_loss(logits, logits, "soft").item()
        0.0
        >>> round(distillation_loss(logits, torch.tensor([[1.0, 3.0]]), "hard").item(), 3)
        2.127
    """
    if kind == "hard":
        return functional.cross_entropy(logits, teacher_logits.argmax(1))
    student, teacher = ((values / temperature).log_softmax(1) for values in (logits, teacher_logits))
    divergence = functional.kl_div(student, teacher, reduction="sum", log_target=True)
    return divergence * temperature**2 / logits.numel()


def mesa_loss(logits: Tensor, averaged_logits: Tensor) -> Tensor:
    """Distance from the model of averaged weights (MESA, Du et al. 2022), as MambaVision was trained.

    50 KL(softmax(averaged / 3) || softmax(logits / 3)), the mean over the batch; both (batch, classes).

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> mesa_loss(logits, logits).item()
        0.0
    """
    student, target = ((values / 3).log_softmax(1) for values in (logits, averaged_logits))
    return 50 * functional.kl_div(student, target, reduction="batchmean", log_target=True)


def _published_teacher(name: str, classes: int, given: Preprocessing) -> nn.Module:
    cfg: Any = timm.get_pretrained_cfg(name)
    if not cfg.has_weights:
        raise ValueError(f"there are no published weights of the teacher {name}; give a file as teacher_checkpoint")
    if cfg.num_classes != classes:
        raise ValueError(
            f"the teacher {name} tells {cfg.num_classes} classes apart, but the data has {classes}: train a teacher on this "
            "data, and give its run or file as teacher_checkpoint"
        )
    try:
        return visionssm.create_model(name, pretrained=True, **_input_options(name, given))
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"the weights of the teacher {name} can't be fetched ({shortened(str(error))}); give a file that you have as "
            "teacher_checkpoint"
        ) from error


def _teacher_in_file(name: str, path: Path, classes: int, given: Preprocessing) -> nn.Module:
    # timm starts a classifier afresh, silently, unless the weights are said to have the classes asked for.
    overlay = {"state_dict": read_weights(path), "num_classes": classes}
    options: dict[str, Any] = {"num_classes": classes, "pretrained_cfg_overlay": overlay, **_input_options(name, given)}
    try:
        return visionssm.create_model(name, pretrained=True, **options)
    except RuntimeError as error:
        reason = shortened(" ".join(str(error).split()), 300)
        raise ValueError(
            f"the teacher's file {path} doesn't fit {name} with the {classes} classes of the data: {reason}"
        ) from error


def _input_options(name: str, given: Preprocessing) -> dict[str, Any]:
    """Models of one input size are built for that of the run."""
    cfg: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {"img_size": given.input_size[1:]} if cfg is not None and cfg.fixed_input_size else {}


def _fitting(name: str, expected: Preprocessing, given: Preprocessing) -> Preprocessing:
    """The teacher's preprocessing, or a ValueError where its input can't be made from the student's."""
    if expected.input_size[0] != given.input_size[0]:
        raise ValueError(
            f"the teacher {name} takes {expected.input_size[0]} channels, but the run has {given.input_size[0]} (in_chans)"
        )
    return expected


def _check_class_names(source: Path, teacher: list[str], data: list[str]) -> None:
    """The classes of a teacher's run must be those of the data, in the same order."""
    if teacher == data:
        return
    differences = [
        f"{who} alone has {', '.join(sorted(own - other)[:3])}"
        for who, own, other in (("the teacher", set(teacher), set(data)), ("the data", set(data), set(teacher)))
        if own - other
    ]
    raise ValueError(
        f"the teacher {source} tells {len(teacher)} classes apart, the data has {len(data)}: "
        f"{'; '.join(differences) or 'the same ones in another order'}. A teacher must have been trained on the classes of the data"
    )
