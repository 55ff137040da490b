// What Python hands over for the passes over the hidden activations of an MLP. Every field is 64 bits wide; ops/native.py
// repeats their order.
#pragma once
#include <cstdint>

namespace visionssm {

// hidden = GELU(x + bias); with `keep` x + bias takes the place of x, which otherwise may be `hidden` itself.
struct GeluArguments {
  int64_t rows, columns, threads, dtype;
  void* x;           // (rows, columns), like all below contiguous and of one dtype
  const void* bias;  // (columns) or null
  int64_t keep;
  void* hidden;  // (rows, columns)
};

// What follows from x in backward: GELU(x), and the gradient by x in the place of the one by GELU(x).
struct GeluBackwardArguments {
  int64_t rows, columns, threads, dtype;
  const void* x;   // (rows, columns), like all below contiguous and of one dtype
  void* gradient;  // (rows, columns)
  void* hidden;    // (rows, columns)
};

}  // namespace visionssm
