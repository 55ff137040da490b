"""Triton's interpreter, fast enough for tests, and rounding to bfloat16 as GPUs do. The kernels themselves stay as they are.

As it comes, it walks through scans and reductions element by element, searches Triton's modules for what to replace at every
call of a nested function, checks every integer addition for overflow, and cuts off the bits that bfloat16 does not hold.
"""

from typing import Any

import numpy as np
import torch


def install() -> None:
    """Replaces these parts of the interpreter, for the whole process."""
    import triton.language as tl
    from triton.runtime import interpreter

    cast = interpreter.InterpreterBuilder.cast_impl

    def rows(self: Any, inputs: Any) -> list[np.ndarray]:
        return [np.moveaxis(value.handle.data, self.axis, 0) for value in inputs]

    def combine(self: Any, first: Any, then: Any, inputs: Any) -> list[np.ndarray]:
        operands = [self.to_tensor(v, i.dtype) for part in (first, then) for v, i in zip(part, inputs, strict=True)]
        result = self.combine_fn.fn(*operands)
        return [value.handle.data for value in (result if isinstance(result, tuple) else (result,))]

    def scan(self: Any, inputs: Any) -> list[Any]:
        data = rows(self, inputs)
        seen = [[value[0] for value in data]]
        for row in range(1, len(data[0])):
            seen.append(combine(self, seen[-1], [value[row] for value in data], inputs))
        columns = zip(*seen, strict=True)
        return [self.to_tensor(np.stack(c, self.axis), i.dtype) for c, i in zip(columns, inputs, strict=True)]

    def reduce(self: Any, inputs: Any) -> list[Any]:
        assert self.combine_fn is tl.standard._or_combine, "the only reduction of the kernels but sums"
        return [self.to_tensor(np.bitwise_or.reduce(rows(self, inputs)[0]), inputs[0].dtype)]

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if tl.core.is_builtin(tl.core.full):  # not replaced yet
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    def round_to_nearest(self: Any, value: Any, wanted: Any) -> Any:
        if (value.dtype.scalar, wanted.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, value, wanted)
        rounded = torch.from_numpy(np.ascontiguousarray(value.data)).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(rounded.reshape(value.data.shape), tl.bfloat16)

    interpreter.ScanOps.generic_scan = scan
    interpreter.ReduceOps.generic_reduce = reduce
    interpreter.InterpretedFunction.__call__ = call
    interpreter.InterpreterBuilder.cast_impl = round_to_nearest
    object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)
