"""Whole mixers in one call: the native kernels of small maps one after the other.

On a single image the way of an operator through the dispatcher, its checks and the call of its module take as long as its kernel.
Where a mixer is nothing but its published steps, all of that is done once for the mixer instead of once for each step.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import depthwise, gate, native, norm
from .backends import native_serves_cpu
from .checks import path_facts
from .grouped_product import grouped_product
from .matrix_product import has_few_rows, on_plain_cpu, product
from .native_product import takes
from .observe import observers
from .schema import _library, scan_flops
from .tensors import ScanTensors

_WEIGHTS = (
    "Tensor in_proj, Tensor taps, Tensor? taps_bias, Tensor x_proj, Tensor dt_weight, Tensor dt_bias, Tensor A, Tensor D, "
    "Tensor out_proj"
)
_library.define(f"vim_mixer(Tensor x, {_WEIGHTS}, Tensor path, bool complete, bool log_A, float scale) -> Tensor")
_library.define(
    f"ss2d(Tensor x, {_WEIGHTS}, Tensor norm_weight, Tensor norm_bias, Tensor path, bool complete, bool log_A, float eps) -> Tensor"
)


class MixerWeights(NamedTuple):
    """The parameters of a mixer of C channels, with K paths over E channels of N states and a dt of rank R.

    Args:
        in_proj: (E, C), or (2 E, C) with a gate.
        taps: of the depthwise convolution, (directions, E, high, wide).
        taps_bias: (directions, E) or None.
        x_proj: (K, R + 2 N, E).
        dt_weight: (K, E, R).
        dt_bias: (K, E).
        A: (K, E, N), or log(-A), which is what models learn.
        D: (K, E).
        out_proj: (C, E).
    """

    in_proj: Tensor
    taps: Tensor
    taps_bias: Tensor | None
    x_proj: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    out_proj: Tensor


_COUNT = len(MixerWeights._fields)


def vim_mixer(x: Tensor, weights: MixerWeights, path: Tensor, log_A: bool, scale: float = 1.0) -> Tensor | None:
    """Vim's mixer (arXiv 2401.09417): in_proj, causal convolution and scan of each direction, gate, out_proj.

    Args:
        x: (batch, L, C).
        weights: with a gate, and as many directions of taps (directions, E, 1, wide) as paths.
        path: (K, L), forwards and, with K = 2, backwards.
        log_A: the weights' A is log(-A).
        scale: a factor of the gated sum.

    Returns:
        (batch, L, C); or None where the steps have to be taken one by one, because gradients are recorded, the map is large,
        the scan is observed, or the weights are not of x's dtype and on the CPU in the shapes above.

    Example:
        >>> from visionssm.layers.vim_mixer import VimMixer
        >>> mixer, x = VimMixer(16).eval(), torch.randn(1, 5, 16)
        >>> y = mixer(x)  # calls this by itself, without gradients
        >>> y.shape
        torch.Size([1, 5, 16])
    """
    K = weights.dt_bias.shape[0]
    if not _serves(x, weights, path, 2, (K, 1)):
        return None
    complete = path_facts(path, x.shape[1], abstract=False).complete
    return torch.ops.visionssm.vim_mixer(x, *weights, path, complete, log_A, scale)


def ss2d(
    x: Tensor,
    weights: MixerWeights,
    norm_weight: Tensor,
    norm_bias: Tensor,
    path: Tensor,
    log_A: bool,
    eps: float = 1e-5,
) -> Tensor | None:
    """VMamba's SS2D (arXiv 2401.10166) without a gate: in_proj, convolution, SiLU, scan, LayerNorm, out_proj.

    Args:
        x: (batch, H, W, C).
        weights: without a gate, and with taps (1, E, high, wide).
        norm_weight, norm_bias: (E).
        path: (K, T) table of the map's positions.
        log_A: the weights' A is log(-A).
        eps: of the LayerNorm.

    Returns:
        (batch, H, W, C), or None as in :func:`vim_mixer`.

    Example:
        >>> from visionssm.layers import SS2D
        >>> from visionssm.ops import paths
        >>> mixer, x = SS2D(16, paths.cross, gate=False).eval(), torch.randn(1, 5, 7, 16)
        >>> mixer(x).shape  # calls this by itself, without gradients
        torch.Size([1, 5, 7, 16])
    """
    E = weights.D.shape[1:]
    if norm_weight.shape != E or norm_bias.shape != E or not on_plain_cpu(x, norm_weight, norm_bias):
        return None
    if not _serves(x, weights, path, 1, (1, weights.taps.shape[2])):
        return None
    complete = path_facts(path, x.shape[1] * x.shape[2], abstract=False).complete
    return torch.ops.visionssm.ss2d(x, *weights, norm_weight, norm_bias, path, complete, log_A, eps)


def _serves(x: Tensor, weights: MixerWeights, path: Tensor, inputs: int, taps: tuple[int, int]) -> bool:
    """Whether everything fits together and is small, for an in_proj of `inputs` times E rows and taps of (directions, high)."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or observers or not native_serves_cpu():
        return False
    C = x.shape[-1]
    if not has_few_rows(x.numel() // max(C, 1), x.dtype) or weights.A.dim() != 3:
        return False
    (K, E, N), R = weights.A.shape, weights.dt_weight.shape[-1]
    fit = (
        weights.in_proj.shape == (inputs * E, C)
        and weights.taps.shape[:3] == (taps[0], E, taps[1])
        and (weights.taps_bias is None or weights.taps_bias.shape == (taps[0], E))
        and weights.x_proj.shape == (K, R + 2 * N, E)
        and weights.dt_weight.shape == (K, E, R)
        and weights.dt_bias.shape == (K, E)
        and weights.D.shape == (K, E)
        and weights.out_proj.shape[1] == E
        and path.shape[:-1] == (K,)
    )
    return fit and path.is_cpu and takes(x.dtype, C, E) and on_plain_cpu(x, *weights)


def _vim_mixer(x: Tensor, *arguments: Any) -> Tensor:
    weights, (path, complete, log_A, scale) = MixerWeights(*arguments[:_COUNT]), arguments[_COUNT:]
    batch, L, C = x.shape
    K, E = weights.D.shape
    rows, last_tap = batch * L, weights.taps.shape[3] - 1
    projected = product(x.reshape(rows, C), weights.in_proj)
    convolved = x.new_empty((batch, 1, L, K, E))
    depthwise.convolve_into(
        projected.view(batch, 1, L, 2 * E)[..., :E],
        weights.taps,
        weights.taps_bias,
        (last_tap, 0)[:K],
        (False, True)[:K],
        "silu",
        convolved,
    )
    sequences = convolved.view((batch, L, K, E) if K > 1 else (batch, L, E))
    y = _scan(sequences, weights, path, complete, log_A).view(rows, E)
    del convolved, sequences
    gate.gate_in_place(y, projected[:, E:], scale)
    return product(y, weights.out_proj).view(batch, L, weights.out_proj.shape[0])


def _ss2d(x: Tensor, *arguments: Any) -> Tensor:
    weights, (norm_weight, norm_bias, path, complete, log_A, eps) = (
        MixerWeights(*arguments[:_COUNT]),
        arguments[_COUNT:],
    )
    batch, H, W, C = x.shape
    E = weights.D.shape[1]
    rows = batch * H * W
    projected = product(x.reshape(rows, C), weights.in_proj)
    convolved = x.new_empty((batch, H, W, 1, E))
    left = (weights.taps.shape[3] // 2,)
    depthwise.convolve_into(
        projected.view(batch, H, W, E), weights.taps, weights.taps_bias, left, (False,), "silu", convolved
    )
    del projected
    y = _scan(convolved.view(batch, H * W, E), weights, path, complete, log_A)
    del convolved
    y = norm.normalize(y, None, norm_weight, norm_bias, eps, None)
    return product(y.view(rows, E), weights.out_proj).view(batch, H, W, weights.out_proj.shape[0])


def _scan(x: Tensor, weights: MixerWeights, path: Tensor, complete: bool, log_A: bool) -> Tensor:
    """x_proj and scan of (batch, L, E), or of (batch, L, K, E) with an input for each path; (batch, L, E)."""
    (K, _, N), R = weights.A.shape, weights.dt_weight.shape[2]
    if x.dim() == 4:
        parameters = grouped_product(x, weights.x_proj)
    else:
        parameters = product(x.flatten(0, 1), weights.x_proj.flatten(0, 1))
    dt, B, C = parameters.view(*x.shape[:2], K, R + 2 * N).split((R, N, N), dim=-1)
    tensors = ScanTensors(x, dt, weights.A, B, C, weights.D, weights.dt_bias, weights.dt_weight, path, None)
    return native.forward(
        tensors, softplus=True, zoh=False, merge=True, complete=complete, out_dtype=x.dtype, save=False, log_A=log_A
    )[0]


def _fake(x: Tensor, *arguments: Any) -> Tensor:
    out_proj = arguments[_COUNT - 1]
    return x.new_empty((*x.shape[:-1], out_proj.shape[0]))


def _flops(x: Any, *arguments: Any, **_: Any) -> int:
    in_proj, taps, _bias, x_proj, dt_weight, _dt_bias, (K, E, N), _D, out_proj = arguments[:_COUNT]
    positions = math.prod(x[:-1])
    products = sum(math.prod(size) for size in (in_proj, taps, x_proj, out_proj))
    return 2 * positions * products + scan_flops(1, positions, K, E, N, dt_weight[2])


for _name, _run in (("vim_mixer", _vim_mixer), ("ss2d", _ss2d)):
    _library.impl(_name, _run, "CPU")
    torch.library.register_fake(f"visionssm::{_name}", _fake, lib=_library)
register_flop_formula([torch.ops.visionssm.vim_mixer, torch.ops.visionssm.ss2d])(_flops)
