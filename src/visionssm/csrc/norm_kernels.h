// LayerNorm, with statistics in float32.
#pragma once
#include "norm_arguments.h"
#include "vector_math.h"

namespace visionssm::VISIONSSM_TARGET {

// Rows whose sums are made side by side, so that none waits for another's.
constexpr int64_t kNormRows = 4;

// The first `count` lanes; zero in the others.
INLINE floats only(floats v, int64_t count) {
  if (count >= kLanes<float>) return v;
  float part[kLanes<float>] = {};
  store_some(part, v, count);
  return load(part);
}

template <int kRows, class Format>
static void norm_rows(const NormArguments& a, Format format, int64_t row) {
  constexpr int64_t bytes = Format::bytes;
  const int64_t columns = a.columns, row_bytes = columns * bytes;
  const char* x = (const char*)a.x + row * row_bytes;
  const char* weight = (const char*)a.weight;
  const char* bias = (const char*)a.bias;
  char* y = (char*)a.y + row * row_bytes;
  const float share = 1.0f / float(columns);

  floats sums[kRows] = {}, squares[kRows] = {}, means[kRows], scales[kRows];
  each_vector(columns, [&](int64_t c, int64_t count) {
    for (int r = 0; r < kRows; r++) sums[r] = sums[r] + format.read(x + r * row_bytes + c * bytes, count);
  });
  for (int r = 0; r < kRows; r++) means[r] = broadcast(sum(sums[r]) * share);
  each_vector(columns, [&](int64_t c, int64_t count) {
    for (int r = 0; r < kRows; r++) {
      const floats distance = only(format.read(x + r * row_bytes + c * bytes, count) - means[r], count);
      squares[r] = fma(distance, distance, squares[r]);
    }
  });
  for (int r = 0; r < kRows; r++) scales[r] = broadcast(1.0f / sqrtf(sum(squares[r]) * share + float(*a.eps)));
  each_vector(columns, [&](int64_t c, int64_t count) {
    const floats w = weight ? format.read(weight + c * bytes, count) : broadcast(1.0f);
    const floats b = bias ? format.read(bias + c * bytes, count) : floats{};
    for (int r = 0; r < kRows; r++) {
      const floats distance = format.read(x + r * row_bytes + c * bytes, count) - means[r];
      format.write(y + r * row_bytes + c * bytes, fma(distance * scales[r], w, b), count);
    }
  });
}

void layer_norm(const NormArguments& a) {
  const int64_t groups = (a.rows + kNormRows - 1) / kNormRows;
#pragma omp parallel for num_threads(a.threads) schedule(static)
  for (int64_t group = 0; group < groups; group++) {
    const int64_t first = group * kNormRows;
    with_format<float>(a.dtype, [&](auto format) {
      if (first + kNormRows <= a.rows) return norm_rows<kNormRows>(a, format, first);
      for (int64_t row = first; row < a.rows; row++) norm_rows<1>(a, format, row);
    });
  }
}

}  // namespace visionssm::VISIONSSM_TARGET
