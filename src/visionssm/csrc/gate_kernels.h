// y * SiLU(z) * scale over the rows of a matrix, in the place of y, in one pass over memory.
#pragma once
#include "gate_arguments.h"
#include "vector_math.h"

namespace visionssm::VISIONSSM_TARGET {

template <class Format>
static void gate_row(const GateArguments& a, Format format, int64_t row) {
  constexpr int64_t bytes = Format::bytes;
  char* y = (char*)a.y + row * a.columns * bytes;
  const char* z = (const char*)a.z + row * a.z_stride * bytes;
  const floats scale = broadcast(float(*a.scale));
  each_vector(a.columns, [&](int64_t c, int64_t count) {
    const floats gate = silu(format.read(z + c * bytes, count));
    format.write(y + c * bytes, format.read(y + c * bytes, count) * gate * scale, count);
  });
}

void gate_silu(const GateArguments& a) {
#pragma omp parallel for num_threads(a.threads) schedule(static)
  for (int64_t row = 0; row < a.rows; row++)
    with_format<float>(a.dtype, [&](auto format) { gate_row(a, format, row); });
}

}  // namespace visionssm::VISIONSSM_TARGET
