// Products of a matrix with a transposed one, x weight^T + bias, with GELU where that is wanted.
//
// A panel is what two vectors of output columns (one or three at the edge) need of the weights, in the order in which they
// are read. Each task takes a block of rows of x, packs one panel after the other, and multiplies some rows at once with
// it: their sums stay in registers, and x is read where it lies. Blocks go to threads in order, so that the next product
// finds its rows in the same core's cache. Sums are made in the same order whatever the blocks and threads.
#pragma once
#include <algorithm>
#include <array>
#include <utility>

#include "product_arguments.h"
#include "vector_math.h"

namespace visionssm::VISIONSSM_TARGET {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
constexpr int kLane = kLanes<float>;

// Rows whose sums fit into registers, beside a row of the panel and a number of x.
constexpr int rows_at_once(int vectors) { return std::min((kRegisters - 1 - vectors) / vectors, 14); }

constexpr int64_t kBlockBytes = 1 << 20;    // of x and out, which stay in the cache from one panel to the next
constexpr int64_t kFewestRows = 256;        // of a block: for fewer packing a panel takes too large a share
constexpr int64_t kInnerBlock = 768;        // more is summed in parts: that rounds less, and a panel stays in the cache
constexpr int64_t kWorthThreads = 1 << 20;  // multiply-adds for which it is worth waking others
constexpr int64_t kPrefetch = 256;          // numbers of the panel that are asked for in advance
constexpr int64_t kLineFloats = 16;         // of a line of the cache

// Rows of x that lie a multiple of this apart share their places in the first-level cache, and displace each other.
constexpr int64_t kCrowded = 1024;
constexpr int64_t kApart = kInnerBlock + kLane;

INLINE int64_t divide(int64_t n, int64_t by) { return (n + by - 1) / by; }

INLINE int64_t panels_of(const ProductArguments& a) { return std::max<int64_t>(1, divide(a.columns, kLane) / 2); }

// out = x panel + bias, or added to out.
template <int kRows, int kVectors>
static void multiply(const float* x, int64_t x_row, const float* panel, int64_t inner, const float* bias, bool add,
                     float* out, int64_t out_row, int64_t columns) {
  const auto count = [columns](int v) { return v + 1 < kVectors ? kLane : columns - v * kLane; };
  floats sums[kRows][kVectors] = {};
  const float* rows[(kRows + 3) / 4];  // four rows each are addressed from one register
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r += 4) rows[r / 4] = opaque(x + r * x_row);
  for (int64_t k = 0; k < inner; k++, panel += kVectors * kLane) {
    floats weights[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; v++) {
      weights[v] = load(panel + v * kLane);
      __builtin_prefetch(panel + v * kLane + kPrefetch);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) {
      const floats value = broadcast(rows[r / 4][k + r % 4 * x_row]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; v++) sums[r][v] = fma(value, weights[v], sums[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; v++) {
    const floats b = bias ? load_part(bias + v * kLane, count(v)) : floats{};
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) {
      float* place = out + r * out_row + v * kLane;
      store_part(place, sums[r][v] + (add ? load_part(place, count(v)) : b), count(v));
    }
  }
}

using Multiply = decltype(&multiply<1, 1>);

// By the number of rows less one.
template <int kVectors, int... rows>
constexpr std::array<Multiply, sizeof...(rows)> multiply_by_rows(std::integer_sequence<int, rows...>) {
  return {multiply<rows + 1, kVectors>...};
}
template <int kVectors>
constexpr auto kMultiply = multiply_by_rows<kVectors>(std::make_integer_sequence<int, rows_at_once(kVectors)>());

// One step of a transposition: what has the bit `step` in its place goes from a to b, what has not from b to a.
template <int step, int... i>
INLINE void exchange(floats& a, floats& b, std::integer_sequence<int, i...>) {
#if defined(__clang__) || __GNUC__ >= 12
  const floats first = __builtin_shufflevector(a, b, (i & step ? kLane + i - step : i)...);
  const floats second = __builtin_shufflevector(a, b, (i & step ? kLane + i : i + step)...);
#else  // the same, slower
  const floats first = {(i & step ? b[i ^ step] : a[i])...}, second = {(i & step ? b[i] : a[i ^ step])...};
#endif
  a = first;
  b = second;
}

template <int step = 1>
INLINE void transpose(floats (&v)[kLane]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLane; i++)
    if (!(i & step)) exchange<step>(v[i], v[i + step], std::make_integer_sequence<int, kLane>());
  if constexpr (2 * step < kLane) transpose<2 * step>(v);
}

// Rows of the weights as columns: panel (inner, width), zero where there are none.
static void pack(const ProductArguments& a, const float* weight, int64_t inner, int64_t columns, int64_t width,
                 float* panel) {
  for (int64_t c = 0; c < width; c += kLane) {
    if (a.weight_inner != 1) {
      for (int64_t k = 0; k < inner; k++)
        store(panel + k * width + c, load_part(weight + k * a.weight_inner + c, columns - c));
      continue;
    }
    for (int64_t k = 0; k < inner; k += kLane) {
      floats v[kLane];
#pragma GCC unroll 16
      for (int i = 0; i < kLane; i++)
        v[i] = c + i < columns ? load_part(weight + (c + i) * a.weight_column + k, inner - k) : floats{};
      transpose(v);
      const int64_t count = std::min<int64_t>(kLane, inner - k);
      for (int64_t i = 0; i < count; i++) store(panel + (k + i) * width + c, v[i]);
    }
  }
}

static void gelu_in_place(float* out, int64_t out_row, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; r++, out += out_row)
    each_vector(columns, [&](int64_t c, int64_t count) {
      store_part(out + c, gelu(Native<float>(), load_part(out + c, count)), count);
    });
}

// A block of rows with the columns of one panel.
template <int kVectors>
static void multiply_panel(const ProductArguments& a, const float* x, const float* weight, const float* bias,
                           float* out, int64_t rows, int64_t columns) {
  constexpr int64_t at_once = rows_at_once(kVectors);
  alignas(64) float panel[kInnerBlock * kVectors * kLane];
  alignas(64) float near[at_once * kApart];
  const bool crowded = a.x_row % kCrowded == 0;
  const int64_t parts = std::max<int64_t>(1, divide(a.inner, kInnerBlock)), steps = parts * divide(rows, at_once);
  // The weights of the next panel, as they usually lie, are asked for little by little.
  const float* next = weight + kVectors * kLane * a.weight_column;
  const int64_t ahead = divide(kVectors * kLane * a.inner, steps);

  for (int64_t part = 0; part < parts; part++) {
    const int64_t k = a.inner * part / parts, inner = a.inner * (part + 1) / parts - k;
    pack(a, weight + k * a.weight_inner, inner, columns, kVectors * kLane, panel);
    for (int64_t row = 0; row < rows; row += at_once, next += ahead) {
      const int64_t some = std::min(at_once, rows - row);
      const float* source = x + row * a.x_row + k;
      float* target = out + row * a.out_row;
      for (int64_t i = 0; i < ahead; i += kLineFloats) __builtin_prefetch(next + i, 0, 2);
      for (int64_t r = 0; crowded && r < some; r++)
        memcpy(near + r * kApart, source + r * a.x_row, inner * sizeof(float));
      kMultiply<kVectors>[some - 1](crowded ? near : source, crowded ? kApart : a.x_row, panel, inner, bias, part > 0,
                                    target, a.out_row, columns);
      if (a.gelu && part + 1 == parts) gelu_in_place(target, a.out_row, some, columns);
    }
  }
}

// A block of rows with some panels.
static void multiply_block(const ProductArguments& a, int64_t group, int64_t row, int64_t rows, int64_t first,
                           int64_t last) {
  const float* x = a.x + group * a.x_group + row * a.x_row;
  const float* weight = a.weight + group * a.weight_group;
  float* out = a.out + group * a.out_group + row * a.out_row;
  for (int64_t panel = first; panel < last; panel++) {
    const int64_t c = panel * 2 * kLane, columns = panel + 1 < panels_of(a) ? 2 * kLane : a.columns - c;
    const int64_t vectors = divide(columns, kLane);
    const auto run = vectors == 1 ? multiply_panel<1> : vectors == 2 ? multiply_panel<2> : multiply_panel<3>;
    run(a, x, weight + c * a.weight_column, a.bias ? a.bias + c : nullptr, out + c, rows, columns);
  }
}

void product(const ProductArguments& a) {
  const int64_t work = a.groups * a.rows * a.inner * a.columns, panels = panels_of(a);
  const int64_t threads = work < kWorthThreads ? 1 : a.threads;
  const int64_t share = a.groups % threads == 0 ? 1 : threads;  // of the threads, for one group

  // Blocks that fit the cache, the same number for each thread; panels are divided where rows are too few for that, unless
  // there are not enough panels to do it evenly.
  const int64_t most = std::max<int64_t>(1, a.rows / (panels < 4 * share ? kFewestRows / 4 : kFewestRows));
  const int64_t bytes = a.rows * (a.inner + a.columns) * int64_t(sizeof(float));
  const int64_t wanted = divide(divide(bytes, kBlockBytes), share) * share;
  const int64_t number = wanted <= most ? wanted : most > share ? most / share * share : most;
  const int64_t block = divide(divide(a.rows, number), rows_at_once(2)) * rows_at_once(2);
  const int64_t blocks = divide(a.rows, block), parts = std::min(panels, divide(share, blocks));

#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t task = 0; task < a.groups * blocks * parts; task++) {
    const int64_t part = task % parts, row = task / parts % blocks * block, group = task / parts / blocks;
    multiply_block(a, group, row, std::min(block, a.rows - row), panels * part / parts, panels * (part + 1) / parts);
  }
}

}  // namespace visionssm::VISIONSSM_TARGET
