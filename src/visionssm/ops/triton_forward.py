"""Forward kernels: `tile_forward` for few states, `walk_forward` for many, `chunk_scan` between the two passes over chunks.

A program serves one image, one block of channels, one chunk of steps, and one path (K in the grid) or all of them, one after
the other (MERGE). All tensors but the states come with strides; states and A are (..., N, E).
"""

# ruff: noqa: RUF005, SIM102  (the kernel language adds tuples with +, and takes constants and values in separate ifs)

import triton
import triton.language as tl

from .triton_common import (
    LOG2E,
    find_steps,
    input_coefficient,
    load_delta,
    load_or_zero,
    load_positions,
    load_vector,
    load_weight,
    pick_row,
    scan_steps,
    softplus,
)


@triton.jit
def locate(blocks, chunks, K, MERGE: tl.constexpr):
    """Which block of channels, chunk, image, and range of paths this program serves. Blocks vary fastest."""
    program = tl.program_id(0)
    block = program % blocks
    chunk = (program // blocks) % chunks
    image = program // (blocks * chunks)
    if MERGE:
        first = image * 0
        end = first + K
    else:
        first = image % K
        end = first + 1
        image = image // K
    return block, chunk, image.to(tl.int64), first, end


@triton.jit
def write_rows(y, merged, offsets, values, k, K, mask, MASKED: tl.constexpr, MERGE: tl.constexpr, ZEROED: tl.constexpr):
    """Stores a path's part of y. With MERGE it is added to the float32 sum of the paths before, and the last path writes y.

    The same lane owns the same channel on every path, so that no two lanes meet. ZEROED: some path leaves out some position, so
    that the sum was zeroed before, and is complete only after the last path has ended.
    """
    if MERGE:
        if ZEROED:
            values += load_or_zero(merged + offsets, mask, MASKED)
            if MASKED:
                tl.store(merged + offsets, values, mask=mask)
            else:
                tl.store(merged + offsets, values)
        else:
            if k > 0:
                values += load_or_zero(merged + offsets, mask, MASKED)
            if k == K - 1:
                tl.store(y + offsets, values.to(y.dtype.element_ty), mask=mask)
            else:
                tl.store(merged + offsets, values, mask=mask)
    else:
        if MASKED:
            tl.store(y + offsets, values.to(y.dtype.element_ty), mask=mask)
        else:
            tl.store(y + offsets, values.to(y.dtype.element_ty))


@triton.jit
def _tile(
    x, dt, B, C, path, y, merged, checkpoints, weight, a, skip, bias, states, delta_sum, k, K, t, stop, T,
    stride_xl, stride_dtl, stride_Bl, stride_Cl, stride_yl, E, channels, lanes, in_range,
    N: tl.constexpr, R: tl.constexpr, RANKS: tl.constexpr, BT: tl.constexpr, STEPS: tl.constexpr, SOFTPLUS: tl.constexpr,
    ZOH: tl.constexpr, WRITE: tl.constexpr, SAVE: tl.constexpr, SUM_DELTA: tl.constexpr, SKIP: tl.constexpr, MERGE: tl.constexpr,
    ZEROED: tl.constexpr, MASK: tl.constexpr, PAD: tl.constexpr, TAIL: tl.constexpr, WIDE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """BT steps of one path; returns the states (a tuple of N rows of channels) after them, and the sum of delta."""
    MASKED: tl.constexpr = MASK or PAD or TAIL
    rows, ranks = tl.arange(0, BT), tl.arange(0, RANKS)
    steps, is_step = find_steps(t, stop, rows, TAIL)
    position, visited = load_positions(path, steps, is_step, PAD, TAIL, WIDE)
    mask = visited[:, None] & (channels >= 0)[None, :]
    if MASK:
        mask = visited[:, None] & in_range[None, :]
    x_rows = load_or_zero(x + position[:, None] * stride_xl + lanes[None, :], mask, MASKED)
    delta = load_delta(
        dt, weight, bias, position, visited, is_step, mask, stride_dtl, lanes, ranks, R, SOFTPLUS, MASKED, PAD, TAIL, UPCAST
    )  # fmt: skip
    if SUM_DELTA:
        delta_sum += tl.sum(delta, 0)
    out = tl.zeros([BT, channels.shape[0]], tl.float32)
    if SKIP:
        out += x_rows * skip[None, :]
    after = ()
    for n in tl.static_range(N):
        B_rows = load_or_zero(B + position * stride_Bl + n, visited, PAD or TAIL)
        delta_a = delta * a[n][None, :]
        decay = tl.exp2(delta_a)
        drive = input_coefficient(delta, delta_a, decay, ZOH) * x_rows * B_rows[:, None]
        h = scan_steps(decay, drive, states[n], rows)
        if SAVE:
            kept = checkpoints + (t // STEPS * N + n) * E + channels
            tl.store(kept, states[n], mask=in_range)
            for j in tl.static_range(1, BT // STEPS):
                tl.store(
                    kept + j * N * E,
                    pick_row(h, rows, j * STEPS - 1),
                    mask=in_range & ((channels * 0 + t) < T - j * STEPS),
                )
        after = after + (pick_row(h, rows, BT - 1),)
        if WRITE:
            out += h * load_or_zero(C + position * stride_Cl + n, visited, PAD or TAIL)[:, None]
    if WRITE:
        write_rows(y, merged, position[:, None] * stride_yl + lanes[None, :], out, k, K, mask, MASKED, MERGE, ZEROED)
    return after, delta_sum


@triton.jit(do_not_specialize=["zero", "chunks", "chunk_steps", "T", "kept"])
def tile_forward(
    x, dt, weight, A, B, C, D, dt_bias, path, start, y, merged, last, delta_sums, checkpoints,
    stride_xb, stride_xl, stride_xk, stride_dtb, stride_dtl, stride_dtk, stride_Bb, stride_Bl, stride_Bk,
    stride_Cb, stride_Cl, stride_Ck, stride_pk, stride_yb, stride_yl, stride_yk,
    K, T, E, chunks, chunk_steps, kept, zero,
    N: tl.constexpr, R: tl.constexpr, RANKS: tl.constexpr, BE: tl.constexpr, BT: tl.constexpr, VEC: tl.constexpr,
    STEPS: tl.constexpr, SOFTPLUS: tl.constexpr, ZOH: tl.constexpr, WRITE: tl.constexpr, SAVE: tl.constexpr,
    MERGE: tl.constexpr, ZEROED: tl.constexpr, SECOND_HALF: tl.constexpr, MASK: tl.constexpr, PAD: tl.constexpr,
    TAIL: tl.constexpr, WIDE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """For N < 8. `last` and `delta_sums` are (batch, K, chunks, N, E) and (batch, K, chunks, E); the latter may be None.

    SECOND_HALF: of the paths only the second half, whose states at the borders of tiles `pair_forward` begins from.
    """
    if SECOND_HALF:
        block, chunk, image, first, end = locate(tl.cdiv(E, BE), chunks, K // 2, MERGE)
        first += K // 2
        end += K // 2
    else:
        block, chunk, image, first, end = locate(tl.cdiv(E, BE), chunks, K, MERGE)
    channels = block * BE + tl.arange(0, BE)
    lanes = tl.multiple_of(channels + zero, VEC)
    in_range = channels < E
    t0 = chunk * chunk_steps
    stop = tl.minimum(t0 + chunk_steps, T)
    full = stop
    if TAIL:
        full = t0 + (stop - t0) // BT * BT
    for k in range(first, end):
        wide_k = image * 0 + k
        walk = image * K + k
        x_k = x + image * stride_xb + wide_k * stride_xk
        dt_k = dt + image * stride_dtb + wide_k * stride_dtk
        B_k = B + image * stride_Bb + wide_k * stride_Bk
        C_k = C + image * stride_Cb + wide_k * stride_Ck
        y_k = y
        merged_k = merged
        if WRITE:
            y_k = y + image * stride_yb + wide_k * stride_yk
            merged_k = merged + image * stride_yb
        path_k = path + k * stride_pk
        checkpoints_k = checkpoints + walk * kept * (N * E)
        state_k = (walk * chunks + chunk) * (N * E) + channels
        if R > 0:
            weight_k = load_weight(weight + k * E * R, channels, in_range, tl.arange(0, RANKS), R, UPCAST)
        else:
            weight_k = 0
        bias = load_vector(dt_bias, k * E + channels, in_range, BE)
        skip = load_vector(D, k * E + channels, in_range, BE)
        a = ()
        states = ()
        for n in tl.static_range(N):
            a = a + (tl.load(A + (k * N + n) * E + channels, mask=in_range, other=0.0) * LOG2E,)
            if start is not None:
                states = states + (tl.load(start + state_k + n * E, mask=in_range, other=0.0),)
            else:
                states = states + (tl.zeros([BE], tl.float32),)
        delta_sum = tl.zeros([BE], tl.float32)
        for t in range(t0, full, BT):
            states, delta_sum = _tile(
                x_k, dt_k, B_k, C_k, path_k, y_k, merged_k, checkpoints_k, weight_k, a, skip, bias, states, delta_sum,
                k, K, t, stop, T, stride_xl, stride_dtl, stride_Bl, stride_Cl, stride_yl, E, channels, lanes, in_range,
                N, R, RANKS, BT, STEPS, SOFTPLUS, ZOH, WRITE, SAVE, delta_sums is not None, D is not None,
                MERGE, ZEROED, MASK, PAD, False, WIDE, UPCAST,
            )  # fmt: skip
        if TAIL:
            if full < stop:
                states, delta_sum = _tile(
                    x_k, dt_k, B_k, C_k, path_k, y_k, merged_k, checkpoints_k, weight_k, a, skip, bias, states, delta_sum,
                    k, K, full, stop, T, stride_xl, stride_dtl, stride_Bl, stride_Cl, stride_yl, E, channels, lanes, in_range,
                    N, R, RANKS, BT, STEPS, SOFTPLUS, ZOH, WRITE, SAVE, delta_sums is not None, D is not None,
                    MERGE, ZEROED, MASK, PAD, True, WIDE, UPCAST,
                )  # fmt: skip
        for n in tl.static_range(N):
            tl.store(last + state_k + n * E, states[n], mask=in_range)
        if delta_sums is not None:
            tl.store(delta_sums + (walk * chunks + chunk) * E + channels, delta_sum, mask=in_range)
        if MERGE:
            tl.debug_barrier()


@triton.jit
def _walk(
    x, dt, B, C, path, y, merged, checkpoints, a, skip, bias, h, delta_sum, k, K, t,
    stride_xl, stride_dtl, stride_Bl, stride_Cl, stride_yl, E, channels, lanes, n, in_range, is_state,
    N: tl.constexpr, U: tl.constexpr, STEPS: tl.constexpr, SOFTPLUS: tl.constexpr, ZOH: tl.constexpr, WRITE: tl.constexpr,
    SAVE: tl.constexpr, SUM_DELTA: tl.constexpr, SKIP: tl.constexpr, MERGE: tl.constexpr, ZEROED: tl.constexpr,
    MASK: tl.constexpr, PAD: tl.constexpr, STATE_MASK: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """U steps of one path, all rows loaded before the first is computed; returns the state after them, and the sum of delta."""
    if SAVE:
        if t % STEPS == 0:
            kept = checkpoints + (t // STEPS * N + n)[:, None] * E + lanes[None, :]
            tl.store(kept, h, mask=is_state[:, None] & in_range[None, :])
    places, masks, xs, dts, Bs, Cs = (), (), (), (), (), ()
    for i in tl.static_range(U):
        position = tl.load(path + t + i)
        visited = (channels >= 0) & ((channels * 0 + position) >= 0)
        state_visited = is_state & ((n * 0 + position) >= 0)
        mask = visited & in_range
        if PAD:
            position = tl.maximum(position, 0)
        if WIDE:
            position = position.to(tl.int64)
        places = places + (position,)
        masks = masks + (mask,)
        xs = xs + (load_or_zero(x + position * stride_xl + channels, mask, MASK or PAD),)
        dts = dts + (load_or_zero(dt + position * stride_dtl + channels, mask, MASK or PAD),)
        B_at = tl.multiple_of(B + position * stride_Bl, ALIGNED)
        C_at = tl.multiple_of(C + position * stride_Cl, ALIGNED)
        Bs = Bs + (load_or_zero(B_at + n, state_visited, STATE_MASK or PAD),)
        Cs = Cs + (load_or_zero(C_at + n, state_visited, STATE_MASK or PAD),)
    outs = ()
    for i in tl.static_range(U):
        delta = dts[i] + bias
        if SOFTPLUS:
            delta = softplus(delta)
        if SUM_DELTA:
            delta_sum += delta
        delta_a = delta[None, :] * a
        decay = tl.exp2(delta_a)
        if ZOH:
            h = decay * h + input_coefficient(delta[None, :], delta_a, decay, ZOH) * xs[i][None, :] * Bs[i][:, None]
        else:
            h = decay * h + (delta * xs[i])[None, :] * Bs[i][:, None]
        if WRITE:
            out = tl.sum(h * Cs[i][:, None], 0)
            if SKIP:
                out += skip * xs[i]
            outs = outs + (out,)
    if WRITE:
        for i in tl.static_range(U):
            write_rows(y, merged, places[i] * stride_yl + channels, outs[i], k, K, masks[i], MASK or PAD, MERGE, ZEROED)
    return h, delta_sum


@triton.jit(do_not_specialize=["zero", "chunks", "chunk_steps", "T", "kept"])
def walk_forward(
    x, dt, A, B, C, D, dt_bias, path, start, y, merged, last, delta_sums, checkpoints,
    stride_xb, stride_xl, stride_xk, stride_dtb, stride_dtl, stride_dtk, stride_Bb, stride_Bl, stride_Bk,
    stride_Cb, stride_Cl, stride_Ck, stride_pk, stride_yb, stride_yl, stride_yk,
    K, T, E, chunks, chunk_steps, kept, zero,
    N: tl.constexpr, STATES: tl.constexpr, BE: tl.constexpr, U: tl.constexpr, STEPS: tl.constexpr, SOFTPLUS: tl.constexpr,
    ZOH: tl.constexpr, WRITE: tl.constexpr, SAVE: tl.constexpr, MERGE: tl.constexpr, ZEROED: tl.constexpr, MASK: tl.constexpr,
    PAD: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """For N >= 8: the states of a block of channels stay in registers, STATES (N rounded up to a power of 2) rows of them.

    ALIGNED divides the address of every row of B and C, in bytes, so that they load several values at a time.
    """
    block, chunk, image, first, end = locate(tl.cdiv(E, BE), chunks, K, MERGE)
    channels = block * BE + tl.arange(0, BE)
    lanes = channels + zero
    in_range = channels < E
    n = tl.arange(0, STATES)
    is_state = n < N
    state_mask = is_state[:, None] & in_range[None, :]
    t0 = chunk * chunk_steps
    stop = tl.minimum(t0 + chunk_steps, T)
    full = t0 + (stop - t0) // U * U
    for k in range(first, end):
        wide_k = image * 0 + k
        walk = image * K + k
        x_k = x + image * stride_xb + wide_k * stride_xk
        dt_k = dt + image * stride_dtb + wide_k * stride_dtk
        B_k = B + image * stride_Bb + wide_k * stride_Bk
        C_k = C + image * stride_Cb + wide_k * stride_Ck
        y_k = y
        merged_k = merged
        if WRITE:
            y_k = y + image * stride_yb + wide_k * stride_yk
            merged_k = merged + image * stride_yb
        path_k = path + k * stride_pk
        checkpoints_k = checkpoints + walk * kept * (N * E)
        state_k = (walk * chunks + chunk) * (N * E) + n[:, None] * E + lanes[None, :]
        bias = load_vector(dt_bias, k * E + channels, in_range, BE)
        skip = load_vector(D, k * E + channels, in_range, BE)
        a = tl.load(A + (k * N + n)[:, None] * E + lanes[None, :], mask=state_mask, other=0.0) * LOG2E
        h = tl.zeros([STATES, BE], tl.float32)
        if start is not None:
            h = tl.load(start + state_k, mask=state_mask, other=0.0)
        delta_sum = tl.zeros([BE], tl.float32)
        for t in range(t0, full, U):
            h, delta_sum = _walk(
                x_k, dt_k, B_k, C_k, path_k, y_k, merged_k, checkpoints_k, a, skip, bias, h, delta_sum, k, K, t,
                stride_xl, stride_dtl, stride_Bl, stride_Cl, stride_yl, E, channels, lanes, n, in_range, is_state,
                N, U, STEPS, SOFTPLUS, ZOH, WRITE, SAVE, delta_sums is not None, D is not None, MERGE, ZEROED, MASK, PAD,
                STATES > N, WIDE, ALIGNED,
            )  # fmt: skip
        for t in range(full, stop):
            h, delta_sum = _walk(
                x_k, dt_k, B_k, C_k, path_k, y_k, merged_k, checkpoints_k, a, skip, bias, h, delta_sum, k, K, t,
                stride_xl, stride_dtl, stride_Bl, stride_Cl, stride_yl, E, channels, lanes, n, in_range, is_state,
                N, 1, STEPS, SOFTPLUS, ZOH, WRITE, SAVE, delta_sums is not None, D is not None, MERGE, ZEROED, MASK, PAD,
                STATES > N, WIDE, ALIGNED,
            )  # fmt: skip
        tl.store(last + state_k, h, mask=state_mask)
        if delta_sums is not None:
            tl.store(delta_sums + (walk * chunks + chunk) * E + channels, delta_sum, mask=in_range)
        if MERGE:
            tl.debug_barrier()


@triton.jit(do_not_specialize=["chunks"])
def chunk_scan(states, delta_sums, A, start, K, E, chunks, N, BE: tl.constexpr, REVERSE: tl.constexpr):
    """In place: from the state at the end of each chunk that begins at zero, to the state that enters each chunk.

    A program serves one image, path, state and block of channels. REVERSE walks from the last chunk to the first.
    """
    blocks = tl.cdiv(E, BE)
    program = tl.program_id(0)
    channels = program % blocks * BE + tl.arange(0, BE)
    in_range = channels < E
    n = (program // blocks) % N
    walk = (program // blocks // N).to(tl.int64)
    a = tl.load(A + (walk % K * N + n) * E + channels, mask=in_range, other=0.0) * LOG2E
    state = tl.zeros([BE], tl.float32)
    if start is not None:
        state = tl.load(start + (walk * N + n) * E + channels, mask=in_range, other=0.0)
    for i in range(chunks):
        chunk = walk * chunks + i
        if REVERSE:
            chunk = walk * chunks + chunks - 1 - i
        own = tl.load(states + (chunk * N + n) * E + channels, mask=in_range, other=0.0)
        delta_sum = tl.load(delta_sums + chunk * E + channels, mask=in_range, other=0.0)
        tl.store(states + (chunk * N + n) * E + channels, state, mask=in_range)
        state = tl.exp2(delta_sum * a) * state + own


@triton.jit
def sum_paths(parts, total, size, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """total = the sum of COUNT parts of `size` elements, first to last."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    values = tl.load(parts + at, mask=mask, other=0.0)
    part = at
    for _ in tl.static_range(1, COUNT):
        part += size
        values += tl.load(parts + part, mask=mask, other=0.0)
    tl.store(total + at, values.to(total.dtype.element_ty), mask=mask)
