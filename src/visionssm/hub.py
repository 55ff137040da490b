"""Folders for the Hugging Face hub: a trained model with its card.

Classifiers are written in the layout that timm reads: anyone who has run `import visionssm` loads such a folder by
`timm.create_model("local-dir:FOLDER", pretrained=True)`, and from the hub by `timm.create_model("hf-hub:USER/NAME",
pretrained=True)`. Detectors and segmenters are written by their own `save_pretrained`, with the classes in `classes.json`.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._files import write_atomically
from .models import find_release
from .tasks.checkpoint import CARD, Classifier, ModelCard, find_checkpoint, load_classifier, read_checkpoint
from .tasks.run import RESULTS

README, CLASSES = "README.md", "classes.json"


def save_for_hub(run: str | Path, folder: str | Path, license: str = "unstated") -> Path:
    """Write a trained model as `config.json`, `model.safetensors` and a model card.

    Args:
        run: the folder of a run of `visionssm train`, or a checkpoint of one.
        folder: a new folder; it appears whole or not at all.
        license: of the weights, as an identifier of the hub, such as "apache-2.0".

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: it is a classifier of timm's, which `timm.models.save_for_hf` writes, or the folder exists.
    """
    target = Path(folder)
    if target.exists():
        raise ValueError(f"folder: {target} exists; choose a new one")
    source = find_checkpoint(run)
    described = ModelCard(**read_checkpoint(source)[CARD])
    write = _write_classifier if described.task == "classification" else _write_dense_model
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        card = write(source, described, temporary, license)
        write_atomically(temporary / README, lambda file: file.write_text(card, encoding="utf-8"))
        temporary.chmod(0o755)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def push_to_hub(folder: str | Path, repository: str, private: bool = False) -> str:
    """Upload a folder that `save_for_hub` wrote; needs a login (`hf auth login`). Returns its address.

    Raises:
        FileNotFoundError: the folder has no `config.json`.
    """
    from huggingface_hub import HfApi

    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; `visionssm publish RUN --out FOLDER` writes one")
    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repository, folder_path=str(folder)).commit_url)


def loading_code(folder: str | Path) -> str:
    """The Python that loads what `save_for_hub` wrote.

    Raises:
        FileNotFoundError: the folder has no model card.
    """
    card = (Path(folder) / README).read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("```")[0]
    return code.replace("hf-hub:USER/NAME", f"local-dir:{folder}").replace("USER/NAME", str(folder))


def _write_classifier(source: Path, described: ModelCard, folder: Path, license: str) -> str:
    """Weights and `config.json` of a classifier; returns its model card."""
    from timm.models import save_for_hf

    release = find_release(described.model)
    if release is None:
        raise ValueError(f"{source}: {described.model} is a model of timm; timm.models.save_for_hf writes those")
    classifier = load_classifier(source)
    save_for_hf(
        classifier.model,
        str(folder),
        model_config=_timm_config(classifier, license),
        model_args={**described.model_kwargs, "num_classes": len(classifier.class_names)},
        safe_serialization=True,
    )
    code = 'import timm, visionssm\n\nmodel = timm.create_model("hf-hub:USER/NAME", pretrained=True).eval()'
    preprocessing = classifier.preprocessing
    height, width = preprocessing.input_size[1:]
    images = (
        f"{height}x{width} pixels, {preprocessing.interpolation}, mean {list(preprocessing.mean)}, "
        f"std {list(preprocessing.std)}"
    )
    front = {"library_name": "timm", "pipeline_tag": "image-classification"}
    what = f"A [{classifier.name}](https://arxiv.org/abs/{release.paper}) image classifier"
    return _card(described, source, license, front, what, code, images, classifier.weights)


def _write_dense_model(source: Path, described: ModelCard, folder: Path, license: str) -> str:
    """Weights and `config.json` of a detector or segmenter, and `classes.json`; returns its model card."""
    from .tasks.dense_model import load_dense_model

    trained = load_dense_model(source)
    trained.model.save_pretrained(folder)  # type: ignore[operator]
    classes = {"class_names": trained.class_names, "category_ids": trained.category_ids}
    (folder / CLASSES).write_text(json.dumps(classes, indent=1), encoding="utf-8")
    head = type(trained.model).__name__
    code = f'from visionssm.heads import {head}\n\nmodel = {head}.from_pretrained("USER/NAME").eval()'
    tag = "image-segmentation" if described.task == "segmentation" else "object-detection"
    front = {"library_name": "visionssm", "pipeline_tag": tag}
    what = f"{head} for {described.task} on {described.model}"
    return _card(described, source, license, front, what, code, "RGB, values between 0 and 1", trained.weights)


def _card(
    described: ModelCard,
    source: Path,
    license: str,
    front: dict[str, str],
    what: str,
    code: str,
    images: str,
    weights: str,
) -> str:
    """The text of a model card: what the model is, what it was trained on and with which settings, and what it reaches."""
    names = described.class_names
    classes = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
    scores = "\n".join(f"| {what} | {value} |" for what, value in _scores(source.parent))
    settings = "\n".join(f"{key}: {json.dumps(value)}" for key, value in described.config.items() if value is not None)
    header = "\n".join(f"{key}: {value}" for key, value in front.items())
    return f"""---
license: {license}
{header}
tags: [{front["library_name"]}, visionssm, state-space-model]
---
# {described.config["model"]}, {len(names)} classes

{what}, trained with visionssm.

```python
{code}
```

Input: {images}. Classes: {classes}.

| result | |
|---|---|
{scores or "| not measured | |"}

Weights: {weights}. Data fingerprint: `{described.fingerprint}`. Settings:

```yaml
{settings}
```
"""


def _scores(folder: Path) -> Iterator[tuple[str, str]]:
    """Every score in a run's results, with the images that it was measured on."""
    file = folder / RESULTS
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for part in ("val", "test"):
        found = results.get(part)
        if not isinstance(found, dict):
            continue
        groups = {name: value for name, value in found.items() if name in ("box", "mask")} or {"": found}
        for group, values in groups.items():
            for name in _SCORES:
                if values.get(name) is not None:
                    where = f"{part}, {found['images']} images"
                    yield f"{group} {name} ({where})".strip(), f"{100 * values[name]:.2f} %"


_SCORES = ("top1", "mIoU", "mAcc", "aAcc", "AP", "AP50", "AP75")


def _timm_config(classifier: Classifier, license: str) -> dict[str, Any]:
    preprocessing = classifier.preprocessing.to_dict()
    return {
        "architecture": classifier.config["model"].partition(".")[0],
        "num_classes": len(classifier.class_names),
        "label_names": classifier.class_names,
        "pretrained_cfg": {
            **{key: value for key, value in classifier.model.pretrained_cfg.items() if key in _KEPT},  # type: ignore
            **preprocessing,
            "num_classes": len(classifier.class_names),
            "license": license,
        },
    }


_KEPT = ("first_conv", "classifier", "pool_size")
