"""What is installed: the wheel, with and without a compiler, the layers of the package, and the README's code."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "visionssm"
# A package may import those to its left.
LAYERS = ("ops", "layers", "models", "heads", "tasks", "cli")


def build_wheel(folder, **environment):
    """Build a wheel from a copy of the project in a folder with a space in its name, and return what it holds."""
    project = folder / "my projects" / "visionssm"
    shutil.copytree(PACKAGE, project / "src" / "visionssm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, project / name)
    build = "from scikit_build_core.build import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=project, check=True, env=os.environ | environment)
    (wheel,) = (project / "dist").glob("*.whl")
    return wheel


@pytest.mark.slow
def test_wheel_serves_every_python_and_torch(tmp_path):
    wheel = build_wheel(tmp_path)
    assert re.fullmatch(r"visionssm-[^-]+-py3-none-(?!any)\S+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        library = [name for name in names if name.startswith("visionssm/_lib/libvisionssm")]
        assert len(library) == 1
        needed = archive.read(library[0])
    assert not any(name in needed for name in (b"libpython", b"libtorch", b"libc10", b"PyInit_"))
    assert not [name for name in names if "csrc" in name or "__pycache__" in name]
    assert {Path(name).name for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}
    patterns = ("*.py", "weights/*.safetensors")
    sources = {path.relative_to(PACKAGE.parent).as_posix() for pattern in patterns for path in PACKAGE.rglob(pattern)}
    assert sources <= set(names)


@pytest.mark.slow
def test_wheel_without_a_compiler_has_everything_but_the_library(tmp_path):
    wheel = build_wheel(tmp_path, CXX="/there/is/no/compiler")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert not [name for name in names if "/_lib/" in name]
    assert "visionssm/ops/api.py" in names


def test_import_takes_no_extra():
    """`import visionssm` must work, and be quick, where none of the extras is installed."""
    extras = (
        "lightning",
        "torchmetrics",
        "sklearn",
        "transformers",
        "onnx",
        "matplotlib",
        "jsonargparse",
        "pycocotools",
    )
    program = f"import sys, visionssm, visionssm.ops; print([name for name in {extras} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def imported_modules(file):
    """Absolute names of all that a file imports, also inside functions."""
    package = ("visionssm", *file.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join((*base, *([node.module] if node.module else [])))
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer):
    above = LAYERS[LAYERS.index(layer) + 1 :]
    if layer in ("ops", "layers"):
        above = (*above, "data", "visualize", "export", "bench")
    wrong = [
        f"{file.relative_to(PACKAGE)} imports {module}"
        for file in sorted((PACKAGE / layer).rglob("*.py"))
        for module in imported_modules(file)
        if module.startswith(tuple(f"visionssm.{name}." for name in above))
    ]
    assert wrong == []


def test_the_first_code_of_the_readme_runs():
    """As written, but for the weights, which would have to be fetched."""
    text = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    assert text.partition(code)[0].count("\n") < 30
    names = {}
    exec(compile(code.replace("pretrained=True", "pretrained=False"), "README.md", "exec"), names)
    assert [tuple(each.shape[2:]) for each in names["maps"]] == [(80, 112), (40, 56), (20, 28), (10, 14)]
    assert names["y"].shape == (names["batch"], names["H"] * names["W"], names["E"])
