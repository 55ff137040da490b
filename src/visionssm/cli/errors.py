"""What the command line says, and the exit code that it gives, when a command fails."""

USER_ERROR = 2
INTERNAL_ERROR = 1
INTERRUPTED = 130
BROKEN_PIPE = 141

# Modules that come with an extra of the package rather than with the package itself.
EXTRAS = {
    "lightning": "train",
    "jsonargparse": "train",
    "yaml": "train",
    "tqdm": "train",
    "tensorboard": "train",
    "sklearn": "train",
    "faster_coco_eval": "detection",
    "transformers": "segmentation",
    "matplotlib": "viz",
    "datasets": "data",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "torchao": "export",
    "gradio": "serve",
}


def explain(error: Exception) -> tuple[str, int]:
    """One line about an exception for the person at the terminal, and the exit code that goes with it.

    ValueError, TypeError and OSError are about what the user gave and give 2, as does a library that an extra installs;
    anything else is a fault of ours and gives 1.

    >>> explain(ValueError("no images in 'photos'"))
    ("no images in 'photos'", 2)
    >>> explain(FileNotFoundError(2, "No such file or directory", "best.ckpt"))
    ('best.ckpt: No such file or directory', 2)
    >>> explain(ModuleNotFoundError("No module named 'lightning'", name="lightning"))
    ("this needs lightning, which is not installed: pip install 'visionssm[train]'", 2)
    >>> explain(RuntimeError("index out of range"))
    ('RuntimeError: index out of range (run again with --debug for the traceback)', 1)
    """
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.partition(".")[0]
        if module in EXTRAS:
            return f"this needs {module}, which is not installed: pip install 'visionssm[{EXTRAS[module]}]'", USER_ERROR
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}", USER_ERROR
    message = _one_line(str(error))
    if isinstance(error, ValueError | TypeError | OSError) and message:
        return message, USER_ERROR
    named = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return f"{named} (run again with --debug for the traceback)", INTERNAL_ERROR


def _one_line(text: str) -> str:
    return " ".join(text.split())
