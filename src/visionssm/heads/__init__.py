"""What turns a backbone's features into detections and segmentations."""

from .pyramid import RescalingPyramid, SimpleFeaturePyramid

__all__ = ["RescalingPyramid", "SimpleFeaturePyramid"]
