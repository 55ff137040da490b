// What Python hands over for products of matrices. Every field is 64 bits wide; ops/native_product.py repeats their order.
#pragma once
#include <cstdint>

namespace visionssm {

// out = x weight^T + bias in float32, with `gelu` GELU of that, for several groups of matrices. Strides count numbers;
// the last axis of x, out and bias is dense.
struct ProductArguments {
  int64_t groups, rows, inner, columns, threads, gelu;
  const float* x;  // (groups, rows, inner)
  int64_t x_group, x_row;
  const float* weight;  // (groups, columns, inner); the stride of one of the last two is 1
  int64_t weight_group, weight_column, weight_inner;
  const float* bias;  // (columns), for all groups, or null
  float* out;         // (groups, rows, columns)
  int64_t out_group, out_row;
};

}  // namespace visionssm
