// What Python hands over for products of matrices. Every field is 64 bits wide; ops/native_product.py repeats their order.
#pragma once
#include <cstdint>

namespace visionssm {

// out = x weight^T + bias, with `gelu` GELU of that, for several groups of matrices, of float32 or bfloat16, which is summed
// in float32. Strides count numbers; the last axis of x, out and bias is dense. For bfloat16 so is the last one of the
// weights, and `inner` and all strides of x and the weights are even.
struct ProductArguments {
  int64_t groups, rows, inner, columns, threads, gelu, dtype;
  const void* x;  // (groups, rows, inner)
  int64_t x_group, x_row;
  const void* weight;  // (groups, columns, inner); the stride of one of the last two is 1
  int64_t weight_group, weight_column, weight_inner;
  const void* bias;  // (columns), for all groups, or null
  void* out;         // (groups, rows, columns)
  int64_t out_group, out_row;
};

}  // namespace visionssm
