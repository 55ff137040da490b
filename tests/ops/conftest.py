"""The operator's tests run the `triton` back-end on CPU tensors, in Triton's interpreter."""

from importlib.util import find_spec

import fast_interpreter
import pytest

if find_spec("triton") is not None:
    fast_interpreter.install()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What test_backends.py runs on every back-end takes minutes in the interpreter; test_triton.py is the quick choice."""
    for item in items:
        parameters = getattr(item, "callspec", None)
        if item.path.name == "test_backends.py" and parameters and parameters.params.get("backend") == "triton":
            item.add_marker(pytest.mark.slow)
