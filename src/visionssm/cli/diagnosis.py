"""The facts that `visionssm doctor` reports, as plain data."""

import os
import platform
import shutil
import warnings
from importlib import metadata
from typing import Any

import torch

from visionssm._machine import processor
from visionssm.cli.errors import EXTRAS

REQUIRED = ("torch", "timm", "torchvision", "numpy", "safetensors", "triton")
FAST_BACKEND = {"cpu": "native", "cuda": "triton", "xpu": "triton"}
SELF_CHECK_TOLERANCE = 1e-4  # of the largest value; float32 sums in two orders differ by some 1e-6


def examine() -> dict[str, Any]:
    """Everything that `visionssm doctor` shows, as plain data.

    Returns:
        versions: package -> version, or None where it is not installed.
        system: operating system, processor, instruction set, cores, torch's threads, what torch was built for.
        devices: for each its name, the back-end that `auto` takes, why others refuse, advice, and the self check.
        problems: what does not work, one line each. Empty when all is well.
        notes: what works but could be better.
    """
    problems, notes = [], []
    if _version("visionssm") is None:
        notes.append("visionssm runs from its source folder and is not installed, so its requirements were not checked")
    else:
        problems += _unmet_requirements()
    devices = [_examine_device(device, name) for device, name in _devices()]
    for device in devices:
        problems += [f"{device['device']}: {problem}" for problem in device["problems"]]
        notes += [f"{device['device']}: {advice}" for advice in device["advice"]]
    return {
        "versions": _versions(),
        "system": _system(),
        "devices": devices,
        "problems": problems,
        "notes": notes + _gpu_out_of_use(),
    }


def _versions() -> dict[str, str | None]:
    packages = ("visionssm", *REQUIRED, *EXTRAS)
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return metadata.version({"sklearn": "scikit-learn", "yaml": "PyYAML"}.get(package, package))
    except metadata.PackageNotFoundError:
        return None


def _unmet_requirements() -> list[str]:
    """The requirements that this environment breaks: of the package, and of its extras where they are installed."""
    from packaging.requirements import Requirement

    unmet = []
    for requirement in map(Requirement, metadata.requires("visionssm") or []):
        name, version = requirement.name, _version(requirement.name)
        marker = str(requirement.marker or "")
        if "dev" in marker or (version is None and marker):
            continue
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found = f"{name} {version}" if version else f"no {name}"
            unmet.append(f"found {found}, need {name}{requirement.specifier}: pip install -U {name}")
    return unmet


def _system() -> dict[str, str | int]:
    build = "CPU"
    if torch.version.cuda:
        build = f"CUDA {torch.version.cuda}"
    elif torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "native_kernels": _native_kernels(),
        "cores": os.cpu_count() or 1,
        "torch_threads": torch.get_num_threads(),
        "torch_built_for": build,
    }


def _native_kernels() -> str:
    """The instruction set that they use."""
    from visionssm.ops import native

    if native.unavailable() is not None:
        return "none"
    return native.use_instruction_set(os.environ.get("VISIONSSM_CPU", ""))


def _devices() -> list[tuple[str, str]]:
    """Every device that torch can use, with its name."""
    found = [("cpu", processor())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about a driver that it cannot use; _gpu_out_of_use says it
        for kind, module in (("cuda", torch.cuda), ("xpu", torch.xpu)):
            if module.is_available():
                found += [(f"{kind}:{index}", module.get_device_name(index)) for index in range(module.device_count())]
    if torch.backends.mps.is_available():
        found.append(("mps", "Apple GPU"))
    return found


def _gpu_out_of_use() -> list[str]:
    """Advice where a machine seems to have an NVIDIA GPU that torch does not use."""
    if shutil.which("nvidia-smi") is None or torch.version.hip:
        return []
    if torch.version.cuda is None:
        return ["this machine has NVIDIA tools, but torch was built for CPU only: install a CUDA build of torch"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return []
    reason = " ".join(str(caught[0].message).split()) if caught else "check `nvidia-smi` and CUDA_VISIBLE_DEVICES"
    return [f"this machine has NVIDIA tools, but torch sees no GPU: {reason}"]


def _examine_device(device: str, name: str) -> dict[str, Any]:
    from visionssm.ops.backends import choose_backend, explain_backend

    result: dict[str, Any] = {"device": device, "name": name, "auto": None, "backends": {}, "self_check": {}}
    result |= {"advice": [], "problems": []}
    try:
        result["backends"] = explain_backend(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the slow path is part of the report
            result["auto"] = choose_backend("auto", torch.device(device), torch.float32)
    except Exception as error:  # a broken installation is what this command is for
        result["problems"].append(f"{type(error).__name__}: {error}")
    for backend, reason in result["backends"].items():
        # On the CPU Triton runs in an interpreter, for tests of its kernels: it takes minutes here and serves nobody.
        interpreted = backend == "triton" and device == "cpu"
        if reason is not None or backend == "reference" or interpreted:
            continue
        try:
            difference = compare_with_reference(backend, device)
        except Exception as error:  # whatever a driver or a compiler says is the finding
            result["problems"].append(f"{backend} fails: {type(error).__name__}: {' '.join(str(error).split())}")
            continue
        result["self_check"][backend] = difference
        if not difference <= SELF_CHECK_TOLERANCE:  # NaN is a problem too
            result["problems"].append(f"{backend} is wrong: it differs from reference by {difference:.1e}")
    fast = FAST_BACKEND.get(torch.device(device).type)
    if fast and result["backends"].get(fast) is not None:
        result["advice"].append(_advice(fast))
    return result


def _advice(backend: str) -> str:
    if backend == "native":
        commands = {"Darwin": "xcode-select --install", "Linux": "for instance apt install g++"}
        compiler = commands.get(platform.system(), "GCC or Clang")
        return (
            f"the fast CPU back-end is missing: install a C++ compiler ({compiler}), then visionssm again "
            "(pip install --force-reinstall --no-deps --no-cache-dir ...)"
        )
    package = "triton-windows" if platform.system() == "Windows" else "triton"
    return f"the fast GPU back-end is missing: install the Triton that fits your torch (pip install {package})"


def compare_with_reference(backend: str, device: str) -> float:
    """Scan a small image on `backend`: the largest difference of outputs and gradients from `reference`, relative.

    >>> compare_with_reference("torch", "cpu") < 1e-4
    True
    """
    from visionssm.ops import path_scan, paths

    batch, height, width, channels, state = 2, 5, 7, 20, 4
    path = paths.cross(height, width).to(device)
    count, length = path.shape
    random = torch.Generator().manual_seed(0)
    shapes = {
        "x": (batch, length, channels),
        "dt": (batch, length, count, channels),
        "A": (count, channels, state),
        "B": (batch, length, count, state),
        "C": (batch, length, count, state),
        "D": (count, channels),
        "dt_bias": (count, channels),
    }
    values = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    values["A"] = -values["A"].exp()

    def scan(name: str) -> tuple[torch.Tensor, ...]:
        leaves = [value.to(device, copy=True).requires_grad_() for value in values.values()]
        x, dt, A, B, C, D, dt_bias = leaves
        y = path_scan(x, dt, A, B, C, D, dt_bias, path, backend=name)
        assert isinstance(y, torch.Tensor)
        return y.detach(), *torch.autograd.grad(y.square().sum(), leaves)

    pairs = zip(scan(backend), scan("reference"), strict=True)
    return max(float((got - want).abs().max() / want.abs().max()) for got, want in pairs)
