"""`import mamba_ssm` without mamba_ssm: an import hook that answers with our functions where a package is absent."""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_SCAN = ("selective_scan_fn", "selective_scan_ref")
_INNER = ("mamba_inner_fn", "mamba_inner_ref", "mamba_inner_fn_no_out_proj", "bimamba_inner_fn")
_NORM = ("layer_norm_fn", "rms_norm_fn", "RMSNorm")
_CONV = ("causal_conv1d_fn", "causal_conv1d_update")

# What each module that we stand in for holds: our module, and the names taken from it.
_MODULES: dict[str, dict[str, tuple[str, ...]]] = {
    "mamba_ssm": {"selective_scan": ("selective_scan_fn",), "mamba_inner": ("mamba_inner_fn",), "mamba": ("Mamba",)},
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": {"mamba": ("Mamba",)},
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": {"selective_scan": _SCAN, "mamba_inner": _INNER},
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.layer_norm": {"norm": _NORM},
    "mamba_ssm.ops.triton.layernorm": {"norm": _NORM},
    "causal_conv1d": {"causal_conv1d": _CONV},
    "causal_conv1d.causal_conv1d_interface": {"causal_conv1d": _CONV},
    "selective_scan_cuda_oflex": {"oflex": ("fwd", "bwd")},
    "selective_scan_cuda_core": {"oflex": ("fwd", "bwd")},
}
PACKAGES = tuple(name for name in _MODULES if "." not in name)


class _StandIns(MetaPathFinder, Loader):
    """Finds and builds the modules of the packages that we stand in for."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self.packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname not in _MODULES or fullname.partition(".")[0] not in self.packages:
            return None
        is_package = any(name.startswith(f"{fullname}.") for name in _MODULES)
        return ModuleSpec(fullname, self, origin="visionssm.compat", is_package=is_package)

    def create_module(self, spec: ModuleSpec) -> None:
        return None  # Python's own kind of module will do

    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = f"What visionssm offers in place of {module.__name__}; see visionssm.compat."
        for source, names in _MODULES[module.__name__].items():
            ours = import_module(f"{__package__}.{source}")
            for name in names:
                setattr(module, name, getattr(ours, name))


_finders: list[_StandIns] = []
_replaced: dict[str, ModuleType] = {}


def install(force: bool = False) -> tuple[str, ...]:
    """Lets code written for mamba_ssm, causal_conv1d or VMamba's extension run on visionssm, on any device.

    From then on `import mamba_ssm` (with `ops.selective_scan_interface`, `ops.triton.layer_norm` and
    `modules.mamba_simple`), `import causal_conv1d`, `import selective_scan_cuda_oflex` and `import
    selective_scan_cuda_core` give our functions. Call it before the code that imports them.

    Args:
        force: also stand in for packages that are installed, until :func:`uninstall`; without it an installed package is
            never touched. Code that has already imported names from it keeps them.

    Returns:
        The packages that visionssm stands in for now.

    Example:
        >>> from visionssm import compat
        >>> names = compat.install()
        >>> from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
        >>> compat.uninstall() == names
        True
    """
    ours = _stood_in_for()
    new = tuple(name for name in PACKAGES if name not in ours and (force or not _is_installed(name)))
    if new:
        finder = _StandIns(new)
        # In front only if forced: a package that is installed later is then found before its stand-in.
        sys.meta_path.insert(0 if force else len(sys.meta_path), finder)
        _finders.append(finder)
        _replaced.update(_take_modules(new))
    return _stood_in_for()


def uninstall() -> tuple[str, ...]:
    """Undoes :func:`install`: imports give the real packages again, or fail as before.

    Returns:
        The packages that visionssm stood in for.
    """
    ours = _stood_in_for()
    _take_modules(ours)
    for finder in _finders:
        sys.meta_path.remove(finder)
    sys.modules.update(_replaced)
    _finders.clear()
    _replaced.clear()
    return ours


def _stood_in_for() -> tuple[str, ...]:
    return tuple(name for name in PACKAGES if any(name in finder.packages for finder in _finders))


def _is_installed(name: str) -> bool:
    return name in sys.modules or find_spec(name) is not None


def _take_modules(packages: tuple[str, ...]) -> dict[str, ModuleType]:
    """Removes these packages and their submodules from what is imported, and returns them."""
    names = [name for name in sys.modules if name.partition(".")[0] in packages]
    return {name: sys.modules.pop(name) for name in names}
