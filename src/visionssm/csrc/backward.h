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
constexpr int kSubBlockChannels = 128;
// How many recurrences run side by side: states of one vector of channels, or vectors of a single state.
constexpr int kChains = 4;

template <class T>
struct BackwardScratch {
  T *delta, *grad_delta, *through, *x, *dt, *grad_y, *B, *C, *zeros, *adjoint, *kept, *by_columns, *columns, *map;

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
    kept = arena.take<T>(S * 2 * kChains * W);
    by_columns = arena.take<T>(S * 2 * kChains * W);
    columns = arena.take<T>(S * (2 * a.N + a.R));
    map = keeps_map ? arena.take<T>(a.L * group_padded) : nullptr;
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

// kVectors vectors of channels and kStates of their states, from state n on, through one chunk: forward to rebuild,
// then back. `v` is the first vector's place in the sub-block. The first states start the sums by delta and by the
// drive, the last ones turn them into the gradients by dt + bias and by x, and add up those of D and bias.
template <class T, int kVectors, int kStates, bool kZoh>
static void retreat(
    const Arguments& a, const Chunk<T>& chunk, const BackwardScratch<T>& scratch, const Parameters<T>& parameters,
    const Parameters<T>& sums, int64_t k, const Block<T>& block, int64_t v, int64_t n, const T* first, T* adjoint) {
  constexpr int W = kLanes<T>;
  using V = Vector<T>;
  const int64_t padded = block.padded, steps = chunk.steps, at = v * W;
  const T* parameter = parameters.of(k, block.first_vector + v);
  const int64_t rows = parameters.rows() * W;
  V A[kVectors][kStates], inverse_A[kVectors][kStates], h[kVectors][kStates];
  for (int j = 0; j < kVectors; j++)
    for (int i = 0; i < kStates; i++) {
      A[j][i] = load(parameter + j * rows + (2 + n + i) * W);
      if constexpr (kZoh) inverse_A[j][i] = kExponentScale<T> / A[j][i];
      h[j][i] = load_part(first + i * a.E + (v + j) * W, block.width - (v + j) * W);
    }
  const T* deltas = scratch.delta + at;
  T* kept = scratch.kept;
  for (int64_t s = 0; s < steps; s++) {
    const T* B = opaque(chunk.B[s] + n);
    const T* x_row = chunk.x[s] + at;
    for (int j = 0; j < kVectors; j++) {
      const V step = load(deltas + s * padded + j * W), x = load(x_row + j * W), drive = kZoh ? x : step * x;
      for (int i = 0; i < kStates; i++, kept += 2 * W) {
        const V b = broadcast(B[i]) * drive;
        V factor, entering = b;
        if constexpr (kZoh) {
          const Decay<V> e = decay_and_excess(step, A[j][i]);
          factor = e.factor;
          entering = e.minus_one * inverse_A[j][i] * b;
        } else {
          factor = decay(step, A[j][i]);
        }
        store(kept, h[j][i]);
        store(kept + W, factor);
        h[j][i] = fma(factor, h[j][i], entering);
      }
    }
  }

  const bool begins = n == 0, ends = n + kStates == a.N, softplus = a.softplus;
  V carried[kVectors][kStates], sum_A[kVectors][kStates] = {}, sum_D[kVectors] = {}, sum_bias[kVectors] = {};
  V D[kVectors];
  for (int j = 0; j < kVectors; j++) {
    D[j] = load(parameter + j * rows);
    for (int i = 0; i < kStates; i++) carried[j][i] = load(adjoint + (j * a.N + i) * W);
  }
  T* by_delta = scratch.grad_delta + at + steps * padded;
  T* by_drive = scratch.through + at + steps * padded;
  T* by_columns = scratch.by_columns + steps * 2 * kStates * W;
  for (int64_t s = steps - 1; s >= 0; s--) {
    const T* B = opaque(chunk.B[s] + n);
    const T* C = opaque(chunk.C[s] + n);
    const T* x_row = chunk.x[s] + at;
    const T* dy_row = chunk.grad_y[s] + at;
    by_delta -= padded;
    by_drive -= padded;
    by_columns -= 2 * kStates * W;
    kept -= 2 * W * kStates * kVectors;
    V by_B[kStates], by_C[kStates];
    for (int i = 0; i < kStates; i++) {
      by_B[i] = load(by_columns + 2 * i * W);
      by_C[i] = load(by_columns + (2 * i + 1) * W);
    }
    for (int j = 0; j < kVectors; j++) {
      const V step = load(deltas + s * padded + j * W), x = load(x_row + j * W), dy = load(dy_row + j * W);
      const V drive = kZoh ? x : step * x;
      V delta_sum = {}, drive_sum = {};
      if (!begins) {
        delta_sum = load(by_delta + j * W);
        drive_sum = load(by_drive + j * W);
      }
      for (int i = 0; i < kStates; i++) {
        const V before = load(kept + (j * kStates + i) * 2 * W), factor = load(kept + ((j * kStates + i) * 2 + 1) * W);
        const V b = broadcast(B[i]), g = fma(broadcast(C[i]), dy, carried[j][i]);
        by_C[i] = fma(h[j][i], dy, by_C[i]);
        h[j][i] = before;
        carried[j][i] = g * factor;
        const V held = carried[j][i] * before;
        delta_sum = fma(held, A[j][i], delta_sum);
        sum_A[j][i] = fma(held, step, sum_A[j][i]);
        if constexpr (kZoh) {
          const Decay<V> e = decay_and_excess(step, A[j][i]);
          const V coefficient = e.minus_one * inverse_A[j][i], driven = g * b * x;
          by_B[i] = fma(g * coefficient, x, by_B[i]);
          drive_sum = fma(g * coefficient, b, drive_sum);
          delta_sum = fma(driven * factor, broadcast(kExponentScale<T>), delta_sum);
          const V slope = zoh_slope<T>(step * A[j][i] * (1 / kExponentScale<T>), e);
          sum_A[j][i] = fma(driven * step, step * slope, sum_A[j][i]);
        } else {
          by_B[i] = fma(g, drive, by_B[i]);
          drive_sum = fma(g, b, drive_sum);
        }
      }
      if (ends) {
        delta_sum = delta_sum * (1 / kExponentScale<T>);
        if (!kZoh) delta_sum = fma(x, drive_sum, delta_sum);
        if (softplus) delta_sum = delta_sum * softplus_slope(step);
        drive_sum = fma(D[j], dy, kZoh ? drive_sum : step * drive_sum);
        sum_D[j] = fma(dy, x, sum_D[j]);
        sum_bias[j] = sum_bias[j] + delta_sum;
      }
      store(by_delta + j * W, delta_sum);
      store(by_drive + j * W, drive_sum);
    }
    for (int i = 0; i < kStates; i++) {
      store(by_columns + 2 * i * W, by_B[i]);
      store(by_columns + (2 * i + 1) * W, by_C[i]);
    }
  }
  T* total = sums.of(k, block.first_vector + v);
  for (int j = 0; j < kVectors; j++) {
    const auto add = [total, rows, j](int64_t row, V value) {
      T* place = total + j * rows + row * W;
      store(place, load(place) + value);
    };
    if (ends) add(0, sum_D[j]), add(1, sum_bias[j]);
    for (int i = 0; i < kStates; i++) {
      store(adjoint + (j * a.N + i) * W, carried[j][i]);
      add(2 + n + i, sum_A[j][i]);
    }
  }
}

// All vectors of a sub-block, for states n to n + kStates - 1; adds the sums over the channels to the columns of B and
// C.
template <class T, int kVectors, int kStates>
static void retreat_vectors(
    const Arguments& a, const Chunk<T>& chunk, const BackwardScratch<T>& scratch, const Parameters<T>& parameters,
    const Parameters<T>& sums, int64_t b, int64_t k, int64_t t, const Block<T>& block, int64_t n, T* adjoint) {
  constexpr int W = kLanes<T>;
  memset(scratch.by_columns, 0, chunk.steps * 2 * kStates * W * sizeof(T));
  const T* first = checkpoint<T>(a, b, k, t, block.first) + n * a.E;
  int64_t v = 0;
  const auto run = [&](auto retreats, int64_t vectors) {
    for (; v + vectors <= block.vectors; v += vectors)
      retreats(a, chunk, scratch, parameters, sums, k, block, v, n, first, adjoint + (v * a.N + n) * W);
  };
  run(a.zoh ? retreat<T, kVectors, kStates, true> : retreat<T, kVectors, kStates, false>, kVectors);
  if (kVectors > 2) run(a.zoh ? retreat<T, 2, kStates, true> : retreat<T, 2, kStates, false>, 2);
  if (kVectors > 1) run(a.zoh ? retreat<T, 1, kStates, true> : retreat<T, 1, kStates, false>, 1);
  const int64_t columns = 2 * a.N + a.R;
  for (int64_t s = 0; s < chunk.steps; s++)
    for (int i = 0; i < kStates; i++) {
      T* row = scratch.columns + s * columns + n + i;
      const T* by = scratch.by_columns + (s * kStates + i) * 2 * W;
      row[0] += sum(load(by));
      row[a.N] += sum(load(by + W));
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
      for (int64_t n = 0; n < a.N; n++)
        prefetch(checkpoint<T>(a, b, k, t, block.first) + n * a.E, block.width * sizeof(T));
      for (int64_t s = 0; s < chunk.steps; s += 4) {
        if (chunk.far) prefetch_steps(a, chunk, b, k, block, s, sums, target, group.first);
        step_sizes(a, chunk, parameters, k, block, s, smaller(s + 4, chunk.steps), scratch.delta);
      }
      int64_t n = 0;
      for (; n + kChains <= a.N; n += kChains)
        retreat_vectors<T, 1, kChains>(a, chunk, scratch, parameters, totals, b, k, t, block, n, adjoint);
      for (; n < a.N; n++)
        retreat_vectors<T, kChains, 1>(a, chunk, scratch, parameters, totals, b, k, t, block, n, adjoint);
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
  const int64_t threads = useful_threads(a.threads, work / 10000);
  const bool apart = a.K > 1 && (per_path || divide_up(slices * groups, threads) * a.K >
                                                 1.1 * divide_up(slices * groups * a.K, threads));
  const bool own_maps = apart && !a.x_per_path, shared_rows = groups > 1 && threads > 1;
  const bool keeps_map = !apart && needs_map<T>(a, a.grad_x, a.x_per_path, shared_rows);
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
