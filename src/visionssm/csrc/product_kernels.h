// Products of a matrix with a transposed one, x weight^T + bias, with GELU where that is wanted.
//
// Numbers are read as words of 32 bits: one of float32, or two neighbours of bfloat16, whose products are added together.
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
constexpr int64_t kInnerBlock = 768;        // more words are summed in parts: that rounds less, and a panel stays in cache
constexpr int64_t kWorthThreads = 1 << 20;  // multiply-adds for which it is worth waking others
constexpr int64_t kMostRows = 512;          // of a block whose sums wait for the last part before they are rounded
constexpr int64_t kPrefetch = 256;          // words of the panel that are asked for in advance

INLINE int64_t divide(int64_t n, int64_t by) { return (n + by - 1) / by; }

INLINE int64_t panels_of(const ProductArguments& a) { return std::max<int64_t>(1, divide(a.columns, kLane) / 2); }

// What a word holds, and how products of words are added to sums.
struct Single {
  using Number = Native<float>;
  static constexpr int64_t in_a_word = 1, inner_block = kInnerBlock;
  static constexpr bool rounds = false, transposed = false;
  INLINE floats add(const float* x, floats weights, floats sums) { return fma(broadcast(*x), weights, sums); }
};

struct Pair {
  using Number = BFloat16;
  static constexpr int64_t in_a_word = 2, inner_block = kInnerBlock;
  static constexpr bool transposed = false;
  static constexpr bool rounds = true;  // sums are made elsewhere, and written when all parts are there
  INLINE floats add(const float* x, floats weights, floats sums) {
    uint32_t word;
    memcpy(&word, x, sizeof word);
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(sums, (__m512bh)_mm512_set1_epi32(word), (__m512bh)weights);
#else
    const words pair = word - words{}, upper = 0xffff0000 - words{};
    sums = fma((floats)(pair << 16), (floats)((words)weights << 16), sums);
    return fma((floats)(pair & upper), (floats)((words)weights & upper), sums);
#endif
  }
};

// float32 with x transposed in memory, of which only so much stays in the cache from one panel to the next.
struct Transposed : Single {
  static constexpr int64_t inner_block = 384;
  static constexpr bool transposed = true;
};

// sums = x panel + bias, or added to the sums.
template <class Format, int kRows, int kVectors>
static void multiply(const float* x, int64_t x_stride, const float* panel, int64_t inner, const float* bias, bool add,
                     float* out, int64_t out_row, int64_t columns, const float* next, int64_t next_step) {
  const auto count = [columns](int v) { return v + 1 < kVectors ? kLane : columns - v * kLane; };
  floats sums[kRows][kVectors] = {};
  const float* rows[(kRows + 3) / 4];  // four rows each are addressed from one register, unless they lie side by side
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r += 4) rows[r / 4] = opaque(x + r * (Format::transposed ? 1 : x_stride));
  for (int64_t k = 0; k < inner; k++, panel += kVectors * kLane, next += next_step) {
    __builtin_prefetch(next, 0, 2);
    floats weights[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; v++) {
      weights[v] = load(panel + v * kLane);
      __builtin_prefetch(panel + v * kLane + kPrefetch);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) {
      const float* value = Format::transposed ? x + k * x_stride + r : rows[r / 4] + k + r % 4 * x_stride;
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; v++) sums[r][v] = Format::add(value, weights[v], sums[r][v]);
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

using Multiply = decltype(&multiply<Single, 1, 1>);

// By the number of rows less one.
template <class Format, int kVectors, int... rows>
constexpr std::array<Multiply, sizeof...(rows)> multiply_by_rows(std::integer_sequence<int, rows...>) {
  return {multiply<Format, rows + 1, kVectors>...};
}
template <class Format, int kVectors>
constexpr auto kMultiply =
    multiply_by_rows<Format, kVectors>(std::make_integer_sequence<int, rows_at_once(kVectors)>());

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

// What becomes of finished sums: GELU of them, and the numbers of the format.
template <class Format>
static void finish(bool with_gelu, const float* sums, int64_t sums_row, char* out, int64_t out_row, int64_t rows,
                   int64_t columns) {
  for (int64_t r = 0; r < rows; r++, sums += sums_row, out += out_row * Format::Number::bytes)
    each_vector(columns, [&](int64_t c, int64_t count) {
      const floats v = load_part(sums + c, count);
      Format::Number::write(out + c * Format::Number::bytes, with_gelu ? gelu(typename Format::Number(), v) : v, count);
    });
}

// A block of rows with the columns of one panel.
template <class Format, int kVectors>
static void multiply_panel(const ProductArguments& a, const float* x, const float* weight, const char* bias, char* out,
                           int64_t rows, int64_t columns) {
  constexpr int64_t at_once = rows_at_once(kVectors), width = kVectors * kLane;
  constexpr bool rounds = Format::rounds;
  alignas(64) float panel[kInnerBlock * width];
  alignas(64) float elsewhere[rounds ? (kMostRows + rows_at_once(2)) * width : 1];
  alignas(64) float first_sums[width];
  if (bias) read_row(typename Format::Number(), bias, columns, first_sums);
  const int64_t parts = std::max<int64_t>(1, divide(a.inner, Format::inner_block));
  // The weights of the next panel, as they usually lie, are asked for little by little: so many words at each step.
  const float* next = weight + width * a.weight_column;
  const int64_t next_step = divide(width, divide(rows, at_once));

  for (int64_t part = 0; part < parts; part++) {
    const int64_t k = a.inner * part / parts, inner = a.inner * (part + 1) / parts - k;
    pack(a, weight + k * a.weight_inner, inner, columns, width, panel);
    for (int64_t row = 0; row < rows; row += at_once, next += next_step * inner) {
      const int64_t some = std::min(at_once, rows - row);
      char* target = out + row * a.out_row * Format::Number::bytes;
      float* sums = rounds ? elsewhere + (parts > 1 ? row * width : 0) : (float*)target;
      const int64_t sums_row = rounds ? width : a.out_row;
      kMultiply<Format, kVectors>[some - 1](x + row * a.x_row + k * a.x_inner,
                                            Format::transposed ? a.x_inner : a.x_row, panel, inner,
                                            bias ? first_sums : nullptr, a.add || part > 0, sums, sums_row, columns,
                                            next, next_step);
      if ((a.gelu || rounds) && part + 1 == parts)
        finish<Format>(a.gelu, sums, sums_row, target, a.out_row, some, columns);
    }
  }
}

// A block of rows with some panels.
template <class Format>
static void multiply_block(const ProductArguments& a, int64_t group, int64_t row, int64_t rows, int64_t first,
                           int64_t last) {
  const float* x = (const float*)a.x + group * a.x_group + row * a.x_row;
  const float* weight = (const float*)a.weight + group * a.weight_group;
  char* out = (char*)a.out + (group * a.out_group + row * a.out_row) * Format::Number::bytes;
  for (int64_t panel = first; panel < last; panel++) {
    const int64_t c = panel * 2 * kLane, columns = panel + 1 < panels_of(a) ? 2 * kLane : a.columns - c;
    const int64_t vectors = divide(columns, kLane);
    const auto run = vectors == 1   ? multiply_panel<Format, 1>
                     : vectors == 2 ? multiply_panel<Format, 2>
                                    : multiply_panel<Format, 3>;
    const char* bias = a.bias ? (const char*)a.bias + c * Format::Number::bytes : nullptr;
    run(a, x, weight + c * a.weight_column, bias, out + c * Format::Number::bytes, rows, columns);
  }
}

// Sizes and strides that counted numbers count words.
static ProductArguments in_words(ProductArguments a, int64_t numbers) {
  for (int64_t* value : {&a.inner, &a.x_group, &a.x_row, &a.weight_group, &a.weight_column}) *value /= numbers;
  return a;
}

template <class Format>
static void product_of(const ProductArguments& numbers) {
  const ProductArguments a = in_words(numbers, Format::in_a_word);
  const int64_t work = a.groups * a.rows * a.inner * a.columns, panels = panels_of(a);
  const int64_t threads = work < kWorthThreads ? 1 : a.threads;
  const int64_t share = a.groups % threads == 0 ? 1 : threads;  // of the threads, for one group

  // Blocks that fit the cache, the same number for each thread; panels are divided where rows are too few for that, unless
  // there are not enough panels to do it evenly.
  const int64_t most = std::max<int64_t>(1, a.rows / (panels < 4 * share ? kFewestRows / 4 : kFewestRows));
  const int64_t bytes = a.rows * (a.inner * int64_t(sizeof(float)) + a.columns * Format::Number::bytes);
  const int64_t wanted = divide(divide(bytes, kBlockBytes), share) * share;
  const int64_t number = wanted <= most ? wanted : most > share ? most / share * share : most;
  const bool wait = Format::rounds && a.inner > kInnerBlock;
  const int64_t rows = std::min(divide(a.rows, number), wait ? kMostRows : a.rows);
  const int64_t block = divide(rows, rows_at_once(2)) * rows_at_once(2);
  const int64_t blocks = divide(a.rows, block), parts = std::min(panels, divide(share, blocks));

#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t task = 0; task < a.groups * blocks * parts; task++) {
    const int64_t part = task % parts, row = task / parts % blocks * block, group = task / parts / blocks;
    multiply_block<Format>(a, group, row, std::min(block, a.rows - row), panels * part / parts,
                           panels * (part + 1) / parts);
  }
}

void product(const ProductArguments& a) {
  if (a.dtype == kBFloat16) return product_of<Pair>(a);
  a.x_inner == 1 ? product_of<Single>(a) : product_of<Transposed>(a);
}

}  // namespace visionssm::VISIONSSM_TARGET
