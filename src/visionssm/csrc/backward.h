// The backward scan.
//
// It walks every path from its end in chunks, rebuilds the states of a chunk from the one that forward kept at its
// start, and runs the adjoint recurrence g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1} back through it.
//
// Sums over channels (for B, C and a low-rank dt) and over images (for A, D, dt_bias, dt_weight) are made in parts,
// channel groups and slices of the batch, whose number follows from the shapes alone; the parts are added in a fixed
// order.
#pragma once
#include "memory.h"
#include "path_sum.h"
#include "tile.h"

namespace visionssm::VISIONSSM_TARGET {

constexpr int kLongestChunk = 64;
constexpr int kBackwardStates = 4;
constexpr int kSubBlockChannels = 128;

template <class T>
struct BackwardScratch {
  T *delta, *grad_delta, *through, *x, *dt, *grad_y, *B, *C, *zeros, *adjoint, *decays, *states, *grad_B, *grad_C,
      *columns, *map;

  BackwardScratch(Arena& arena, const Arguments& a, int64_t group_padded, bool keeps_map) {
    constexpr int W = kLanes<T>;
    const int64_t S = a.checkpoint_steps, padded = smaller(kSubBlockChannels, group_padded);
    const int64_t columns_read = larger(padded, larger(a.N, a.R));
    delta = arena.take<T>(S * padded);
    grad_delta = arena.take<T>(S * padded);
    through = arena.take<T>(S * padded);
    x = arena.take<T>(S * padded);
    dt = arena.take<T>(S * larger(padded, a.R));
    grad_y = arena.take<T>(S * padded);
    B = arena.take<T>(S * a.N);
    C = arena.take<T>(S * a.N);
    zeros = arena.take<T>(columns_read);
    adjoint = arena.take<T>(group_padded * a.N);
    decays = arena.take<T>(S * kBackwardStates * W);
    states = arena.take<T>((S + 1) * kBackwardStates * W);
    grad_B = arena.take<T>(S * kBackwardStates * W);
    grad_C = arena.take<T>(S * kBackwardStates * W);
    columns = arena.take<T>(S * (2 * a.N + a.R));
    map = arena.take<T>(keeps_map ? a.L * group_padded : 0);
    if (zeros) memset(zeros, 0, columns_read * sizeof(T));
  }
};

// dt_weight with each row of R filled up to whole vectors, (K, E, ranks).
template <class T>
struct WeightRows {
  T* data;
  int64_t ranks;

  static int64_t ranks_of(const Arguments& a) { return divide_up(a.R, kLanes<T>) * kLanes<T>; }
  static int64_t size(const Arguments& a) { return a.K * a.E * ranks_of(a); }

  void pack(const Arguments& a, int64_t row) const {
    T* target = data + row * ranks;
    const char* source = (const char*)a.dt_weight + row * a.R * bytes_of(a.dt_weight_dtype);
    with_format<T>(a.dt_weight_dtype, [&](auto format) { read_row(format, source, a.R, target); });
    for (int64_t r = a.R; r < ranks; r++) target[r] = 0;
  }
};

template <class T>
using Chunk = Tile<T, kLongestChunk>;

// One vector of channels and kStates of its states, from state n on, through one chunk: forward to rebuild, then back.
// `v` is the vector's place in the sub-block. grad_A and adjoint point at state n.
template <class T, int kStates, bool kZoh>
static void retreat(
    const Chunk<T>& chunk, const BackwardScratch<T>& scratch, int64_t padded, int64_t v, int64_t n, const T* A,
    const T* first, int64_t first_stride, int64_t first_lanes, T* adjoint, T* grad_A) {
  constexpr int W = kLanes<T>;
  using V = Vector<T>;
  V h[kStates], inverse_A[kStates];
  for (int i = 0; i < kStates; i++) {
    h[i] = load_part(first + i * first_stride, first_lanes);
    store(scratch.states + i * W, h[i]);
    if constexpr (kZoh) inverse_A[i] = kExponentScale<T> / load(A + i * W);
  }
  const T* delta = scratch.delta + v * W;
  for (int64_t s = 0; s < chunk.steps; s++) {
    const V step = load(delta + s * padded), x = load(chunk.x[s] + v * W), drive = kZoh ? x : step * x;
    for (int i = 0; i < kStates; i++) {
      const V b = broadcast(chunk.B[s][n + i]) * drive;
      V factor;
      if constexpr (kZoh) {
        const Decay<V> e = decay_and_excess(step, load(A + i * W));
        factor = e.factor;
        h[i] = fma(factor, h[i], e.minus_one * inverse_A[i] * b);
      } else {
        factor = decay(step, load(A + i * W));
        h[i] = fma(factor, h[i], b);
      }
      store(scratch.decays + (s * kStates + i) * W, factor);
      store(scratch.states + ((s + 1) * kStates + i) * W, h[i]);
    }
  }

  V carried[kStates], sum_A[kStates];
  for (int i = 0; i < kStates; i++) {
    carried[i] = load(adjoint + i * W);
    sum_A[i] = V{};
  }
  for (int64_t s = chunk.steps - 1; s >= 0; s--) {
    const V step = load(delta + s * padded), x = load(chunk.x[s] + v * W), dy = load(chunk.grad_y[s] + v * W);
    const V drive = kZoh ? x : step * x;
    T* by_delta = scratch.grad_delta + s * padded + v * W;
    T* by_drive = scratch.through + s * padded + v * W;
    V delta_sum = load(by_delta), drive_sum = load(by_drive);
    for (int i = 0; i < kStates; i++) {
      const V a = load(A + i * W), b = broadcast(chunk.B[s][n + i]);
      const V factor = load(scratch.decays + (s * kStates + i) * W);
      const V g = fma(broadcast(chunk.C[s][n + i]), dy, carried[i]);
      carried[i] = g * factor;
      const V held = carried[i] * load(scratch.states + (s * kStates + i) * W);
      T* grad_B = scratch.grad_B + (s * kStates + i) * W;
      T* grad_C = scratch.grad_C + (s * kStates + i) * W;
      store(grad_C, fma(load(scratch.states + ((s + 1) * kStates + i) * W), dy, load(grad_C)));
      delta_sum = fma(held, a, delta_sum);
      sum_A[i] = fma(held, step, sum_A[i]);
      if constexpr (kZoh) {
        const Decay<V> e = decay_and_excess(step, a);
        const V coefficient = e.minus_one * inverse_A[i], driven = g * b * x;
        store(grad_B, fma(g * coefficient, x, load(grad_B)));
        drive_sum = fma(g * coefficient, b, drive_sum);
        delta_sum = fma(driven * factor, broadcast(kExponentScale<T>), delta_sum);
        const V slope = zoh_slope<T>(step * a * (1 / kExponentScale<T>), e);
        sum_A[i] = fma(driven * step, step * slope, sum_A[i]);
      } else {
        store(grad_B, fma(g, drive, load(grad_B)));
        drive_sum = fma(g, b, drive_sum);
      }
    }
    store(by_delta, delta_sum);
    store(by_drive, drive_sum);
  }
  for (int i = 0; i < kStates; i++) {
    store(adjoint + i * W, carried[i]);
    store(grad_A + i * W, load(grad_A + i * W) + sum_A[i]);
  }
}

// All vectors of a sub-block, for states n to n + kStates - 1; adds the sums over the channels to the columns of B and
// C.
template <class T, int kStates>
static void retreat_vectors(
    const Arguments& a, const Chunk<T>& chunk, const BackwardScratch<T>& scratch, const Parameters<T>& parameters,
    const Parameters<T>& sums, int64_t b, int64_t k, int64_t t, const Block<T>& block, int64_t n, T* adjoint) {
  constexpr int W = kLanes<T>;
  const int64_t used = chunk.steps * kStates * W;
  memset(scratch.grad_B, 0, used * sizeof(T));
  memset(scratch.grad_C, 0, used * sizeof(T));
  const T* first = checkpoint<T>(a, b, k, t, block.first) + n * a.E;
  for (int64_t v = 0; v < block.vectors; v++) {
    const int64_t lanes = smaller(W, block.width - v * W);
    const T* A = parameters.A(k, block.first_vector + v) + n * W;
    T* grad_A = sums.A(k, block.first_vector + v) + n * W;
    T* carried = adjoint + (v * a.N + n) * W;
    auto run = a.zoh ? retreat<T, kStates, true> : retreat<T, kStates, false>;
    run(chunk, scratch, block.padded, v, n, A, first + v * W, a.E, lanes, carried, grad_A);
  }
  const int64_t columns = 2 * a.N + a.R;
  for (int64_t s = 0; s < chunk.steps; s++)
    for (int i = 0; i < kStates; i++) {
      T* row = scratch.columns + s * columns + n + i;
      row[0] += sum(load(scratch.grad_B + (s * kStates + i) * W));
      row[a.N] += sum(load(scratch.grad_C + (s * kStates + i) * W));
    }
}

// From the sums over the states to the gradients by x, in `through`, and by dt + bias, in `grad_delta`; and those of D
// and bias.
template <class T>
static void finish_channels(
    const Arguments& a, const Chunk<T>& chunk, const BackwardScratch<T>& scratch, const Parameters<T>& parameters,
    const Parameters<T>& sums, int64_t k, const Block<T>& block) {
  constexpr int W = kLanes<T>;
  using V = Vector<T>;
  for (int64_t v = 0; v < block.vectors; v++) {
    const V D = load(parameters.D(k, block.first_vector + v));
    V sum_D = {}, sum_bias = {};
    for (int64_t s = 0; s < chunk.steps; s++) {
      const int64_t i = s * block.padded + v * W;
      const V x = load(chunk.x[s] + v * W), dy = load(chunk.grad_y[s] + v * W), delta = load(scratch.delta + i);
      const V drive_sum = load(scratch.through + i);
      V grad_delta = load(scratch.grad_delta + i) * (1 / kExponentScale<T>);
      if (!a.zoh) grad_delta = fma(x, drive_sum, grad_delta);
      if (a.softplus) grad_delta = grad_delta * softplus_slope(delta);
      store(scratch.grad_delta + i, grad_delta);
      store(scratch.through + i, fma(D, dy, a.zoh ? drive_sum : delta * drive_sum));
      sum_D = fma(dy, x, sum_D);
      sum_bias = sum_bias + grad_delta;
    }
    T* D_total = sums.D(k, block.first_vector + v);
    T* bias_total = sums.bias(k, block.first_vector + v);
    store(D_total, load(D_total) + sum_D);
    store(bias_total, load(bias_total) + sum_bias);
  }
}

// Low-rank dt: dt_weight's gradient sums over the steps, for one vector of channels and kColumns of its ranks at once.
template <class T, int kColumns>
INLINE void weight_gradient(const Chunk<T>& chunk, const T* gradient, int64_t padded, int64_t r, int64_t R, T* total) {
  constexpr int W = kLanes<T>;
  for (; r + kColumns <= R; r += kColumns) {
    Vector<T> sums[kColumns] = {};
    for (int64_t s = 0; s < chunk.steps; s++) {
      const Vector<T> g = load(gradient + s * padded);
      const T* dt = opaque(chunk.dt[s] + r);
      for (int j = 0; j < kColumns; j++) sums[j] = fma(broadcast(dt[j]), g, sums[j]);
    }
    for (int j = 0; j < kColumns; j++) store(total + (r + j) * W, load(total + (r + j) * W) + sums[j]);
  }
  if constexpr (kColumns > 1) weight_gradient<T, kColumns / 2>(chunk, gradient, padded, r, R, total);
}

// That of dt sums over the channels, for kRows steps at once: rows of dt_weight times their gradients, a vector of
// ranks at a time.
template <class T, int kRows>
INLINE int64_t rank_gradient(
    const Arguments& a, const Chunk<T>& chunk, const BackwardScratch<T>& scratch, const T* weight, int64_t ranks,
    const Block<T>& block, int64_t s) {
  constexpr int W = kLanes<T>;
  const int64_t columns = 2 * a.N + a.R, width = block.width, padded = block.padded;
  for (; s + kRows <= chunk.steps; s += kRows) {
    const T* gradient = opaque(scratch.grad_delta + s * padded);
    for (int64_t r = 0; r < a.R; r += W) {
      Vector<T> sums[kRows] = {};
      for (int64_t e = 0; e < width; e++) {
        const Vector<T> row = load(weight + e * ranks + r);
        for (int i = 0; i < kRows; i++) sums[i] = fma(broadcast(gradient[i * padded + e]), row, sums[i]);
      }
      for (int i = 0; i < kRows; i++) {
        T* target = scratch.columns + (s + i) * columns + 2 * a.N + r;
        store_part(target, load_part(target, a.R - r) + sums[i], a.R - r);
      }
    }
  }
  return s;
}

template <class T>
static void project_back(
    const Arguments& a, const Chunk<T>& chunk, const BackwardScratch<T>& scratch, const WeightRows<T>& rows,
    const Parameters<T>& sums, int64_t k, const Block<T>& block) {
  for (int64_t v = 0; v < block.vectors; v++)
    weight_gradient<T, 8>(
        chunk, scratch.grad_delta + v * kLanes<T>, block.padded, 0, a.R, sums.weight(k, block.first_vector + v));
  const T* weight = rows.data + (k * a.E + block.first) * rows.ranks;
  const int64_t s = rank_gradient<T, 8>(a, chunk, scratch, weight, rows.ranks, block, 0);
  rank_gradient<T, 1>(a, chunk, scratch, weight, rows.ranks, block, s);
}

// Rows of the sums over channels: N numbers for B, N for C and R for a low-rank dt.
template <class T>
static void write_columns(const Arguments& a, int64_t b, int64_t p, int64_t k, const T* row) {
  if (p < 0) return;
  const auto write = [&](const Tensor& target, const T* part, int64_t count) {
    with_format<T>(target.dtype, [&](auto format) { write_row(format, address(target, b, p, k, 0), count, part); });
  };
  write(a.grad_B, row, a.N);
  write(a.grad_C, row + a.N, a.N);
  if (a.R) write(a.grad_dt, row + 2 * a.N, a.R);
}

// Asks the memory for what the rest of the chunk needs for four steps, or what comes after them.
template <class T>
static void prefetch_steps(
    const Arguments& a, const Chunk<T>& chunk, int64_t b, int64_t k, const Block<T>& block, int64_t first,
    const SumMap<T>& sums, const Tensor* target, int64_t first_channel) {
  const int64_t bytes = block.width * sizeof(T);
  for (int64_t s = first; s < smaller(first + 4, chunk.steps); s++) {
    prefetch(chunk.x[s + kAhead], bytes);
    prefetch(chunk.grad_y[s + kAhead], bytes);
    const int64_t p = chunk.source[s];
    if (sums.data) prefetch(sums.data + p * sums.stride + block.first - first_channel, bytes);
    if (target) prefetch(address(*target, b, p, k, block.first), block.width * bytes_of(target->dtype));
    if (!a.R) prefetch(address(a.grad_dt, b, p, k, block.first), block.width * bytes_of(a.grad_dt.dtype));
  }
}

// One path of one image for one channel group. The gradient by x goes where forward_path would put its outputs.
// `columns` takes the group's part of the sums over channels, (T, 2 N + R); without it they are complete and are
// written to their tensors.
template <class T>
static void backward_path(
    const Arguments& a, const Parameters<T>& parameters, const WeightRows<T>& rows, const Parameters<T>& totals,
    int64_t b, int64_t k, const Block<T>& group, const SumMap<T>& sums, bool add, const Tensor* target, T* columns,
    const BackwardScratch<T>& scratch) {
  constexpr int W = kLanes<T>;
  const int64_t S = a.checkpoint_steps, width = 2 * a.N + a.R, parts = divide_up(group.padded, kSubBlockChannels);
  const int32_t* path = a.path + k * a.path_stride;
  Chunk<T> chunk;
  chunk.far = a.L * group.width * int64_t(sizeof(T)) > kSecondLevelCache / 4;
  for (int64_t v = 0; v < group.vectors; v++) {
    const T* source = (const T*)a.grad_last + ((b * a.K + k) * a.E + group.first + v * W) * a.N;
    transpose_in(source, a.N, smaller(W, group.width - v * W), scratch.adjoint + v * a.N * W);
  }
  for (int64_t t = (a.T - 1) / S * S; t >= 0; t -= S) {
    chunk.walk(path, a.T, t, smaller(S, a.T - t), larger(t - S, 0));
    fetch_shared(chunk, a.B, b, k, a.N, scratch.zeros, scratch.B, chunk.B);
    fetch_shared(chunk, a.C, b, k, a.N, scratch.zeros, scratch.C, chunk.C);
    if (a.R) fetch_shared(chunk, a.dt, b, k, a.R, scratch.zeros, scratch.dt, chunk.dt);
    memset(scratch.columns, 0, chunk.steps * width * sizeof(T));
    for (int64_t part = 0; part < parts; part++) {
      const Block<T> block = group.part(part, parts, a.E);
      T* adjoint = scratch.adjoint + (block.first_vector - group.first_vector) * a.N * W;
      fetch(chunk, a.x, b, k, block.first, block.width, block.padded, scratch.zeros, scratch.x, chunk.x);
      fetch(chunk, a.grad_y, b, k, block.first, block.width, block.padded, scratch.zeros, scratch.grad_y, chunk.grad_y);
      if (!a.R) fetch(chunk, a.dt, b, k, block.first, block.width, block.padded, scratch.zeros, scratch.dt, chunk.dt);
      for (int64_t s = 0; s < chunk.steps; s += 4) {
        if (chunk.far) prefetch_steps(a, chunk, b, k, block, s, sums, target, group.first);
        step_sizes(a, chunk, parameters, k, block, s, smaller(s + 4, chunk.steps), scratch.delta);
      }
      memset(scratch.grad_delta, 0, chunk.steps * block.padded * sizeof(T));
      memset(scratch.through, 0, chunk.steps * block.padded * sizeof(T));
      int64_t n = 0;
      for (; n + kBackwardStates <= a.N; n += kBackwardStates)
        retreat_vectors<T, kBackwardStates>(a, chunk, scratch, parameters, totals, b, k, t, block, n, adjoint);
      for (; n < a.N; n++) retreat_vectors<T, 1>(a, chunk, scratch, parameters, totals, b, k, t, block, n, adjoint);
      finish_channels(a, chunk, scratch, parameters, totals, k, block);
      if (a.R) project_back(a, chunk, scratch, rows, totals, k, block);
      SumMap<T> part_sums = sums;
      if (sums.data) part_sums.data += block.first - group.first;
      finish_rows(chunk, scratch.through, block, part_sums, add, target, b, k);
      if (!a.R) finish_rows(chunk, scratch.grad_delta, block, {}, false, &a.grad_dt, b, k);
    }
    if (columns)
      memcpy(columns + t * width, scratch.columns, chunk.steps * width * sizeof(T));
    else
      for (int64_t s = 0; s < chunk.steps; s++) write_columns(a, b, chunk.position[s], k, scratch.columns + s * width);
  }
  if (!a.grad_initial_state) return;
  for (int64_t v = 0; v < group.vectors; v++)
    transpose_out(
        scratch.adjoint + v * a.N * W, a.N, smaller(W, group.width - v * W),
        (T*)a.grad_initial_state + ((b * a.K + k) * a.E + group.first + v * W) * a.N);
}

// Adds the slices of the batch up and writes the gradients of A, D, dt_bias and dt_weight for one vector of channels.
template <class T>
static void unpack_gradients(
    const Arguments& a, const Parameters<T>& totals, int64_t slices, int64_t k, int64_t vector) {
  constexpr int W = kLanes<T>;
  const int64_t first = vector * W, channels = smaller(W, a.E - first), at = k * a.E + first,
                numbers = totals.rows() * W;
  T* total = totals.of(k, vector);
  for (int64_t slice = 1; slice < slices; slice++) {
    const T* part = total + slice * Parameters<T>::size(a);
    for (int64_t i = 0; i < numbers; i += W) store(total + i, load(total + i) + load(part + i));
  }
  if (a.grad_D) store_part((T*)a.grad_D + at, load(totals.D(k, vector)), channels);
  if (a.grad_dt_bias) store_part((T*)a.grad_dt_bias + at, load(totals.bias(k, vector)), channels);
  transpose_out(totals.A(k, vector), a.N, channels, (T*)a.grad_A + at * a.N);
  if (a.R) transpose_out(totals.weight(k, vector), a.R, channels, (T*)a.grad_dt_weight + at * a.R);
}

template <class T>
static Status backward(const Arguments& a) {
  constexpr int64_t kMostSlices = 64, kEnoughTasks = 8, kNarrowestGroup = 128;
  const int64_t slices = larger(1, smaller(a.batch, kMostSlices)), vectors = divide_up(a.E, kLanes<T>);
  const int64_t groups = larger(1, smaller(divide_up(a.E, kNarrowestGroup), divide_up(kEnoughTasks, slices)));
  const bool per_path = a.x_per_path || a.K == 1;
  const double work = double(a.batch) * a.K * a.T * a.E * (a.N + 2);
  const int64_t threads = larger(1, smaller(a.threads, int64_t(work / 10000)));
  const bool apart = a.K > 1 && (per_path || divide_up(slices * groups, threads) * a.K >
                                                 1.1 * divide_up(slices * groups * a.K, threads));
  const bool own_maps = apart && !a.x_per_path, keeps_map = !apart && needs_map<T>(a, a.grad_x, a.x_per_path);
  const int64_t width = 2 * a.N + a.R, columns_per_group = groups > 1 ? a.batch * a.K * a.T * width : 0;

  const auto take_maps = [&](Arena& arena) { return arena.take<T>(own_maps ? a.K * a.batch * a.L * a.E : 0); };
  Arena measure;
  BackwardScratch<T>(measure, a, divide_up(vectors, groups) * kLanes<T>, keeps_map);
  const int64_t per_thread = measure.used;
  measure.take<T>(Parameters<T>::size(a));
  measure.take<T>(Parameters<T>::size(a) * slices);
  measure.take<T>(WeightRows<T>::size(a));
  measure.take<T>(columns_per_group * groups);
  take_maps(measure);
  Memory memory(measure.used + (threads - 1) * per_thread);
  if (!memory.data) return kNoMemory;
  Arena shared(memory.data + threads * per_thread);
  const Parameters<T> parameters = {shared.take<T>(Parameters<T>::size(a)), vectors, a.N, a.R};
  const Parameters<T> totals = {shared.take<T>(Parameters<T>::size(a) * slices), vectors, a.N, a.R};
  const WeightRows<T> rows = {shared.take<T>(WeightRows<T>::size(a)), WeightRows<T>::ranks_of(a)};
  T* columns = shared.take<T>(columns_per_group * groups);
  T* maps = take_maps(shared);
  memset(totals.data, 0, Parameters<T>::size(a) * slices * sizeof(T));

#pragma omp parallel num_threads(threads)
  {
    Arena arena(memory.data + thread_number() * per_thread);
    const BackwardScratch<T> scratch(arena, a, divide_up(vectors, groups) * kLanes<T>, keeps_map);
#pragma omp for collapse(2) schedule(static)
    for (int64_t k = 0; k < a.K; k++)
      for (int64_t v = 0; v < vectors; v++) pack_parameters(a, parameters, k, v, scratch.dt);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < (a.R ? a.K * a.E : 0); row++) rows.pack(a, row);

    const auto walk = [&](int64_t b, int64_t slice, int64_t g, int64_t k, const SumMap<T>& sums, bool add,
                          const Tensor* target) {
      Parameters<T> part = totals;
      part.data += slice * Parameters<T>::size(a);
      T* group_columns = groups > 1 ? columns + g * columns_per_group + (b * a.K + k) * a.T * width : nullptr;
      backward_path(
          a, parameters, rows, part, b, k, Block<T>::of(g, groups, a.E), sums, add, target, group_columns, scratch);
    };
    const auto first_image = [&](int64_t slice) { return slice * a.batch / slices; };
    if (!apart) {
#pragma omp for collapse(2) schedule(dynamic)
      for (int64_t slice = 0; slice < slices; slice++)
        for (int64_t g = 0; g < groups; g++)
          for (int64_t b = first_image(slice); b < first_image(slice + 1); b++)
            walk_paths(
                a, a.grad_x, a.x_per_path, b, Block<T>::of(g, groups, a.E), scratch.map,
                [&](int64_t k, const SumMap<T>& sums, bool add, const Tensor* target) {
                  walk(b, slice, g, k, sums, add, target);
                });
    } else {
#pragma omp for collapse(3) schedule(dynamic)
      for (int64_t slice = 0; slice < slices; slice++)
        for (int64_t g = 0; g < groups; g++)
          for (int64_t k = 0; k < a.K; k++)
            for (int64_t b = first_image(slice); b < first_image(slice + 1); b++) {
              if (!own_maps)
                walk(b, slice, g, k, {}, false, &a.grad_x);
              else
                walk(b, slice, g, k, own_map(a, maps, b, k, Block<T>::of(g, groups, a.E)), false, nullptr);
            }
    }
    if (own_maps) {
#pragma omp for collapse(2) schedule(static)
      for (int64_t b = 0; b < a.batch; b++)
        for (int64_t p = 0; p < a.L; p++) merge_position<T>(a, maps, a.grad_x, b, p);
    }
    if (groups > 1) {
#pragma omp for collapse(2) schedule(static)
      for (int64_t image = 0; image < a.batch * a.K; image++)
        for (int64_t t = 0; t < a.T; t++) {
          T* row = columns + (image * a.T + t) * width;
          for (int64_t g = 1; g < groups; g++)
            for (int64_t i = 0; i < width; i++) row[i] += row[g * columns_per_group + i];
          const int64_t k = image % a.K;
          write_columns(a, image / a.K, a.path[k * a.path_stride + t], k, row);
        }
    }
#pragma omp for collapse(2) schedule(static)
    for (int64_t k = 0; k < a.K; k++)
      for (int64_t v = 0; v < vectors; v++) unpack_gradients(a, totals, slices, k, v);
  }
  return kDone;
}

}  // namespace visionssm::VISIONSSM_TARGET
