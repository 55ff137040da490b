// A tile: a few steps of one path for a block of channels, gathered from the map as rows of `padded` numbers, a
// multiple of the vector width. Forward and backward share it, and how delta comes from dt.
#pragma once
#include "block.h"

namespace visionssm::VISIONSSM_TARGET {

INLINE char* address(const Tensor& t, int64_t b, int64_t p, int64_t k, int64_t first) {
  return (char*)t.data + (b * t.batch_stride + p * t.position_stride + k * t.path_stride + first) * bytes_of(t.dtype);
}

// What is assumed of the processor.
constexpr int64_t kSecondLevelCache = 1 << 20;

// How many steps ahead of their use rows of a map that is too large for the cache are asked for. Few: on many paths
// successive rows lie a multiple of a large power of two apart and compete for the same few places in the cache.
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

  // Steps t to t + count - 1 of a path of `length` steps; those that follow start at step `next`.
  void walk(const int32_t* path, int64_t length, int64_t t, int64_t count, int64_t next) {
    steps = count;
    rows = far ? steps + kAhead : steps;
    int32_t lowest = 0;
    for (int64_t s = 0; s < rows; s++) {
      const int64_t step = s < steps ? t + s : smaller(next + s - steps, length - 1);
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
    Format format, const Tile<T, kSteps>& tile, const char* base, int64_t stride, int64_t count, int64_t padded,
    T* copies, const T** rows) {
  for (int64_t s = 0; s < tile.steps; s++) {
    if (tile.far) prefetch(base + tile.source[s + kAhead] * stride, count * format.bytes);
    T* copy = copies + s * padded;
    read_row(format, base + tile.source[s] * stride, count, copy);
    for (int64_t i = count; i < padded; i++) copy[i] = 0;
    rows[s] = copy;
  }
  for (int64_t s = tile.steps; s < tile.rows; s++) rows[s] = copies;
}

// Points rows[s] at `count` numbers of each step, converted into `copies` where they are of another type or would be
// read by vectors beyond their end. A step over padding reads zeros.
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
    const Tile<T, kSteps>& tile, const Parameters<T>& parameters, int64_t k, const Block<T>& block, int64_t begin,
    int64_t end, T* delta) {
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
    const Tile<T, kSteps>& tile, const Parameters<T>& parameters, int64_t k, const Block<T>& block, int64_t s,
    int64_t v, T* delta) {
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

template <class T, bool kSoftplus, int kColumns, int kSteps>
static void low_rank_step_sizes(
    const Tile<T, kSteps>& tile, const Parameters<T>& parameters, int64_t k, const Block<T>& block, int64_t begin,
    int64_t end, int64_t v, T* delta) {
  for (; v + kColumns <= block.vectors; v += kColumns) {
    int64_t s = begin;
    for (; s + 4 <= end; s += 4) project<T, kSoftplus, 4, kColumns>(tile, parameters, k, block, s, v, delta);
    for (; s < end; s++) project<T, kSoftplus, 1, kColumns>(tile, parameters, k, block, s, v, delta);
  }
  if constexpr (kColumns > 1)
    low_rank_step_sizes<T, kSoftplus, kColumns / 2>(tile, parameters, k, block, begin, end, v, delta);
}

// For steps [begin, end) of the tile.
template <class T, int kSteps>
static void step_sizes(
    const Arguments& a, const Tile<T, kSteps>& tile, const Parameters<T>& parameters, int64_t k, const Block<T>& block,
    int64_t begin, int64_t end, T* delta) {
  if (a.R == 0 && a.softplus) return dense_step_sizes<T, true>(tile, parameters, k, block, begin, end, delta);
  if (a.R == 0) return dense_step_sizes<T, false>(tile, parameters, k, block, begin, end, delta);
  if (a.softplus) return low_rank_step_sizes<T, true, 2>(tile, parameters, k, block, begin, end, 0, delta);
  return low_rank_step_sizes<T, false, 2>(tile, parameters, k, block, begin, end, 0, delta);
}

// The states (N rows of E channels) that forward keeps of one path before step t.
template <class T>
static T* checkpoint(const Arguments& a, int64_t b, int64_t k, int64_t t, int64_t channel) {
  const int64_t kept = divide_up(a.T, a.checkpoint_steps);
  return (T*)a.checkpoints + ((b * a.K + k) * kept + t / a.checkpoint_steps) * a.N * a.E + channel;
}

}  // namespace visionssm::VISIONSSM_TARGET
