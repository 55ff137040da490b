"""Folders for the Hugging Face hub: a trained classifier with its model card, in the layout that timm reads.

Anyone who has run `import visionssm` loads such a folder by `timm.create_model("local-dir:FOLDER", pretrained=True)`, and
from the hub by `timm.create_model("hf-hub:USER/NAME", pretrained=True)`.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._files import write_atomically
from .models import find_release
from .tasks.checkpoint import CARD, Classifier, ModelCard, load_classifier, read_checkpoint
from .tasks.run import RESULTS

if TYPE_CHECKING:
    from .models._release import Release

README = "README.md"


def save_for_hub(run: str | Path, folder: str | Path, license: str = "unstated") -> Path:
    """Write a trained classifier as `config.json`, `model.safetensors` and a model card.

    Args:
        run: the folder of a run of `visionssm train`, or a checkpoint of one.
        folder: a new folder; it appears whole or not at all.
        license: of the weights, as an identifier of the hub, such as "apache-2.0".

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: it is not of a model of this library, or the folder exists.
    """
    from timm.models import save_for_hf

    target = Path(folder)
    if target.exists():
        raise ValueError(f"folder: {target} exists; choose a new one")
    classifier = load_classifier(run)
    described = ModelCard(**read_checkpoint(classifier.source)[CARD])
    release = find_release(described.model)
    if release is None:
        raise ValueError(
            f"{run}: {classifier.config['model']} is a model of timm; timm.models.save_for_hf writes those"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        save_for_hf(
            classifier.model,
            str(temporary),
            model_config=_config(classifier, license),
            model_args={**described.model_kwargs, "num_classes": len(classifier.class_names)},
            safe_serialization=True,
        )
        card = model_card(classifier, described, release, license, _results(classifier.source.parent))
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


def model_card(
    classifier: Classifier, described: ModelCard, release: "Release", license: str, results: dict[str, Any]
) -> str:
    """The text of a model card: what the model is, what it was trained on and with which settings, and what it reaches."""
    name = classifier.config["model"]
    height, width = classifier.preprocessing.input_size[1:]
    classes = ", ".join(classifier.class_names[:20]) + (" ..." if len(classifier.class_names) > 20 else "")
    scores = "\n".join(
        f"| {part} | {found['images']} | {100 * found['top1']:.2f} % |"
        for part in ("val", "test")
        if isinstance(found := results.get(part), dict)
    )
    settings = "\n".join(f"{key}: {json.dumps(value)}" for key, value in classifier.config.items() if value is not None)
    return f"""---
license: {license}
library_name: timm
pipeline_tag: image-classification
tags: [timm, visionssm, state-space-model]
---
# {name}, {len(classifier.class_names)} classes

A [{name}](https://arxiv.org/abs/{release.paper}) image classifier, trained with visionssm.

```python
import timm, visionssm

model = timm.create_model("hf-hub:USER/NAME", pretrained=True).eval()
```

Input: {height}x{width} pixels, {classifier.preprocessing.interpolation}, mean {list(classifier.preprocessing.mean)},
std {list(classifier.preprocessing.std)}. Classes: {classes}.

| images of | number | top-1 |
|---|---|---|
{scores or "| not measured | | |"}

Weights: {classifier.weights}. Data fingerprint: `{described.fingerprint}`. Settings:

```yaml
{settings}
```
"""


def _config(classifier: Classifier, license: str) -> dict[str, Any]:
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


def _results(folder: Path) -> dict[str, Any]:
    file = folder / RESULTS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
