"""The operator's tests run the Triton kernels on CPU tensors, in Triton's interpreter, and native ones on every instruction set."""

from collections.abc import Iterator
from importlib.util import find_spec

import fast_interpreter
import pytest

from visionssm.ops import native

if find_spec("triton") is not None:
    fast_interpreter.install()


@pytest.fixture(params=native.INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the native kernels with one of the instruction sets that they are compiled for."""
    if native.unavailable() is not None:
        pytest.skip("the native back-end was not built")
    try:
        native.use_instruction_set(request.param)
    except ValueError:
        pytest.skip(f"this processor does not have {request.param}")
    yield request.param
    native.use_instruction_set()
