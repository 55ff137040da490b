"""What the Triton kernels share: the step's mathematics, and picking rows of a tile.

All kernels rest on one idea: a lane owns its channels, and all steps of a tile live in that lane's registers. A scan over the
steps is then a plain recurrence without shuffles, and any row can be picked for free. Triton chooses layouts by memory
accesses, and would spread the steps of a contiguous load over lanes; adding `zero`, an argument whose value the compiler does
not know, to the channel offsets keeps it from seeing that they are contiguous, and `tl.multiple_of` gives back exactly as much
of it as each lane is to hold.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(v):
    """log(1 + exp(v)) to 2e-7 relative: max(v, 0) + log1p(u) with u = exp(-|v|), log1p as a polynomial."""
    u = tl.exp2(tl.abs(v) * -LOG2E)
    q = u * -0.008539201691746712 + 0.044089607894420624
    q = q * u - 0.10768168419599533
    q = q * u + 0.17745238542556763
    q = q * u - 0.24495461583137512
    q = q * u + 0.33275479078292847
    q = q * u - 0.4999740421772003
    q = q * u + 0.9999998211860657
    return q * u + tl.maximum(v, 0.0)


@triton.jit
def sigmoid_of_softplus(s):
    """sigmoid(v) = 1 - exp(-s) for s = softplus(v), without cancellation where s is small."""
    series = 1.0 - s * (0.5 - s * (0.16666666666666666 - s * (0.041666666666666664 - s * 0.008333333333333333)))
    return tl.where(s < 0.125, s * series, 1.0 - tl.exp2(s * -LOG2E))


@triton.jit
def expm1_over(z, exp_z):
    """(exp(z) - 1) / z, 1 at z = 0."""
    q = z * 2.48015873015873e-05 + 0.0001984126984126984
    q = q * z + 0.001388888888888889
    q = q * z + 0.008333333333333333
    q = q * z + 0.041666666666666664
    q = q * z + 0.16666666666666666
    q = q * z + 0.5
    q = q * z + 1.0
    small = tl.abs(z) < 0.5
    return tl.where(small, q, (exp_z - 1.0) / tl.where(small, 1.0, z))


@triton.jit
def expm1_over_slope(z, exp_z):
    """The derivative of (exp(z) - 1) / z: (exp(z) (z - 1) + 1) / z^2, 1/2 at z = 0."""
    q = z * 2.2964432686654909e-08 + 2.505210838544172e-07
    q = q * z + 2.48015873015873e-06
    q = q * z + 2.2045855379188714e-05
    q = q * z + 0.00017361111111111112
    q = q * z + 0.0011904761904761906
    q = q * z + 0.006944444444444444
    q = q * z + 0.03333333333333333
    q = q * z + 0.125
    q = q * z + 0.3333333333333333
    q = q * z + 0.5
    small = tl.abs(z) < 1.0
    safe = tl.where(small, 1.0, z)
    return tl.where(small, q, (exp_z * (safe - 1.0) + 1.0) / (safe * safe))


@triton.jit
def input_coefficient(delta, delta_a, decay, ZOH: tl.constexpr):
    """What stands in front of B x: delta (Euler), or (exp(delta A) - 1) / A; delta_a is in base 2, decay = exp2(delta_a)."""
    if ZOH:
        coefficient = delta * expm1_over(delta_a * LN2, decay)
    else:
        coefficient = delta
    return coefficient


@triton.jit
def recurrence(a_first, b_first, a_then, b_then):
    """Two steps h = a h + b as one."""
    return a_first * a_then, a_then * b_first + b_then


@triton.jit
def _then(first, then):
    return then


@triton.jit
def pick_row(tile, rows, row):
    """One row of a tile whose rows all live in each lane: a constant one costs nothing, since an OR with zero bits folds away."""
    bits = tl.where((rows == row)[:, None], tile.to(tl.int32, bitcast=True), 0)
    return tl.reduce_or(bits, 0).to(tl.float32, bitcast=True)


@triton.jit
def scan_steps(decay, drive, state, rows):
    """h[t] = decay[t] h[t - 1] + drive[t] along the rows of a tile, from `state`."""
    entering = tl.where((rows == 0)[:, None], decay * state[None, :], 0.0)
    _, h = tl.associative_scan((decay, drive + entering), 0, recurrence)
    return h


@triton.jit
def scan_steps_back(decay, drive, state, rows, BT: tl.constexpr):
    """The same from the last row to the first."""
    entering = tl.where((rows == BT - 1)[:, None], decay * state[None, :], 0.0)
    _, h = tl.associative_scan((decay, drive + entering), 0, recurrence, reverse=True)
    return h


@triton.jit
def shift_rows(tile, first, rows, BT: tl.constexpr):
    """Each row moved one down, below the row `first`; as free as :func:`pick_row`."""
    shifted = tl.where((rows == 0)[:, None], first[None, :], tile)
    for i in tl.static_range(1, BT):
        shifted = tl.where((rows == i)[:, None], pick_row(tile, rows, i - 1)[None, :], shifted)
    return shifted


@triton.jit
def load_or_zero(pointers, mask, MASKED: tl.constexpr):
    """A load as float32 that costs no predicates where nothing needs masking."""
    if MASKED:
        values = tl.load(pointers, mask=mask, other=0.0)
    else:
        values = tl.load(pointers)
    return values.to(tl.float32)


@triton.jit
def load_positions(path, steps, is_step, PAD: tl.constexpr, TAIL: tl.constexpr, WIDE: tl.constexpr):
    """The positions of some steps, 0 where nothing is read, and which of them are read."""
    if TAIL:
        position = tl.load(path + steps, mask=is_step, other=0)
    else:
        position = tl.load(path + steps)
    visited = is_step
    if PAD:
        visited = visited & (position >= 0)
        position = tl.maximum(position, 0)
    if WIDE:
        position = position.to(tl.int64)
    return position, visited


@triton.jit
def find_steps(t, stop, rows, TAIL: tl.constexpr):
    """The steps of a tile, and which of its rows are one."""
    is_step = rows >= 0
    if TAIL:
        is_step = t + rows < stop
    return t + rows, is_step


@triton.jit
def load_weight(weight, channels, in_range, ranks, R: tl.constexpr, UPCAST: tl.constexpr):
    """A path's (E, R) weight of dt as (ranks, channels), zero above R."""
    mask = (ranks < R)[:, None] & in_range[None, :]
    values = tl.load(weight + channels[None, :] * R + ranks[:, None], mask=mask, other=0.0)
    if UPCAST:
        values = values.to(tl.float32)
    return values


@triton.jit
def project_dt(
    dt, weight, position, visited, stride, ranks, R: tl.constexpr, MASKED: tl.constexpr, UPCAST: tl.constexpr
):
    """Rows of a low-rank dt times its weight. UPCAST is for the interpreter, whose bfloat16 product is wrong."""
    pointers = dt + position[:, None] * stride + ranks[None, :]
    if MASKED or ranks.shape[0] > R:
        low = tl.load(pointers, mask=visited[:, None] & (ranks < R)[None, :], other=0.0)
    else:
        low = tl.load(pointers)
    if UPCAST:
        low = low.to(tl.float32)
    return tl.dot(low, weight, input_precision="ieee")


@triton.jit
def fence(tile):
    """Keeps the layout of tl.dot from spreading into what follows: a scan that changes nothing."""
    return tl.associative_scan(tile, 0, _then)


@triton.jit
def load_delta(
    dt, weight, bias, position, visited, is_step, mask, stride, lanes, ranks,
    R: tl.constexpr, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr, PAD: tl.constexpr, TAIL: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The step sizes of a tile, from a dense dt or (R > 0) a low-rank one; 0 on rows that are no step."""
    if R > 0:
        raw = project_dt(dt, weight, position, visited, stride, ranks, R, PAD or TAIL, UPCAST)
    else:
        raw = load_or_zero(dt + position[:, None] * stride + lanes[None, :], mask, MASKED)
    delta = raw + bias[None, :]
    if SOFTPLUS:
        delta = softplus(delta)
    if R > 0:
        delta = fence(delta)
    if TAIL:
        delta = tl.where(is_step[:, None], delta, 0.0)
    return delta


@triton.jit
def load_vector(values, channels, in_range, BE: tl.constexpr):
    """A path's D or dt bias; zeros where there is none."""
    vector = tl.zeros([BE], tl.float32)
    if values is not None:
        vector = tl.load(values + channels, mask=in_range, other=0.0)
    return vector
