// What forward and backward share: a block of channels, its parameters packed for vector loads, and tiles of steps.
//
// A tile is a few steps of one path for a block of channels, gathered from the map into small arrays that stay in the
// first-level cache: rows of `padded` numbers, a multiple of the vector width, zero beyond the last channel.
#pragma once
#include "vector_math.h"

namespace visionssm::VISIONSSM_TARGET {

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

INLINE int64_t bytes_of(int64_t dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

// Channels [first, first + width), in vectors [first_vector, first_vector + vectors) of the map's channels.
template <class T>
struct Block {
  int64_t first_vector, vectors, first, width, padded;

  // Block i of `count`, each with the same number of vectors, or one more.
  static Block of(int64_t i, int64_t count, int64_t E) {
    const int64_t all = divide_up(E, kLanes<T>);
    Block block;
    block.first_vector = i * all / count;
    block.vectors = (i + 1) * all / count - block.first_vector;
    block.first = block.first_vector * kLanes<T>;
    block.padded = block.vectors * kLanes<T>;
    block.width = smaller(block.padded, E - block.first);
    return block;
  }

  // Part i of `count` of this block.
  Block part(int64_t i, int64_t count, int64_t E) const {
    Block inner = of(i, count, padded);
    inner.first_vector += first_vector;
    inner.first += first;
    inner.width = smaller(inner.padded, E - inner.first);
    return inner;
  }
};

// A, D, dt_bias and dt_weight of one vector of channels lie together: one vector each for D, the bias, the N columns of A and
// the R columns of dt_weight. Their gradients are summed in the same layout.
template <class T>
struct Parameters {
  T* data;  // (K, vectors, rows, lanes)
  int64_t vectors, N, R;

  static int64_t size(const Arguments& a) { return a.K * divide_up(a.E, kLanes<T>) * (2 + a.N + a.R) * kLanes<T>; }
  int64_t rows() const { return 2 + N + R; }
  T* of(int64_t k, int64_t vector) const { return data + (k * vectors + vector) * rows() * kLanes<T>; }
  T* D(int64_t k, int64_t vector) const { return of(k, vector); }
  T* bias(int64_t k, int64_t vector) const { return of(k, vector) + kLanes<T>; }
  T* A(int64_t k, int64_t vector) const { return of(k, vector) + 2 * kLanes<T>; }
  T* weight(int64_t k, int64_t vector) const { return of(k, vector) + (2 + N) * kLanes<T>; }
};

// (channels, columns) <-> (columns, lanes) for the channels of one vector.
template <class T>
INLINE void transpose_in(const T* source, int64_t columns, int64_t channels, T* target) {
  for (int64_t c = 0; c < columns; c++)
    for (int64_t lane = 0; lane < kLanes<T>; lane++)
      target[c * kLanes<T> + lane] = lane < channels ? source[lane * columns + c] : 0;
}

template <class T>
INLINE void transpose_out(const T* source, int64_t columns, int64_t channels, T* target) {
  for (int64_t lane = 0; lane < channels; lane++)
    for (int64_t c = 0; c < columns; c++) target[lane * columns + c] = source[c * kLanes<T> + lane];
}

// With zero-order hold A divides, so it is kept away from 0, where the limit is reached to the last digit.
template <class T>
INLINE T away_from_zero(T A) {
  const T least = sizeof(T) == sizeof(float) ? T(1e-10) : T(1e-100);
  return A < least && A > -least ? (A < 0 ? -least : least) : A;
}

// `row` is scratch of R numbers for a weight in another dtype.
template <class T>
static void pack_parameters(const Arguments& a, const Parameters<T>& packed, int64_t k, int64_t vector, T* row) {
  constexpr int W = kLanes<T>;
  const int64_t first = vector * W, channels = smaller(W, a.E - first), at = k * a.E + first;
  T* D = packed.D(k, vector);
  T* bias = packed.bias(k, vector);
  T* A = packed.A(k, vector);
  T* weight = packed.weight(k, vector);
  store(D, a.D ? load_part((const T*)a.D + at, channels) : Vector<T>{});
  store(bias, a.dt_bias ? load_part((const T*)a.dt_bias + at, channels) : Vector<T>{});
  transpose_in((const T*)a.A + at * a.N, a.N, channels, A);
  for (int64_t i = 0; i < a.N * W; i++) A[i] = (a.zoh ? away_from_zero(A[i]) : A[i]) * kExponentScale<T>;
  if (a.R == 0) return;
  if (a.dt_weight_dtype == Simd<T>::dtype) {
    transpose_in((const T*)a.dt_weight + at * a.R, a.R, channels, weight);
    return;
  }
  for (int64_t i = 0; i < a.R * W; i++) weight[i] = 0;
  for (int64_t lane = 0; lane < channels; lane++) {
    const char* source = (const char*)a.dt_weight + (at + lane) * a.R * bytes_of(a.dt_weight_dtype);
    with_format<T>(a.dt_weight_dtype, [&](auto format) { read_row(format, source, a.R, row); });
    for (int64_t r = 0; r < a.R; r++) weight[r * W + lane] = row[r];
  }
}

INLINE char* address(const Tensor& t, int64_t b, int64_t p, int64_t k, int64_t first) {
  return (char*)t.data + (b * t.batch_stride + p * t.position_stride + k * t.path_stride + first) * bytes_of(t.dtype);
}

// What is assumed of the processor.
constexpr int64_t kSecondLevelCache = 1 << 20;

// How many steps ahead of their use rows of a map that is too large for the cache are asked for. Few: on many paths successive
// rows lie a multiple of a large power of two apart and compete for the same few places in the cache.
constexpr int kAhead = 8;

// The steps of one tile, as rows to read; and, where the map is `far`, the rows of the kAhead steps after it.
template <class T, int kSteps>
struct Tile {
  static constexpr int kRows = kSteps + kAhead;
  int64_t steps, rows;
  bool far;
  bool padding;             // whether any step is over padding
  int64_t position[kRows];  // -1 over padding
  int64_t source[kRows];    // the same, but 0 over padding, to be read and thrown away
  const T* x[kRows];
  const T* B[kRows];
  const T* C[kRows];
  const T* dt[kRows];  // (width), or (R) for a low-rank dt
  const T* grad_y[kRows];
  T* out[kRows];

  // Steps t to t + count - 1 of a path of T steps; those that follow start at step `next`.
  void walk(const int32_t* path, int64_t T_, int64_t t, int64_t count, int64_t next) {
    steps = count;
    rows = far ? steps + kAhead : steps;
    int32_t lowest = 0;
    for (int64_t s = 0; s < rows; s++) {
      const int64_t step = s < steps ? t + s : smaller(next + s - steps, T_ - 1);
      const int32_t p = path[step];
      lowest = p < lowest ? p : lowest;
      position[s] = p;
      source[s] = larger(p, 0);
    }
    padding = lowest < 0;
  }
};

// Asks the memory for a row.
INLINE void prefetch(const void* row, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)row + i);
}

template <class T, class Format, int kSteps>
INLINE void copy_rows(
    Format format, const Tile<T, kSteps>& tile, const char* base, int64_t stride, int64_t count, int64_t padded, T* copies,
    const T** rows) {
  for (int64_t s = 0; s < tile.steps; s++) {
    if (tile.far) prefetch(base + tile.source[s + kAhead] * stride, count * format.bytes);
    T* copy = copies + s * padded;
    read_row(format, base + tile.source[s] * stride, count, copy);
    for (int64_t i = count; i < padded; i++) copy[i] = 0;
    rows[s] = copy;
  }
  for (int64_t s = tile.steps; s < tile.rows; s++) rows[s] = copies;
}

// Points rows[s] at `count` numbers of each step, converted into `copies` where they are of another type or would be read by
// vectors beyond their end. A step over padding reads zeros.
template <class T, int kSteps>
INLINE void fetch(
    const Tile<T, kSteps>& tile, const Tensor& t, int64_t b, int64_t k, int64_t first, int64_t count, int64_t padded,
    const T* zeros, T* copies, const T** rows) {
  const char* base = address(t, b, 0, k, first);
  const int64_t stride = t.position_stride * bytes_of(t.dtype);
  if (t.dtype == Simd<T>::dtype && count == padded)
    for (int64_t s = 0; s < tile.rows; s++) rows[s] = (const T*)(base + tile.source[s] * stride);
  else
    with_format<T>(t.dtype, [&](auto format) { copy_rows(format, tile, base, stride, count, padded, copies, rows); });
  if (!tile.padding) return;
  for (int64_t s = 0; s < tile.steps; s++)
    if (tile.position[s] < 0) rows[s] = zeros;
}

// The same for a few numbers that a whole block of channels shares.
template <class T, int kSteps>
INLINE void fetch_shared(
    const Tile<T, kSteps>& tile, const Tensor& t, int64_t b, int64_t k, int64_t count, const T* zeros, T* copies,
    const T** rows) {
  fetch(tile, t, b, k, 0, count, count, zeros, copies, rows);
  if (!tile.far || t.dtype != Simd<T>::dtype) return;
  for (int64_t s = kAhead; s < tile.rows; s++) __builtin_prefetch(rows[s]);
}

template <class T, bool kSoftplus>
INLINE Vector<T> step_size(Vector<T> z) {
  if constexpr (kSoftplus) return softplus(z);
  return z;
}

// delta = softplus(dt + bias) with a dense dt.
template <class T, bool kSoftplus, int kSteps>
static void dense_step_sizes(
    const Tile<T, kSteps>& tile, const Parameters<T>& parameters, int64_t k, const Block<T>& block, int64_t begin, int64_t end,
    T* delta) {
  constexpr int W = kLanes<T>;
  const int64_t padded = block.padded, stride = parameters.rows() * W;
  const T* bias = parameters.bias(k, block.first_vector);
  for (int64_t s = begin; s < end; s++)
    for (int64_t v = 0, i = 0; i < padded; v++, i += W) {
      if (tile.far) __builtin_prefetch(tile.dt[s + kAhead] + i);
      store(delta + s * padded + i, step_size<T, kSoftplus>(load(tile.dt[s] + i) + load(bias + v * stride)));
    }
}

// delta = softplus(dt_weight dt + bias) for kRows steps and kColumns vectors at once.
template <class T, bool kSoftplus, int kRows, int kColumns, int kSteps>
INLINE void project(
    const Tile<T, kSteps>& tile, const Parameters<T>& parameters, int64_t k, const Block<T>& block, int64_t s, int64_t v,
    T* delta) {
  constexpr int W = kLanes<T>;
  Vector<T> z[kRows][kColumns];
  const T* weight[kColumns];
  for (int j = 0; j < kColumns; j++) {
    weight[j] = parameters.weight(k, block.first_vector + v + j);
    for (int i = 0; i < kRows; i++) z[i][j] = load(parameters.bias(k, block.first_vector + v + j));
  }
  for (int64_t r = 0; r < parameters.R; r++)
    for (int i = 0; i < kRows; i++) {
      const Vector<T> value = broadcast(tile.dt[s + i][r]);
      for (int j = 0; j < kColumns; j++) z[i][j] = fma(value, load(weight[j] + r * W), z[i][j]);
    }
  for (int i = 0; i < kRows; i++)
    for (int j = 0; j < kColumns; j++)
      store(delta + (s + i) * block.padded + (v + j) * W, step_size<T, kSoftplus>(z[i][j]));
}

template <class T, bool kSoftplus, int kSteps>
static void low_rank_step_sizes(
    const Tile<T, kSteps>& tile, const Parameters<T>& parameters, int64_t k, const Block<T>& block, int64_t begin, int64_t end,
    T* delta) {
  int64_t v = 0;
  for (; v + 2 <= block.vectors; v += 2) {
    int64_t s = begin;
    for (; s + 4 <= end; s += 4) project<T, kSoftplus, 4, 2>(tile, parameters, k, block, s, v, delta);
    for (; s < end; s++) project<T, kSoftplus, 1, 2>(tile, parameters, k, block, s, v, delta);
  }
  for (; v < block.vectors; v++)
    for (int64_t s = begin; s < end; s++) project<T, kSoftplus, 1, 1>(tile, parameters, k, block, s, v, delta);
}

// For steps [begin, end) of the tile.
template <class T, int kSteps>
static void step_sizes(
    const Arguments& a, const Tile<T, kSteps>& tile, const Parameters<T>& parameters, int64_t k, const Block<T>& block,
    int64_t begin, int64_t end, T* delta) {
  if (a.R == 0 && a.softplus) return dense_step_sizes<T, true>(tile, parameters, k, block, begin, end, delta);
  if (a.R == 0) return dense_step_sizes<T, false>(tile, parameters, k, block, begin, end, delta);
  if (a.softplus) return low_rank_step_sizes<T, true>(tile, parameters, k, block, begin, end, delta);
  return low_rank_step_sizes<T, false>(tile, parameters, k, block, begin, end, delta);
}

// The states (N rows of E channels) that forward keeps of one path before step t.
template <class T>
static T* checkpoint(const Arguments& a, int64_t b, int64_t k, int64_t t, int64_t channel) {
  const int64_t kept = divide_up(a.T, a.checkpoint_steps);
  return (T*)a.checkpoints + ((b * a.K + k) * kept + t / a.checkpoint_steps) * a.N * a.E + channel;
}

}  // namespace visionssm::VISIONSSM_TARGET
