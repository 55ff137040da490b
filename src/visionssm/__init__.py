"""Vision state-space backbones under one roof: operator, models, weights, tasks.

>>> import timm, visionssm
>>> model = timm.create_model("vmamba_tiny", features_only=True)
"""

from . import models
from ._create import create_model, list_models, load_checkpoint
from .ops import path_scan, selective_scan

__version__ = "0.1.0"
__all__ = ["create_model", "list_models", "load_checkpoint", "models", "path_scan", "selective_scan"]
