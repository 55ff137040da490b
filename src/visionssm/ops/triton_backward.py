"""Backward kernels: `tile_backward`, and `adjoint_states`, its first pass when few images are cut into chunks.

With g[t] = C[t] dy[t] + decay[t + 1] g[t + 1], walked from the last step to the first, every gradient is a sum over g and the
states, which are rebuilt tile by tile from those that forward kept. What programs must add up goes to partial sums, one for each
block of channels (dB, dC) or for each image and chunk (dA, dD, d dt_bias), so that the order of every addition is fixed.
"""

import triton
import triton.language as tl

from .triton_common import (
    LN2,
    LOG2E,
    expm1_over_slope,
    find_steps,
    input_coefficient,
    load_delta,
    load_or_zero,
    load_positions,
    load_vector,
    load_weight,
    pick_row,
    scan_steps,
    shift_rows,
    sigmoid_of_softplus,
)
from .triton_forward import locate, write_rows


@triton.jit
def _walk_back(decay, out, carried, rows, BT: tl.constexpr):
    """g[t] = out[t] + decay[t + 1] g[t + 1] along the rows of a tile; also decay[0] g[0], for the step before."""
    g = tl.zeros_like(decay)
    for i in tl.static_range(BT):
        row = pick_row(out, rows, BT - 1 - i) + carried
        g = tl.where((rows == BT - 1 - i)[:, None], row[None, :], g)
        carried = pick_row(decay, rows, BT - 1 - i) * row
    return g, carried


@triton.jit
def _rebuild(
    x, dt, weight, B, A, path, checkpoint, deltas, entering, bias, span, length,
    stride_xl, stride_dtl, stride_Bl, E, lanes, in_range,
    N: tl.constexpr, R: tl.constexpr, RANKS: tl.constexpr, BE: tl.constexpr, BT: tl.constexpr, SOFTPLUS: tl.constexpr,
    ZOH: tl.constexpr, MASK: tl.constexpr, PAD: tl.constexpr, TAIL: tl.constexpr, WIDE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """From a checkpoint on: delta of each step, and the states that enter each tile of BT rows."""
    MASKED: tl.constexpr = MASK or PAD or TAIL
    rows, ranks = tl.arange(0, 16), tl.arange(0, RANKS)
    for n in range(N):
        tl.store(entering + n * BE, tl.load(checkpoint + n * E, mask=in_range, other=0.0))
    tl.debug_barrier()
    for tile in range(tl.cdiv(length, 16)):
        steps, is_step = find_steps(tile * 16, length, rows, TAIL)
        position, visited = load_positions(path + span, steps, is_step, PAD, TAIL, WIDE)
        mask = visited[:, None] & in_range[None, :]
        x_rows = load_or_zero(x + position[:, None] * stride_xl + lanes[None, :], mask, MASKED)
        delta = load_delta(
            dt, weight, bias, position, visited, is_step, mask, stride_dtl, lanes, ranks, R, SOFTPLUS, MASKED, PAD, TAIL, UPCAST
        )  # fmt: skip
        tl.store(deltas + steps[:, None] * BE, delta)
        for n in range(N):
            at = entering + (tile * (16 // BT) * N + n) * BE
            a = tl.load(A + n * E, mask=in_range, other=0.0) * LOG2E
            B_rows = load_or_zero(B + position * stride_Bl + n, visited, PAD or TAIL)
            delta_a = delta * a[None, :]
            decay = tl.exp2(delta_a)
            drive = input_coefficient(delta, delta_a, decay, ZOH) * x_rows * B_rows[:, None]
            h = scan_steps(decay, drive, tl.load(at), rows)
            for j in tl.static_range(1, 16 // BT + 1):
                tl.store(
                    at + j * N * BE,
                    pick_row(h, rows, j * BT - 1),
                    mask=(lanes >= 0) & ((lanes * 0 + tile * 16 + j * BT) < length),
                )
        tl.debug_barrier()


@triton.jit(do_not_specialize=["zero", "chunks", "chunk_steps", "T", "kept"])
def tile_backward(
    x, dt, weight, A, B, C, D, dt_bias, path, checkpoints, grad_y, carry, scratch,
    grad_x, merged, grad_raw, grad_A, grad_B, grad_C, grad_D, grad_bias,
    stride_xb, stride_xl, stride_xk, stride_dtb, stride_dtl, stride_dtk, stride_Bb, stride_Bl, stride_Bk,
    stride_Cb, stride_Cl, stride_Ck, stride_pk, stride_yb, stride_yl, stride_yk, stride_gxb, stride_gxl, stride_gxk,
    images, L, K, T, E, chunks, chunk_steps, kept, zero,
    N: tl.constexpr, R: tl.constexpr, RANKS: tl.constexpr, BE: tl.constexpr, BT: tl.constexpr, VEC: tl.constexpr,
    STEPS: tl.constexpr, SOFTPLUS: tl.constexpr, ZOH: tl.constexpr, MERGE: tl.constexpr, ZEROED: tl.constexpr,
    MASK: tl.constexpr, PAD: tl.constexpr, TAIL: tl.constexpr, WIDE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Walks back from checkpoint to checkpoint, STEPS steps each: first forward once more, in tiles of 16 rows, which tl.dot needs,
    to write delta and the states that enter each tile of BT rows to the program's `scratch` (STEPS + STEPS // BT N, BE); then
    backward in tiles of BT rows.

    `carry` (batch, K, chunks, N, E) holds decay g from the step after each chunk, and at the end that from its first step. It and
    `grad_A` (batch, K, chunks, N, E) go from tile to tile through memory, for n is a run-time loop: unrolled, 16 states do not fit
    into registers. `grad_raw` (batch, L, K, E) is the gradient of dt + dt_bias, before softplus. `grad_B` and `grad_C` are
    (blocks, batch, L, K, N), `grad_D` and `grad_bias` (batch, K, chunks, E).
    """
    MASKED: tl.constexpr = MASK or PAD or TAIL
    block, chunk, image, first, end = locate(tl.cdiv(E, BE), chunks, K, MERGE)
    columns = tl.arange(0, BE)
    channels = block * BE + columns
    lanes = tl.multiple_of(channels + zero, VEC)
    in_range = channels < E
    rows = tl.arange(0, BT)
    deltas = (
        scratch
        + tl.program_id(0).to(tl.int64) * ((STEPS + STEPS // BT * N) * BE)
        + tl.multiple_of(columns + zero, VEC)[None, :]
    )
    entering = scratch + tl.program_id(0).to(tl.int64) * ((STEPS + STEPS // BT * N) * BE) + STEPS * BE + columns
    t0 = chunk * chunk_steps
    stop = tl.minimum(t0 + chunk_steps, T)
    for k in range(first, end):
        wide_k = image * 0 + k
        walk = image * K + k
        x_k = x + image * stride_xb + wide_k * stride_xk
        dt_k = dt + image * stride_dtb + wide_k * stride_dtk
        B_k = B + image * stride_Bb + wide_k * stride_Bk
        C_k = C + image * stride_Cb + wide_k * stride_Ck
        y_k = grad_y + image * stride_yb + wide_k * stride_yk
        grad_x_k = grad_x + image * stride_gxb + wide_k * stride_gxk
        merged_k = merged + image * stride_gxb
        grad_raw_k = grad_raw + image * L * K * E + k * E
        grad_BC_k = (block * images + image) * L * (K * N) + k * N
        path_k = path + k * stride_pk
        part = walk * chunks + chunk
        state_k = part * (N * E) + channels
        if R > 0:
            weight_k = load_weight(weight + k * E * R, channels, in_range, tl.arange(0, RANKS), R, UPCAST)
        else:
            weight_k = 0
        bias = load_vector(dt_bias, k * E + channels, in_range, BE)
        skip = load_vector(D, k * E + channels, in_range, BE)
        skip_sum = tl.zeros([BE], tl.float32)
        bias_sum = tl.zeros([BE], tl.float32)
        spans = tl.cdiv(stop - t0, STEPS)
        for i in range(spans):
            span = t0 + (spans - 1 - i) * STEPS
            length = tl.minimum(stop - span, STEPS)
            checkpoint = checkpoints + (walk * kept + span // STEPS) * (N * E) + channels
            _rebuild(
                x_k, dt_k, weight_k, B_k, A + k * N * E + channels, path_k, checkpoint, deltas, entering, bias, span, length,
                stride_xl, stride_dtl, stride_Bl, E, lanes, in_range,
                N, R, RANKS, BE, BT, SOFTPLUS, ZOH, MASK, PAD, TAIL, WIDE, UPCAST,
            )  # fmt: skip
            tiles = tl.cdiv(length, BT)
            for j in range(tiles):
                tile = tiles - 1 - j
                steps, is_step = find_steps(span + tile * BT, stop, rows, TAIL)
                position, visited = load_positions(path_k, steps, is_step, PAD, TAIL, WIDE)
                mask = visited[:, None] & in_range[None, :]
                x_rows = load_or_zero(x_k + position[:, None] * stride_xl + lanes[None, :], mask, MASKED)
                dy = load_or_zero(y_k + position[:, None] * stride_yl + lanes[None, :], mask, MASKED)
                delta = tl.load(deltas + (tile * BT + rows)[:, None] * BE)
                dx = dy * skip[None, :]
                d_delta = tl.zeros([BT, BE], tl.float32)
                skip_sum += tl.sum(dy * x_rows, 0)
                for n in range(N):
                    a = tl.load(A + (k * N + n) * E + channels, mask=in_range, other=0.0)
                    carried = tl.load(carry + state_k + n * E, mask=in_range, other=0.0)
                    a_sum = tl.load(grad_A + state_k + n * E, mask=in_range & ((channels * 0 + i + j) > 0), other=0.0)
                    state = tl.load(entering + (tile * N + n) * BE)
                    B_rows = load_or_zero(B_k + position * stride_Bl + n, visited, PAD or TAIL)
                    C_rows = load_or_zero(C_k + position * stride_Cl + n, visited, PAD or TAIL)
                    delta_a = delta * (a * LOG2E)[None, :]
                    decay = tl.exp2(delta_a)
                    coefficient = input_coefficient(delta, delta_a, decay, ZOH)
                    at = grad_BC_k + position * (K * N) + n
                    h = scan_steps(decay, coefficient * x_rows * B_rows[:, None], state, rows)
                    tl.store(grad_C + at, tl.sum(dy * h, 1), mask=visited)
                    held = decay * shift_rows(h, state, rows, BT)
                    g, carried = _walk_back(decay, C_rows[:, None] * dy, carried, rows, BT)
                    held *= g
                    tl.store(grad_B + at, tl.sum(g * coefficient * x_rows, 1), mask=visited)
                    gB = g * B_rows[:, None]
                    dx += gB * coefficient
                    if ZOH:
                        d_delta += held * a[None, :] + gB * x_rows * decay
                        slope = delta * delta * expm1_over_slope(delta_a * LN2, decay)
                        a_sum += tl.sum(held * delta + gB * x_rows * slope, 0)
                    else:
                        d_delta += held * a[None, :] + gB * x_rows
                        a_sum += tl.sum(held * delta, 0)
                    tl.store(carry + state_k + n * E, carried, mask=in_range)
                    tl.store(grad_A + state_k + n * E, a_sum, mask=in_range)
                if SOFTPLUS:
                    d_delta *= sigmoid_of_softplus(delta)
                if TAIL:
                    d_delta = tl.where(is_step[:, None], d_delta, 0.0)
                bias_sum += tl.sum(d_delta, 0)
                raw_at = grad_raw_k + position[:, None] * (K * E) + lanes[None, :]
                tl.store(raw_at, d_delta.to(grad_raw.dtype.element_ty), mask=mask)
                at = position[:, None] * stride_gxl + lanes[None, :]
                write_rows(grad_x_k, merged_k, at, dx, k, K, mask, MASKED, MERGE, ZEROED)
                tl.debug_barrier()
        tl.store(grad_D + part * E + channels, skip_sum, mask=in_range)
        tl.store(grad_bias + part * E + channels, bias_sum, mask=in_range)


@triton.jit(do_not_specialize=["zero", "chunks", "chunk_steps", "T"])
def adjoint_states(
    dt, weight, A, C, dt_bias, path, grad_y, carry, delta_sums,
    stride_dtb, stride_dtl, stride_dtk, stride_Cb, stride_Cl, stride_Ck, stride_pk, stride_yb, stride_yl, stride_yk,
    K, T, E, chunks, chunk_steps, zero,
    N: tl.constexpr, R: tl.constexpr, RANKS: tl.constexpr, BE: tl.constexpr, VEC: tl.constexpr,
    SOFTPLUS: tl.constexpr, MASK: tl.constexpr, PAD: tl.constexpr, TAIL: tl.constexpr, WIDE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """What each chunk alone sends to the step before it, into the zeroed `carry` (batch, K, chunks, N, E), and its sum of delta.

    The rows of a tile are read in reverse, so that the adjoint recurrence is a scan like forward's.
    """
    block, chunk, image, k, _ = locate(tl.cdiv(E, BE), chunks, K, False)
    channels = block * BE + tl.arange(0, BE)
    lanes = tl.multiple_of(channels + zero, VEC)
    in_range = channels < E
    rows, ranks = tl.arange(0, 16), tl.arange(0, RANKS)
    t0 = chunk * chunk_steps
    stop = tl.minimum(t0 + chunk_steps, T)
    wide_k = image * 0 + k
    part = (image * K + k) * chunks + chunk
    dt += image * stride_dtb + wide_k * stride_dtk
    C += image * stride_Cb + wide_k * stride_Ck
    grad_y += image * stride_yb + wide_k * stride_yk
    path += k * stride_pk
    if R > 0:
        weight_k = load_weight(weight + k * E * R, channels, in_range, ranks, R, UPCAST)
    else:
        weight_k = 0
    bias = load_vector(dt_bias, k * E + channels, in_range, BE)
    delta_sum = tl.zeros([BE], tl.float32)
    for i in range(tl.cdiv(stop - t0, 16)):
        last = stop - 1 - i * 16
        steps = last - rows
        is_step = steps >= t0 if TAIL else rows >= 0
        position, visited = load_positions(path, steps, is_step, PAD, TAIL, WIDE)
        mask = visited[:, None] & in_range[None, :]
        dy = load_or_zero(grad_y + position[:, None] * stride_yl + lanes[None, :], mask, MASK or PAD or TAIL)
        delta = load_delta(
            dt, weight_k, bias, position, visited, is_step, mask, stride_dtl, lanes, ranks,
            R, SOFTPLUS, MASK or PAD or TAIL, PAD, TAIL, UPCAST,
        )  # fmt: skip
        delta_sum += tl.sum(delta, 0)
        for n in range(N):
            state = carry + (part * N + n) * E + channels
            a = tl.load(A + (k * N + n) * E + channels, mask=in_range, other=0.0) * LOG2E
            C_rows = load_or_zero(C + position * stride_Cl + n, visited, PAD or TAIL)
            decay = tl.exp2(delta * a[None, :])
            drive = decay * C_rows[:, None] * dy
            u = scan_steps(decay, drive, tl.load(state, mask=in_range, other=0.0), rows)
            tl.store(state, pick_row(u, rows, 15), mask=in_range)
        tl.debug_barrier()
    tl.store(delta_sums + part * E + channels, delta_sum, mask=in_range)
