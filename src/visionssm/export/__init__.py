"""Models as files that run without this library: ONNX, torch.export programs, AOTInductor packages; and faster forms."""

from .files import FORMATS, Exported, FeatureMaps, export
from .fuse import fuse
from .quantize import quantize_linear

__all__ = ["FORMATS", "Exported", "FeatureMaps", "export", "fuse", "quantize_linear"]
