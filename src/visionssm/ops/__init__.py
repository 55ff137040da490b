"""The operator of the library: a selective scan along paths over an image, and what belongs to it."""

from . import paths
from .api import path_scan, selective_scan
from .backends import default_backend, explain_backend
from .conv_perceptron import conv_mlp
from .depthwise import depthwise_conv
from .discretize import ssm_convolution_kernel, zero_order_hold
from .gate import gate_silu
from .grouped_product import grouped_linear
from .matrix_product import linear
from .multihead import multihead_scan
from .norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from .perceptron import mlp

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "conv_mlp",
    "default_backend",
    "depthwise_conv",
    "explain_backend",
    "gate_silu",
    "grouped_linear",
    "layer_norm",
    "linear",
    "mlp",
    "multihead_scan",
    "path_scan",
    "paths",
    "rms_norm",
    "selective_scan",
    "ssm_convolution_kernel",
    "zero_order_hold",
]
