"""Serve an exported classifier with onnxruntime, NumPy and Pillow alone: no torch, no visionssm.

visionssm export vmamba_nano --pretrained
python examples/onnx_serving.py vmamba_nano.onnx photo.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def load(file: str) -> tuple[onnxruntime.InferenceSession, dict]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map["visionssm"])


def prepare(image: Image.Image, how: dict) -> np.ndarray:
    """Resize the shorter side, crop the centre, normalise: (1, channels, H, W)."""
    channels, height, width = how["input_size"]
    scale = max(height, width) / how["crop_pct"] / min(image.size)
    image = image.convert("L" if channels == 1 else "RGB")
    image = image.resize([max(1, int(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, dtype=np.float32).reshape(height, width, channels) / 255
    pixels = (pixels - np.float32(how["mean"])) / np.float32(how["std"])
    return pixels.transpose(2, 0, 1)[None]


def main(file: str, image: str) -> list[tuple[str, float]]:
    session, metadata = load(file)
    with Image.open(image) as opened:
        logits = session.run(None, {"images": prepare(opened, metadata["preprocessing"])})[0][0]
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    names = metadata["class_names"] or [f"class {i}" for i in range(len(shares))]
    best = [(names[i], float(shares[i])) for i in np.argsort(-shares)[:3]]
    print(", ".join(f"{name} {100 * share:.1f} %" for name, share in best))
    return best


if __name__ == "__main__":
    main(*sys.argv[1:3])
