// A block of channels, and its parameters packed for vector loads.
#pragma once
#include "vector_math.h"

namespace visionssm::VISIONSSM_TARGET {

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// All threads where at least two have enough work, otherwise one. Never some: GCC's OpenMP ends the threads that a smaller
// team leaves out, and starts them again for the next one.
INLINE int64_t useful_threads(int64_t threads, double shares_of_work) { return shares_of_work < 2 ? 1 : threads; }

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

// A, D, dt_bias and dt_weight of one vector of channels lie together: one vector each for D, the bias, the N columns of
// A and the R columns of dt_weight. Their gradients are summed in the same layout.
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
  for (int64_t n = 0; n < (a.log_A ? a.N : 0); n++) store(A + n * W, -exponential(load(A + n * W)));
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

}  // namespace visionssm::VISIONSSM_TARGET
