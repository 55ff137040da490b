"""The gate of Mamba's blocks, in one pass over memory where the `native` back-end serves."""

from array import array

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .backends import native_serves_cpu
from .matrix_product import on_plain_cpu
from .schema import _library

_library.define("gate_silu_(Tensor(a!) y, Tensor z, float scale) -> ()")


def gate_silu(y: Tensor, z: Tensor, scale: float = 1.0) -> Tensor:
    """y * SiLU(z) * scale. Without gradients it takes the place of y, and SiLU(z) may take that of z.

    Args:
        y: (..., E).
        z: of y's shape. Both must have been made by the caller, and be read by nobody else.
        scale: a factor.

    Example:
        >>> y, z = torch.randn(2, 8), torch.randn(2, 8)
        >>> expected = y * F.silu(z) / 2
        >>> with torch.no_grad():
        ...     torch.allclose(gate_silu(y, z, 0.5), expected)
        True
    """
    if torch.is_grad_enabled():
        gate = F.silu(z)
        return y * (gate if scale == 1 else gate * scale)
    if _served(y, z):
        torch.ops.visionssm.gate_silu_(y, z, scale)
        return y
    gate = F.silu(z, inplace=True)
    y = y.mul_(gate) if y.dtype == torch.promote_types(y.dtype, z.dtype) else y * gate
    return y if scale == 1 else y.mul_(scale)


def _served(y: Tensor, z: Tensor) -> bool:
    if torch.compiler.is_compiling() or y.dtype == torch.float64 or y.shape != z.shape:
        return False
    return y.is_contiguous() and on_plain_cpu(y, z) and native_serves_cpu()


def gate_in_place(y: Tensor, z: Tensor, scale: float) -> None:
    """y becomes y * SiLU(z) * scale, by the native kernel: y dense, z of its shape and dtype."""
    columns = y.shape[-1]
    rows = y.numel() // max(columns, 1)
    z = z.reshape(rows, columns)  # a view where rows lie at equal distances
    z = z if z.stride(1) == 1 else z.contiguous()
    factor = array("d", (scale,))
    native.gate_silu(
        array(
            "q",
            (
                rows, columns, native.useful_threads(y.numel()), native.DTYPES[y.dtype],
                y.data_ptr(), z.data_ptr(), z.stride(0), factor.buffer_info()[0],
            ),
        )
    )  # fmt: skip


_library.impl("gate_silu_", gate_in_place, "CPU")
torch.library.register_fake("visionssm::gate_silu_", lambda y, z, scale: None, lib=_library)
