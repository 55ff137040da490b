// What Python hands over for a depthwise convolution. Every field is 64 bits wide; ops/depthwise.py repeats their order.
//
// Legend: maps of H x W positions, K sets of taps, E channels.
#pragma once
#include <cstdint>

namespace visionssm {

enum class Activation : int64_t { kNone, kSilu, kGelu, kRelu };

struct DepthwiseArguments {
  int64_t batch, H, W, K, E;
  int64_t high, wide;  // taps of a set, as a grid
  int64_t top;         // rows of taps above the position
  Activation activation;
  int64_t threads;
  const int64_t* left;  // (K): columns of taps to the left of the position
  const void* x;        // (batch, H, W, E), the last dimension contiguous, strides in elements
  int64_t dtype, batch_stride, row_stride, column_stride;
  const void* taps;     // (K, E, high, wide), in any order in memory
  int64_t taps_dtype, taps_strides[4];
  const int64_t* flip;  // (K): whether the columns of taps are in reverse
  float* weight;        // room for the taps as (K, high * wide, E)
  const float* bias;    // (K, E) or null
  void* y;              // (batch, H, W, K, E), contiguous, of x's dtype
};

}  // namespace visionssm
