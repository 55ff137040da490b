// What Python hands over for products of matrices. Every field is 64 bits wide; ops/native_product.py repeats their order.
#pragma once
#include <cstdint>

namespace visionssm {

// out = x weight^T + bias, with `gelu` GELU of that, or with `add` out + x weight^T, for several groups of matrices, of
// float32 or bfloat16, which is summed in float32. Strides count numbers; the last axis of out and bias is dense. For
// bfloat16 so is the last one of x and the weights, `inner` and their other strides are even, and nothing is added.
struct ProductArguments {
  int64_t groups, rows, inner, columns, threads, gelu, add, dtype;
  const void* x;  // (groups, rows, inner); the stride of one of the last two is 1
  int64_t x_group, x_row, x_inner;
  const void* weight;  // (groups, columns, inner); the stride of one of the last two is 1
  int64_t weight_group, weight_column, weight_inner;
  const void* bias;  // (columns), for all groups, or null
  void* out;         // (groups, rows, columns)
  int64_t out_group, out_row;
};

}  // namespace visionssm
