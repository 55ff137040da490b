// What Python hands over for norms. Every field is 64 bits wide; ops/norm.py repeats their order.
#pragma once
#include <cstdint>

namespace visionssm {

// y = LayerNorm(x), or where there is an addend total = x + addend, y = LayerNorm(total).
struct NormArguments {
  int64_t rows, columns, threads, dtype, sets;
  const void* x;       // (rows, columns), like all below contiguous and of one dtype
  const void* addend;  // (rows, columns) or null
  const void* weight;  // (sets, columns) or null; rows take turns with the sets
  const void* bias;    // (sets, columns) or null
  const double* eps;
  void* total;  // (rows, columns) or null
  void* y;      // (rows, columns)
};

// total = residual + x, y = RMSNorm(total).
struct RmsNormArguments {
  int64_t rows, columns, threads, dtype;
  const void* x;          // (rows, columns), like all below contiguous; of one dtype with the weight and y
  const float* residual;  // (rows, columns) or null
  const void* weight;     // (columns)
  const double* eps;
  float* total;  // (rows, columns)
  void* y;       // (rows, columns)
};

}  // namespace visionssm
