"""What is published about a model: its weights, where they are, under which licence, and what they reach."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parents[1] / "weights"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Release:
    """One published model, with or without weights.

    Args:
        params: exact number of parameters of the classifier.
        gflops: published GFLOPs at `input_size`, in multiply-adds; None where nothing is published.
        top1, top5: published ImageNet-1K accuracy in percent.
        file: a weight file of our own that is part of this package, in `visionssm/weights`; or
        url: address of the weight file; with `file_name`, what to call it where the address does not end in a name; or
        hf_hub_id, hf_hub_filename: repository and file on the Hugging Face hub.
        prefer: containers in the file to take first, see :func:`read_checkpoint`.
        weights_license: licence of the weights; "unstated" where the authors give none.
        commercial: whether the weights may be used commercially, as far as the authors say; None where they do not.
        paper: arXiv number.
        recipe: name of the training recipe of these weights, or the command that trained them.
        digits_top1: accuracy in percent of weights of our own, on the 359 test images of the embedded digits.
        label_names: what the classes are called, where they are not ImageNet's.
        fingerprint: the five largest logits on the fixed input of `visionssm verify`, where known.
    """

    params: int
    gflops: float | None = None
    top1: float | None = None
    top5: float | None = None
    file: str = ""
    url: str = ""
    file_name: str = ""
    hf_hub_id: str = ""
    hf_hub_filename: str = ""
    prefer: tuple[str, ...] = ()
    weights_license: str = "unstated"
    commercial: bool | None = None
    paper: str = ""
    recipe: str = ""
    digits_top1: float | None = None
    label_names: tuple[str, ...] = ()
    note: str = ""
    fingerprint: tuple[float, ...] = ()
    input_size: tuple[int, int, int] = (3, 224, 224)
    num_classes: int = 1000
    pool_size: tuple[int, int] = (7, 7)
    crop_pct: float = 0.875
    crop_mode: str = "center"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    first_conv: str = ""
    classifier: str | tuple[str, ...] = "head"

    @property
    def has_weights(self) -> bool:
        return bool(self.file or self.url or self.hf_hub_id)

    @property
    def source(self) -> str:
        """Address of the weight file, or its place in this package; empty without weights."""
        if self.file:
            return f"visionssm/weights/{self.file}"
        if self.hf_hub_id:
            return f"https://huggingface.co/{self.hf_hub_id}/resolve/main/{self.hf_hub_filename}"
        return self.url

    def pretrained_cfg(self) -> dict[str, Any]:
        """The entry that timm's registry keeps."""
        return {
            "file": str(WEIGHTS / self.file) if self.file else None,
            "label_names": self.label_names or None,
            "url": self.url,
            "hf_hub_id": self.hf_hub_id or None,
            "hf_hub_filename": self.hf_hub_filename or None,
            "license": self.weights_license,
            "paper_ids": f"arXiv:{self.paper}",
            "num_classes": self.num_classes,
            "input_size": self.input_size,
            "pool_size": self.pool_size,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
            "interpolation": "bicubic",
            "mean": self.mean,
            "std": self.std,
            "first_conv": self.first_conv,
            "classifier": self.classifier,
        }


def digits_release(name: str, params: int, digits_top1: float, **facts: Any) -> Release:
    """The release of a small model with weights of our own, trained on the embedded digits by the command in `recipe`.

    Args:
        name: the model; the file is called like it.
        params, digits_top1, facts: see `Release`.
    """
    return Release(
        params=params,
        file=f"{name}.safetensors",
        recipe=f"visionssm train --model {name} --seed 0",
        digits_top1=digits_top1,
        label_names=tuple("0123456789"),
        weights_license="Apache-2.0",
        commercial=True,
        num_classes=10,
        input_size=(3, 32, 32),
        crop_pct=1.0,
        **facts,
    )


_releases: dict[str, Release] = {}


def register_releases(releases: dict[str, Release]) -> dict[str, Any]:
    """Makes a family's releases known, and returns timm's `default_cfgs` for them.

    Args:
        releases: model name, or `name.tag` where a model has several, to its release. Assign the result to
            `default_cfgs` in the family's file, before the functions decorated with timm's `register_model`.
    """
    from timm.models import generate_default_cfgs

    _releases.update(releases)
    return generate_default_cfgs({name: release.pretrained_cfg() for name, release in releases.items()})


def find_release(name: str) -> Release | None:
    """The release called `name` or `name.tag`; of several tags the first registered."""
    if name in _releases:
        return _releases[name]
    return next((release for key, release in _releases.items() if key.partition(".")[0] == name), None)


def all_releases() -> dict[str, Release]:
    """Every registered release by its full name."""
    return dict(_releases)
