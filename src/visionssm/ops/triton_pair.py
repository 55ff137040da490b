"""`pair_forward`: a path and its reversal on the same tile, for one state.

x is read once and y written once for both. The reversed path enters each tile with the state that a pass without outputs
(`tile_forward` over the second half of the paths) left there; backward needs these states anyway. Borders of tiles meet because
the short tile, where the steps don't divide, is the first one here and so the last one of the reversed path.
"""

import triton
import triton.language as tl

from .triton_common import (
    LOG2E,
    input_coefficient,
    load_delta,
    load_or_zero,
    load_positions,
    load_vector,
    load_weight,
    pick_row,
    scan_steps,
    scan_steps_back,
)
from .triton_forward import locate, write_rows


@triton.jit
def _load_path(
    dt, weight, A, B, C, D, dt_bias, image, k, E, channels, in_range,
    stride_dtb, stride_dtl, stride_dtk, stride_Bb, stride_Bk, stride_Cb, stride_Ck,
    R: tl.constexpr, RANKS: tl.constexpr, BE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """What a path has of its own: dt, its weight, B, C, A (in base 2), D, dt bias."""
    wide_k = image * 0 + k
    dt_k = dt + image * stride_dtb + wide_k * stride_dtk
    B_k = B + image * stride_Bb + wide_k * stride_Bk
    C_k = C + image * stride_Cb + wide_k * stride_Ck
    if R > 0:
        weight_k = load_weight(weight + k * E * R, channels, in_range, tl.arange(0, RANKS), R, UPCAST)
    else:
        weight_k = 0
    a = tl.load(A + k * E + channels, mask=in_range, other=0.0) * LOG2E
    skip = load_vector(D, k * E + channels, in_range, BE)
    bias = load_vector(dt_bias, k * E + channels, in_range, BE)
    return dt_k, weight_k, B_k, C_k, a, skip, bias


@triton.jit
def _one_way(
    x_rows, own, state, position, is_step, mask, rows, lanes, stride_dtl, stride_Bl, stride_Cl,
    R: tl.constexpr, RANKS: tl.constexpr, SOFTPLUS: tl.constexpr, ZOH: tl.constexpr, SKIP: tl.constexpr, MASK: tl.constexpr,
    LEAD: tl.constexpr, UPCAST: tl.constexpr, REVERSED: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """A path's part of y on a tile, and its state after each row; REVERSED, from the last row to the first."""
    dt, weight, B, C, a, skip, bias = own
    delta = load_delta(
        dt, weight, bias, position, is_step, is_step, mask, stride_dtl, lanes, tl.arange(0, RANKS),
        R, SOFTPLUS, MASK or LEAD, False, LEAD, UPCAST,
    )  # fmt: skip
    delta_a = delta * a[None, :]
    decay = tl.exp2(delta_a)
    B_rows = load_or_zero(B + position * stride_Bl, is_step, LEAD)
    drive = input_coefficient(delta, delta_a, decay, ZOH) * x_rows * B_rows[:, None]
    if REVERSED:
        h = scan_steps_back(decay, drive, state, rows, BT)
    else:
        h = scan_steps(decay, drive, state, rows)
    out = h * load_or_zero(C + position * stride_Cl, is_step, LEAD)[:, None]
    if SKIP:
        out += x_rows * skip[None, :]
    return out, h


@triton.jit
def _tile(
    x, path, first, second, checkpoints, second_checkpoints, y, merged, state, pair, pairs, t, T, first_kept,
    stride_xl, stride_dtl, stride_Bl, stride_Cl, stride_yl, E, channels, lanes, in_range,
    R: tl.constexpr, RANKS: tl.constexpr, BT: tl.constexpr, STEPS: tl.constexpr, SOFTPLUS: tl.constexpr, ZOH: tl.constexpr,
    SKIP: tl.constexpr, SAVE: tl.constexpr, MERGE: tl.constexpr, MASK: tl.constexpr, LEAD: tl.constexpr, WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Steps t to t + BT of the first path, without (LEAD) those before step 0; returns the state after them."""
    rows = tl.arange(0, BT)
    is_step = rows >= 0
    if LEAD:
        is_step = t + rows >= 0
    position, _ = load_positions(path, t + rows, is_step, False, LEAD, WIDE)
    mask = is_step[:, None] & (channels >= 0)[None, :]
    if MASK:
        mask = is_step[:, None] & in_range[None, :]
    x_rows = load_or_zero(x + position[:, None] * stride_xl + lanes[None, :], mask, MASK or LEAD)
    entering = tl.load(second_checkpoints + (T - t - BT) // STEPS * E + channels, mask=in_range, other=0.0)
    out, h = _one_way(
        x_rows, first, state, position, is_step, mask, rows, lanes, stride_dtl, stride_Bl, stride_Cl,
        R, RANKS, SOFTPLUS, ZOH, SKIP, MASK, LEAD, UPCAST, False, BT,
    )  # fmt: skip
    second_out, _ = _one_way(
        x_rows, second, entering, position, is_step, mask, rows, lanes, stride_dtl, stride_Bl, stride_Cl,
        R, RANKS, SOFTPLUS, ZOH, SKIP, MASK, LEAD, UPCAST, True, BT,
    )  # fmt: skip
    if SAVE:
        for j in tl.static_range(BT // STEPS):
            row = first_kept + j * STEPS
            before = tl.where(row == 0, state, pick_row(h, rows, row - 1))
            kept = checkpoints + (t + row) // STEPS * E + channels
            tl.store(kept, before, mask=in_range & ((channels * 0 + t + row) >= 0))
    at = position[:, None] * stride_yl + lanes[None, :]
    write_rows(y, merged, at, out + second_out, pair, pairs, mask, MASK or LEAD, MERGE, False)
    return pick_row(h, rows, BT - 1)


@triton.jit(do_not_specialize=["zero", "T", "kept"])
def pair_forward(
    x, dt, weight, A, B, C, D, dt_bias, path, start, y, merged, last, checkpoints,
    stride_xb, stride_xl, stride_dtb, stride_dtl, stride_dtk, stride_Bb, stride_Bl, stride_Bk, stride_Cb, stride_Cl, stride_Ck,
    stride_pk, stride_yb, stride_yl, stride_yk, K, T, E, kept, zero,
    R: tl.constexpr, RANKS: tl.constexpr, BE: tl.constexpr, BT: tl.constexpr, VEC: tl.constexpr, STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr, ZOH: tl.constexpr, SAVE: tl.constexpr, MERGE: tl.constexpr, MASK: tl.constexpr, LEAD: tl.constexpr,
    WIDE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Path k + K / 2 is path k from its end, and every path visits every position. `checkpoints` (batch, K, kept, E) holds the
    second half's states every STEPS steps; with SAVE the first half's are added. `last` (batch, K, E) gets the first half's.
    """
    pairs = K // 2
    block, _, image, begin, end = locate(tl.cdiv(E, BE), 1, pairs, MERGE)
    channels = block * BE + tl.arange(0, BE)
    lanes = tl.multiple_of(channels + zero, VEC)
    in_range = channels < E
    x_b = x + image * stride_xb
    merged_b = merged + image * stride_yb
    lead = T % BT
    first_kept = (STEPS - lead % STEPS) % STEPS  # row of each tile before which the state is kept
    for k in range(begin, end):
        first = _load_path(
            dt, weight, A, B, C, D, dt_bias, image, k, E, channels, in_range,
            stride_dtb, stride_dtl, stride_dtk, stride_Bb, stride_Bk, stride_Cb, stride_Ck, R, RANKS, BE, UPCAST,
        )  # fmt: skip
        second = _load_path(
            dt, weight, A, B, C, D, dt_bias, image, k + pairs, E, channels, in_range,
            stride_dtb, stride_dtl, stride_dtk, stride_Bb, stride_Bk, stride_Cb, stride_Ck, R, RANKS, BE, UPCAST,
        )  # fmt: skip
        path_k = path + k * stride_pk
        y_k = y + image * stride_yb + (image * 0 + k) * stride_yk
        walk = image * K + k
        kept_k = checkpoints + walk * kept * E
        kept_second = checkpoints + (walk + pairs) * kept * E
        state = load_vector(start, walk * E + channels, in_range, BE)
        if LEAD:
            state = _tile(
                x_b, path_k, first, second, kept_k, kept_second, y_k, merged_b, state, k, pairs, lead - BT, T, first_kept,
                stride_xl, stride_dtl, stride_Bl, stride_Cl, stride_yl, E, channels, lanes, in_range,
                R, RANKS, BT, STEPS, SOFTPLUS, ZOH, D is not None, SAVE, MERGE, MASK, True, WIDE, UPCAST,
            )  # fmt: skip
        for t in range(lead, T, BT):
            state = _tile(
                x_b, path_k, first, second, kept_k, kept_second, y_k, merged_b, state, k, pairs, t, T, first_kept,
                stride_xl, stride_dtl, stride_Bl, stride_Cl, stride_yl, E, channels, lanes, in_range,
                R, RANKS, BT, STEPS, SOFTPLUS, ZOH, D is not None, SAVE, MERGE, MASK, False, WIDE, UPCAST,
            )  # fmt: skip
        tl.store(last + walk * E + channels, state, mask=in_range)
        if MERGE:
            tl.debug_barrier()
