"""A local web page on which images are looked at through a model."""

from .looking import Finding, Looker, open_upload

__all__ = ["Finding", "Looker", "open_upload"]
