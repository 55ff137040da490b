// GELU with the bias before it, and its derivative, over the rows of a matrix, in one pass over memory each.
#pragma once
#include "gelu_arguments.h"
#include "vector_math.h"

namespace visionssm::VISIONSSM_TARGET {

template <class Format>
static void gelu_row(const GeluArguments& a, Format format, int64_t row) {
  constexpr int64_t bytes = Format::bytes;
  char* x = (char*)a.x + row * a.columns * bytes;
  char* hidden = (char*)a.hidden + row * a.columns * bytes;
  const char* bias = (const char*)a.bias;
  const bool keep = a.keep;
  each_vector(a.columns, [&](int64_t c, int64_t count) {
    floats v = format.read(x + c * bytes, count);
    if (bias) v = v + format.read(bias + c * bytes, count);
    if (keep) format.write(x + c * bytes, v, count);
    format.write(hidden + c * bytes, gelu(format, v), count);
  });
}

template <class Format>
static void gelu_backward_row(const GeluBackwardArguments& a, Format format, int64_t row) {
  constexpr int64_t bytes = Format::bytes;
  const char* x = (const char*)a.x + row * a.columns * bytes;
  char* gradient = (char*)a.gradient + row * a.columns * bytes;
  char* hidden = (char*)a.hidden + row * a.columns * bytes;
  each_vector(a.columns, [&](int64_t c, int64_t count) {
    const Gelu g = gelu_and_slope(format, format.read(x + c * bytes, count));
    format.write(hidden + c * bytes, g.value, count);
    format.write(gradient + c * bytes, g.slope * format.read(gradient + c * bytes, count), count);
  });
}

void bias_gelu(const GeluArguments& a) {
#pragma omp parallel for num_threads(a.threads) schedule(static)
  for (int64_t row = 0; row < a.rows; row++)
    with_format<float>(a.dtype, [&](auto format) { gelu_row(a, format, row); });
}

void gelu_backward(const GeluBackwardArguments& a) {
#pragma omp parallel for num_threads(a.threads) schedule(static)
  for (int64_t row = 0; row < a.rows; row++)
    with_format<float>(a.dtype, [&](auto format) { gelu_backward_row(a, format, row); });
}

}  // namespace visionssm::VISIONSSM_TARGET
