"""The model families. Importing this registers every model with timm."""

from . import vmamba

__all__ = ["vmamba"]
