"""What turns a backbone's features into detections and segmentations."""

from .backbone import DenseBackbone, dense_options
from .detectors import CascadeMaskRCNN, MaskRCNN, cascade_mask_rcnn, mask_rcnn
from .inference import segment, slide
from .published import load_published
from .pyramid import RescalingPyramid, SimpleFeaturePyramid
from .retinanet import RetinaNet, retinanet
from .settings import CASCADE_MASK_RCNN, MASK_RCNN, DetectorSettings, StageSettings
from .upernet import UperNet, upernet

__all__ = [
    "CASCADE_MASK_RCNN",
    "MASK_RCNN",
    "CascadeMaskRCNN",
    "DenseBackbone",
    "DetectorSettings",
    "MaskRCNN",
    "RescalingPyramid",
    "RetinaNet",
    "SimpleFeaturePyramid",
    "StageSettings",
    "UperNet",
    "cascade_mask_rcnn",
    "dense_options",
    "load_published",
    "mask_rcnn",
    "retinanet",
    "segment",
    "slide",
    "upernet",
]
