// What Python hands over for a gate. Every field is 64 bits wide; ops/gate.py repeats their order.
#pragma once
#include <cstdint>

namespace visionssm {

struct GateArguments {
  int64_t rows, columns, threads, dtype;
  void* y;        // (rows, columns), contiguous
  const void* z;  // the same, with rows z_stride numbers apart
  int64_t z_stride;
  const double* scale;
};

}  // namespace visionssm
