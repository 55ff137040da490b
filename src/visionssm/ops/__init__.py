"""The operator of the library: a selective scan along paths over an image, and what belongs to it."""

from . import paths
from .api import path_scan, selective_scan
from .backends import default_backend, explain_backend
from .discretize import ssm_convolution_kernel, zero_order_hold
from .matrix_product import linear
from .multihead import multihead_scan

__all__ = [
    "default_backend",
    "explain_backend",
    "linear",
    "multihead_scan",
    "path_scan",
    "paths",
    "selective_scan",
    "ssm_convolution_kernel",
    "zero_order_hold",
]
