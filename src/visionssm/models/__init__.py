"""The model families. Importing this registers every model with timm."""

from . import efficient_vmamba, groupmamba, local_mamba, mambavision, simba, vim, vmamba
from ._build import export_published, load_published
from ._checkpoint import read_checkpoint, save_checkpoint
from ._release import Release, all_releases, find_release
from ._tools import convert_checkpoint, count_gmacs, count_parameters, fingerprint

__all__ = [
    "Release",
    "all_releases",
    "convert_checkpoint",
    "count_gmacs",
    "count_parameters",
    "efficient_vmamba",
    "export_published",
    "find_release",
    "fingerprint",
    "groupmamba",
    "load_published",
    "local_mamba",
    "mambavision",
    "read_checkpoint",
    "save_checkpoint",
    "simba",
    "vim",
    "vmamba",
]
