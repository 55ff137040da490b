// Depthwise convolution over channels-last maps, with K sets of taps for each channel, bias and activation: one pass over
// memory.
#pragma once
#include "depthwise_arguments.h"
#include "vector_math.h"

namespace visionssm::VISIONSSM_TARGET {

// Positions of a row that one thread computes at a time.
constexpr int64_t kRun = 64;
// Neighbours of a row that are computed together.
constexpr int kNeighbours = 4;

template <class Format>
INLINE floats activate(Format format, floats v, Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return silu(v);
    case Activation::kGelu:
      return gelu(format, v);
    case Activation::kRelu:
      return max(floats{}, v);
    default:
      return v;
  }
}

// All channels of one position: `x` is the tap at the top left, which may lie outside of the map, `top` and `left` where it is.
// Grids of taps whose size is known here are unrolled; a size of 0 stands for any.
template <int High, int Wide, bool inside, class Format>
INLINE void convolve_position(const DepthwiseArguments& a, Format format, const char* x, char* y, int64_t k, int64_t top,
                              int64_t left) {
  constexpr int64_t bytes = Format::bytes;
  const int64_t high = High ? High : a.high, wide = Wide ? Wide : a.wide, E = a.E;
  const int64_t row_bytes = a.row_stride * bytes, column_bytes = a.column_stride * bytes;
  const float* weight = a.weight + k * high * wide * E;
  const float* bias = a.bias ? a.bias + k * E : nullptr;
  const Activation activation = a.activation;
  const auto channels = [&](int64_t c, int64_t count) {
    floats sum = bias ? load_part(bias + c, count) : floats{};
    for (int64_t i = 0; i < high; i++)
      for (int64_t j = 0; j < wide; j++) {
        const bool exists = top + i >= 0 && top + i < a.H && left + j >= 0 && left + j < a.W;
        if (!inside && !exists) continue;
        const floats tap = load_part(weight + (i * wide + j) * E + c, count);
        sum = fma(format.read(x + i * row_bytes + j * column_bytes + c * bytes, count), tap, sum);
      }
    format.write(y + c * bytes, activate(format, sum, activation), count);
  };
  each_vector(E, channels);
}

// The same for `Count` neighbours in a row, all of whose taps lie inside of the map: each number is read once for all of them.
template <int High, int Wide, int Count, class Format>
INLINE void convolve_neighbours(const DepthwiseArguments& a, Format format, const char* x, char* y, int64_t k) {
  constexpr int64_t bytes = Format::bytes;
  const int64_t E = a.E, row_bytes = a.row_stride * bytes, column_bytes = a.column_stride * bytes;
  const float* weight = a.weight + k * High * Wide * E;
  const float* bias = a.bias ? a.bias + k * E : nullptr;
  const Activation activation = a.activation;
  const auto channels = [&](int64_t c, int64_t count) {
    const floats start = bias ? load_part(bias + c, count) : floats{};
    floats sums[Count];
    for (int n = 0; n < Count; n++) sums[n] = start;
    for (int i = 0; i < High; i++) {
      floats taps[Wide];
      for (int j = 0; j < Wide; j++) taps[j] = load_part(weight + (i * Wide + j) * E + c, count);
      for (int column = 0; column < Wide + Count - 1; column++) {
        const floats value = format.read(x + i * row_bytes + column * column_bytes + c * bytes, count);
        for (int j = 0; j < Wide; j++)
          if (column >= j && column - j < Count) sums[column - j] = fma(value, taps[j], sums[column - j]);
      }
    }
    for (int n = 0; n < Count; n++)
      format.write(y + (n * a.K * E + c) * bytes, activate(format, sums[n], activation), count);
  };
  each_vector(E, channels);
}

template <int High, int Wide, class Format>
static void convolve_run(const DepthwiseArguments& a, Format format, int64_t image, int64_t h, int64_t begin,
                         int64_t end) {
  constexpr int64_t bytes = Format::bytes;
  const int64_t high = High ? High : a.high, wide = Wide ? Wide : a.wide;
  const int64_t top = h - a.top;
  const char* row = (const char*)a.x + (image * a.batch_stride + top * a.row_stride) * bytes;
  char* y = (char*)a.y + (((image * a.H + h) * a.W + begin) * a.K) * a.E * bytes;
  const bool rows_inside = top >= 0 && top + high <= a.H;
  // From where on, and up to where, positions have all their taps of every set inside of the map.
  int64_t first = 0, last = a.W;
  for (int64_t k = 0; k < a.K; k++) {
    first = a.left[k] > first ? a.left[k] : first;
    last = a.W - wide + a.left[k] + 1 < last ? a.W - wide + a.left[k] + 1 : last;
  }
  for (int64_t w = begin; w < end;) {
    const bool inside = rows_inside && w >= first && w < last;
    const bool many = High > 0 && inside && w + kNeighbours <= end && w + kNeighbours <= last;
    for (int64_t k = 0; k < a.K; k++) {
      const int64_t left = w - a.left[k];
      const char* x = row + left * a.column_stride * bytes;
      char* out = y + ((w - begin) * a.K + k) * a.E * bytes;
      if (many)
        convolve_neighbours<High ? High : 1, Wide ? Wide : 1, kNeighbours>(a, format, x, out, k);
      else if (inside)
        convolve_position<High, Wide, true>(a, format, x, out, k, top, left);
      else
        convolve_position<High, Wide, false>(a, format, x, out, k, top, left);
    }
    w += many ? kNeighbours : 1;
  }
}

template <int High, int Wide>
static void convolve(const DepthwiseArguments& a) {
  const int64_t runs = (a.W + kRun - 1) / kRun;
#pragma omp parallel for num_threads(a.threads) schedule(static)
  for (int64_t i = 0; i < a.batch * a.H * runs; i++) {
    const int64_t begin = i % runs * kRun, end = begin + kRun < a.W ? begin + kRun : a.W;
    with_format<float>(a.dtype, [&](auto format) {
      convolve_run<High, Wide>(a, format, i / runs / a.H, i / runs % a.H, begin, end);
    });
  }
}

// Puts the taps in the order in which they are read.
template <class Format>
static void pack_taps(const DepthwiseArguments& a, Format format) {
  const int64_t* strides = a.taps_strides;
  float* target = a.weight;
  for (int64_t k = 0; k < a.K; k++)
    for (int64_t i = 0; i < a.high; i++)
      for (int64_t j = 0; j < a.wide; j++) {
        const int64_t column = a.flip[k] ? a.wide - 1 - j : j;
        const char* source = (const char*)a.taps + (k * strides[0] + i * strides[2] + column * strides[3]) * Format::bytes;
        for (int64_t e = 0; e < a.E; e++) *target++ = format.read(source + e * strides[1] * Format::bytes, 1)[0];
      }
}

void depthwise(const DepthwiseArguments& a) {
  with_format<float>(a.taps_dtype, [&](auto format) { pack_taps(a, format); });
  if (a.high == 3 && a.wide == 3) return convolve<3, 3>(a);
  if (a.high == 1 && a.wide == 4) return convolve<1, 4>(a);
  if (a.high == 1 && a.wide == 3) return convolve<1, 3>(a);
  convolve<0, 0>(a);
}

}  // namespace visionssm::VISIONSSM_TARGET
