// LayerNorm and RMSNorm, with statistics in float32.
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
  int64_t sets[kRows];
  for (int r = 0; r < kRows; r++) sets[r] = (row + r) % a.sets * row_bytes;

  if (a.addend) {
    const char* addend = (const char*)a.addend + row * row_bytes;
    char* total = (char*)a.total + row * row_bytes;
    each_vector(kRows * columns, [&](int64_t c, int64_t count) {
      const floats v = format.read(x + c * bytes, count) + format.read(addend + c * bytes, count);
      format.write(total + c * bytes, v, count);
    });
    x = total;
  }
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
    for (int r = 0; r < kRows; r++) {
      const floats w = weight ? format.read(weight + sets[r] + c * bytes, count) : broadcast(1.0f);
      const floats b = bias ? format.read(bias + sets[r] + c * bytes, count) : floats{};
      const floats distance = format.read(x + r * row_bytes + c * bytes, count) - means[r];
      format.write(y + r * row_bytes + c * bytes, fma(distance * scales[r], w, b), count);
    }
  });
}

template <int kRows, class Format>
static void rms_norm_rows(const RmsNormArguments& a, Format format, int64_t row) {
  constexpr int64_t bytes = Format::bytes;
  const int64_t columns = a.columns, first = row * columns;
  const char* x = (const char*)a.x + first * bytes;
  const float* residual = a.residual ? a.residual + first : nullptr;
  const char* weight = (const char*)a.weight;
  float* total = a.total + first;
  char* y = (char*)a.y + first * bytes;

  floats squares[kRows] = {}, scales[kRows];
  each_vector(columns, [&](int64_t c, int64_t count) {
    for (int r = 0; r < kRows; r++) {
      const int64_t at = r * columns + c;
      floats v = format.read(x + at * bytes, count);
      if (residual) v = load_part(residual + at, count) + v;
      store_part(total + at, v, count);
      squares[r] = fma(v, v, squares[r]);
    }
  });
  for (int r = 0; r < kRows; r++)
    scales[r] = broadcast(1.0f / sqrtf(sum(squares[r]) / float(columns) + float(*a.eps)));
  each_vector(columns, [&](int64_t c, int64_t count) {
    const floats w = format.read(weight + c * bytes, count);
    for (int r = 0; r < kRows; r++) {
      const int64_t at = r * columns + c;
      format.write(y + at * bytes, load_part(total + at, count) * scales[r] * w, count);
    }
  });
}

// Calls run(first, rows) with rows an integral constant: groups of rows, and what is left one by one.
template <class Run>
static void each_group(int64_t rows, int64_t threads, const Run& run) {
  const int64_t groups = (rows + kNormRows - 1) / kNormRows;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t group = 0; group < groups; group++) {
    const int64_t first = group * kNormRows;
    if (first + kNormRows <= rows) {
      run(first, std::integral_constant<int, kNormRows>());
      continue;
    }
    for (int64_t row = first; row < rows; row++) run(row, std::integral_constant<int, 1>());
  }
}

void layer_norm(const NormArguments& a) {
  each_group(a.rows, a.threads, [&](int64_t row, auto count) {
    with_format<float>(a.dtype, [&](auto format) { norm_rows<decltype(count)::value>(a, format, row); });
  });
}

void rms_norm(const RmsNormArguments& a) {
  each_group(a.rows, a.threads, [&](int64_t row, auto count) {
    with_format<float>(a.dtype, [&](auto format) { rms_norm_rows<decltype(count)::value>(a, format, row); });
  });
}

}  // namespace visionssm::VISIONSSM_TARGET
