"""Modules that two or more models share; torch and `visionssm.ops` only."""

from .mlp import Mlp
from .multihead import MultiheadScan
from .norm import LayerNorm2d, RMSNorm
from .patches import PatchMerging, PatchStem
from .selective import SelectiveScan
from .ss2d import SS2D

__all__ = ["SS2D", "LayerNorm2d", "Mlp", "MultiheadScan", "PatchMerging", "PatchStem", "RMSNorm", "SelectiveScan"]
