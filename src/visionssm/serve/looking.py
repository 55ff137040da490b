"""What the page shows of an image: classes and evidence for them, what flows into a pixel, objects or labels."""

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..data.images import decode_image
from ..data.transforms import input_and_photo
from ..tasks.checkpoint import Classifier
from ..tasks.dense_model import DenseModel
from ..tasks.dense_prediction import predict_labels, predict_objects
from ..visualize import attention_row, grad_cam, middle_record, record_scans
from ..visualize.figures import save_attention, save_overlay

MOST_BYTES = 10 * 2**20
MOST_PIXELS = 40_000_000
LEAST_SIDE = 320  # smaller inputs are shown enlarged, so that a pixel can be clicked


@dataclass(frozen=True)
class Finding:
    """What a model makes of one image."""

    shares: dict[str, float]  # classes, or objects and regions, with their confidence or share of the pixels
    picture: Image.Image


def open_upload(file: str | Path) -> Image.Image:
    """Read an uploaded image, after looking at how large it says it is.

    Raises:
        ValueError: it is too large, in bytes or in pixels, or is no image; the message says which.
    """
    path = Path(file)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"the file has {size / 2**20:.1f} MiB; at most {MOST_BYTES / 2**20:.0f} are taken")
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as header:
            width, height = header.size
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError("this file is no image that can be read") from error
    if width * height > MOST_PIXELS:
        raise ValueError(f"the image has {width}x{height} pixels; at most {MOST_PIXELS // 10**6} million are taken")
    try:
        return decode_image(data).convert("RGB")
    except OSError as error:
        raise ValueError(str(error)) from error


class Looker:
    """A model, and the pictures that it gives of images.

    Args:
        model: a classifier, or a trained detector or segmenter.
    """

    def __init__(self, model: Classifier | DenseModel) -> None:
        self.model = model

    @property
    def is_classifier(self) -> bool:
        """Whether it gives classes, with Grad-CAM and attention, rather than objects or regions."""
        return isinstance(self.model, Classifier)

    def look(self, image: Image.Image, most: int = 5) -> Finding:
        """Classes with their evidence, or the image with what was found drawn over it."""
        if isinstance(self.model, Classifier):
            return self._classify(self.model, image, most)
        return _draw(self.model, image, most)

    def input_of(self, image: Image.Image) -> Image.Image:
        """The part of the image that a classifier sees, with its pixels."""
        if not isinstance(self.model, Classifier):
            return image
        photo = input_and_photo(self.model.preprocessing, image)[1]
        picture = Image.fromarray((photo.expand(3, -1, -1) * 255).round().byte().permute(1, 2, 0).numpy())
        factor = -(-LEAST_SIDE // min(picture.size))
        return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)

    def attention(self, image: Image.Image, x: float, y: float) -> Image.Image:
        """What flows into a point of the input, given as fractions of its width and height, in the middle scan."""
        assert isinstance(self.model, Classifier)
        tensor, photo = input_and_photo(self.model.preprocessing, image)
        record = middle_record(record_scans(self.model.model, tensor))
        pixel = record.pixel(x, y)
        names = [f"path {k + 1}" for k in range(record.num_paths)]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "attention.png"
            save_attention(
                photo, attention_row(record, pixel), names, pixel, file, f"{self.model.name}, {record.module}"
            )
            return _opened(file)

    def _classify(self, classifier: Classifier, image: Image.Image, most: int) -> Finding:
        tensor, photo = input_and_photo(classifier.preprocessing, image)
        with torch.inference_mode():
            shares = classifier.model(tensor).softmax(1)[0]
        best = shares.topk(min(most, len(shares)))
        names = classifier.class_names or [f"class {i}" for i in range(len(shares))]
        found = {names[i]: float(share) for share, i in zip(best.values, best.indices.tolist(), strict=True)}
        cam = grad_cam(classifier.model, tensor)[0]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "cam.png"
            save_overlay(photo, cam, file, f"evidence for {next(iter(found))}", "largest = 1")
            return Finding(found, _opened(file))


def _draw(model: DenseModel, image: Image.Image, most: int) -> Finding:
    predict = predict_objects if model.config.task == "detection" else predict_labels
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "image.png"
        image.save(source)
        (seen,), _ = predict(model, [source], Path(folder) / "found")
        found: dict[str, float] = {}
        for name, share in seen.found[:most]:
            found[name] = max(share, found.get(name, 0.0))
        return Finding(found, _opened(Path(folder) / "found" / "image.png"))


def _opened(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")
