"""Write a model to a file, run the file, and compare with the model before calling it done."""

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .._files import write_atomically
from ..models._plain import evenly_spaced
from .operators import decompose

FORMATS = {"onnx": ".onnx", "torch-export": ".pt2", "aoti": ".pt2"}
TOLERANCE = 1e-3  # of the largest output; float32 noise is 1e-6, a wrong program is 1e-1
INPUT = "images"

Run = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Exported:
    """A file that was run and compared.

    Attributes:
        file: where it is.
        errors: (batch, height, width) of each comparison, to the largest difference from the model over all outputs,
            as a share of the largest output.
        nodes: in the graph.
        outputs: their names.
    """

    file: Path
    errors: dict[tuple[int, int, int], float]
    nodes: int
    outputs: list[str]


class FeatureMaps(nn.Module):
    """A backbone that returns its maps: of all stages, or of four evenly spaced blocks in plain models.

    Example:
        >>> import visionssm
        >>> maps = FeatureMaps(visionssm.create_model("vmamba_nano").eval())(torch.randn(1, 3, 32, 32))
        >>> [tuple(features.shape[2:]) for features in maps]
        [(8, 8), (4, 4), (2, 2), (1, 1)]
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.feature_info: Any = self.model.feature_info
        self.pretrained_cfg: Any = self.model.pretrained_cfg
        depth = len(model.feature_info)
        self.indices = list(range(depth)) if depth <= 4 else list(evenly_spaced(depth))

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(images, indices=self.indices, intermediates_only=True)


def export(
    model: nn.Module,
    file: str | Path,
    format: str = "onnx",
    *,
    img_size: int | tuple[int, int] | None = None,
    dynamic: bool | None = None,
    metadata: dict[str, Any] | None = None,
    compare_sizes: Sequence[tuple[int, int]] | None = None,
) -> Exported:
    """Write a model as a program that needs no code of this library, after comparing the program with the model.

    Every scan becomes one loop node, so a file stays small and takes images of other sizes. That is for portability: the
    loop makes a step at a time, and is slower than the operator it stands for (docs/export.md has the numbers).

    Args:
        model: a classifier, a :class:`FeatureMaps` or `features_only` model (one output for each map), or any module of one
            image tensor.
        file: where the program goes; it appears only when it is right.
        format: "onnx"; "torch-export", a program for `torch.export.load`; or "aoti", that program compiled by
            AOTInductor, for `torch._inductor.aoti_load_package` on this kind of machine.
        img_size: (H, W), or the side of a square, of the example; by default the model's own.
        dynamic: leave batch, height and width open; otherwise the program takes one image of this size at a time. True by
            default, but for "aoti", where torch can't compile a loop with open sizes. A program of torch.export may
            refuse images whose last map is smaller than 3x3.
        metadata: stored in the file as JSON, such as the preprocessing and class names.
        compare_sizes: further (H, W) to compare at if `dynamic`; by default one higher by half, and an odd one a little
            larger.

    Raises:
        ValueError: an unknown format, a model that can't take the size, or outputs that differ from the model's (the
            file is not written then).
        ModuleNotFoundError: "onnx" needs onnx, onnxscript and onnxruntime: pip install 'visionssm[export]'.

    Example:
        >>> import tempfile, visionssm
        >>> model = visionssm.create_model("vmamba_nano")
        >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +SKIP
        ...     export(model, f"{folder}/model.onnx").errors
        {(1, 32, 32): 1e-07, (2, 32, 32): 1e-07, (2, 16, 48): 1e-07}
    """
    if format not in FORMATS:
        raise ValueError(f"format: got {format!r}, choose from {', '.join(FORMATS)}")
    path = Path(file)
    if path.suffix != FORMATS[format]:
        raise ValueError(f"file: got {path.name}, need a name that ends in {FORMATS[format]} for {format}")
    if dynamic and format == "aoti":
        raise ValueError("dynamic: AOTInductor can't compile the scan's loop with open sizes; leave dynamic out")
    dynamic = format != "aoti" if dynamic is None else dynamic
    H, W = _size(model, img_size)
    # No gradients, so that the scan's loop has no outputs for a backward pass.
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    channels = _channels(model)
    traced = [_open(side, model) for side in (H, W)] if dynamic else [H, W]
    example = torch.randn(2 if dynamic else 1, channels, *traced, generator=torch.Generator().manual_seed(0))
    program = trace(model, example, dynamic)
    names = _output_names(model, example)
    write, load = _WRITERS[format]
    errors: dict[tuple[int, int, int], float] = {}

    def write_and_compare(temporary: Path) -> None:
        write(program, example, names, json.dumps(metadata or {}), temporary)
        run = load(temporary)
        for shape in _shapes(H, W, dynamic, compare_sizes):
            errors[shape] = compare(model, run, shape, channels)

    write_atomically(path, write_and_compare)
    return Exported(path, errors, len(program.graph.nodes), names)


def trace(model: nn.Module, example: Tensor, dynamic: bool) -> ExportedProgram:
    """The model as a program of torch's own operators.

    Raises:
        ValueError: the model can't be traced; the message has torch's reason.
    """
    open_sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},) if dynamic else None
    try:
        with torch.no_grad(), _quiet():
            return decompose(torch.export.export(model, (example,), dynamic_shapes=open_sizes))
    except Exception as error:
        reason = " ".join(str(error).split())[:400]
        hint = "; a fixed size may work (dynamic=False, --static)" if dynamic else ""
        size = "x".join(map(str, example.shape))
        raise ValueError(f"{type(model).__name__} can't be exported for {size}: {reason}{hint}") from error


def compare(model: nn.Module, run: Run, shape: tuple[int, int, int], channels: int) -> float:
    """The largest difference between a program and the model on random images, as a share of the largest output.

    Raises:
        ValueError: it is more than rounding.
    """
    batch, H, W = shape
    images = torch.randn(batch, channels, H, W, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = _list(model(images))
    found = run(images)
    error = max(
        float((a - b).abs().max()) / max(float(b.abs().max()), 1e-12) for a, b in zip(found, expected, strict=True)
    )
    if not error < TOLERANCE:
        raise ValueError(
            f"the exported program differs from the model at {batch}x{channels}x{H}x{W} by {error:.1e} of the largest output"
        )
    return error


def _write_onnx(program: ExportedProgram, example: Tensor, names: list[str], metadata: str, file: Path) -> None:
    import onnx

    with _quiet():
        exported = torch.onnx.export(
            program, (example,), input_names=[INPUT], output_names=names, dynamo=True, verbose=False
        )
    assert exported is not None
    proto = exported.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = "visionssm", metadata
    onnx.checker.check_model(proto)
    onnx.save_model(proto, str(file))


def _load_onnx(file: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(value) for value in session.run(None, {INPUT: images.numpy()})]


def _write_program(program: ExportedProgram, example: Tensor, names: list[str], metadata: str, file: Path) -> None:
    with open(file, "wb") as stream:
        torch.export.save(program, stream, extra_files={"visionssm.json": metadata})


def _load_program(file: Path) -> Run:
    with open(file, "rb") as stream:
        module = torch.export.load(stream).module()
    return _inference(module)


def _write_package(program: ExportedProgram, example: Tensor, names: list[str], metadata: str, file: Path) -> None:
    # AOTInductor insists on the suffix, which a temporary name does not have.
    package = file.with_name(f"{file.name}.pt2")
    try:
        with _quiet():
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(package), inductor_configs={"aot_inductor.metadata": {"visionssm": metadata}}
            )
        package.replace(file)
    finally:
        package.unlink(missing_ok=True)


def _load_package(file: Path) -> Run:
    package = file.with_name(f"{file.name}.pt2")
    package.hardlink_to(file)
    try:
        return _inference(torch._inductor.aoti_load_package(str(package)))
    finally:
        package.unlink()


def _inference(module: Any) -> Run:
    def run(images: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            return _list(module(images))

    return run


_WRITERS: dict[str, tuple[Callable[..., None], Callable[[Path], Run]]] = {
    "onnx": (_write_onnx, _load_onnx),
    "torch-export": (_write_program, _load_program),
    "aoti": (_write_package, _load_package),
}


def _shapes(H: int, W: int, dynamic: bool, sizes: Sequence[tuple[int, int]] | None) -> Iterator[tuple[int, int, int]]:
    yield 1, H, W
    if not dynamic:
        return
    yield 3, H, W
    for h, w in sizes if sizes is not None else ((H + H // 2, W), (H + 17, W + 9)):
        yield 2, h, w


def _open(side: int, model: Any) -> int:
    """A side at which no map is so small that torch takes its size for a constant, or for the size of something else."""
    reduction = max((info["reduction"] for info in getattr(model, "feature_info", [])), default=1)
    return max(side, 3 * reduction)


def _size(model: nn.Module, img_size: int | tuple[int, int] | None) -> tuple[int, int]:
    if img_size is None:
        cfg: Any = getattr(model, "pretrained_cfg", None) or {}
        img_size = tuple(cfg.get("input_size", (3, 224, 224))[1:])
    H, W = (img_size, img_size) if isinstance(img_size, int) else img_size
    if min(H, W) < 1:
        raise ValueError(f"img_size: got {img_size}, need positive sides")
    return H, W


def _channels(model: nn.Module) -> int:
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))


def _output_names(model: nn.Module, example: Tensor) -> list[str]:
    with torch.inference_mode():
        outputs = model(example)
    return ["logits"] if isinstance(outputs, Tensor) else [f"feature_{i}" for i in range(len(outputs))]


def _list(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' remarks about their own internals off the screen."""
    import logging

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
