// What Python hands over for a LayerNorm. Every field is 64 bits wide; ops/norm.py repeats their order.
#pragma once
#include <cstdint>

namespace visionssm {

struct NormArguments {
  int64_t rows, columns, threads, dtype;
  const void* x;       // (rows, columns), like all below contiguous and of one dtype
  const void* weight;  // (columns) or null
  const void* bias;    // (columns) or null
  const double* eps;
  void* y;  // (rows, columns)
};

}  // namespace visionssm
