"""Images with labels, from the embedded digits to shards on a cluster; transforms, and loaders that resume exactly."""

from visionssm.data.digits import load_digits
from visionssm.data.folder import find_images, load_image_folder
from visionssm.data.images import LabeledImages, Splits, read_image
from visionssm.data.loader import ResumableLoader, TransformedImages, make_loader
from visionssm.data.source import load_data
from visionssm.data.transforms import Preprocessing, eval_transform, train_transform

__all__ = [
    "LabeledImages",
    "Preprocessing",
    "ResumableLoader",
    "Splits",
    "TransformedImages",
    "eval_transform",
    "find_images",
    "load_data",
    "load_digits",
    "load_image_folder",
    "make_loader",
    "read_image",
    "train_transform",
]
