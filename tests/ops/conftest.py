"""The operator's tests run the Triton kernels on CPU tensors, in Triton's interpreter."""

from importlib.util import find_spec

import fast_interpreter

if find_spec("triton") is not None:
    fast_interpreter.install()
