"""Drop-ins for mamba_ssm, causal_conv1d and VMamba's scan extension, which run on any device.

Either import them from here, or let code that imports the originals find them:

>>> from visionssm import compat
>>> names = compat.install()                  # before the code that does this:
>>> from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
>>> names = compat.uninstall()
"""

from . import oflex
from .causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from .mamba import Mamba
from .mamba_inner import bimamba_inner_fn, mamba_inner_fn, mamba_inner_fn_no_out_proj, mamba_inner_ref
from .norm import RMSNorm, layer_norm_fn, rms_norm_fn
from .selective_scan import selective_scan_fn, selective_scan_ref
from .stand_ins import install, uninstall

__all__ = [
    "Mamba",
    "RMSNorm",
    "bimamba_inner_fn",
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "install",
    "layer_norm_fn",
    "mamba_inner_fn",
    "mamba_inner_fn_no_out_proj",
    "mamba_inner_ref",
    "oflex",
    "rms_norm_fn",
    "selective_scan_fn",
    "selective_scan_ref",
    "uninstall",
]
