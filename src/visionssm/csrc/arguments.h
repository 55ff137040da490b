// What Python hands over: one struct per call. Every field is 64 bits wide, so that Python packs it with one
// struct.pack and no padding rule matters. The order of the fields is repeated in ops/native.py.
//
// Legend: batch, L positions, K paths, T steps, E channels, N states, R rank of dt (0: dt is dense).
#pragma once
#include <cstdint>

namespace visionssm {

enum DType : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3 };

enum Status : int64_t { kDone = 0, kBadPath = 1, kNoMemory = 2 };

// A (batch, L, K, channels) view whose last dimension is contiguous; strides count elements. `data` is null where
// absent.
struct Tensor {
  void* data;
  int64_t dtype;
  int64_t batch_stride;
  int64_t position_stride;
  int64_t path_stride;
};

struct Arguments {
  int64_t batch, L, K, E, N, T, R;
  int64_t softplus, zoh, merge, complete, x_per_path;
  int64_t threads;
  int64_t checkpoint_steps;
  int64_t log_A;  // A holds log(-A); forward only

  const int32_t* path;  // (K, T), rows path_stride apart
  int64_t path_stride;

  Tensor x, dt, B, C;
  // Contiguous; in the dtype of the state, which is float64 for float64 inputs and float32 otherwise, except dt_weight.
  const void* A;          // (K, E, N)
  const void* D;          // (K, E) or null
  const void* dt_bias;    // (K, E) or null
  const void* dt_weight;  // (K, E, R) or null
  int64_t dt_weight_dtype;
  const void* initial_state;  // (batch, K, E, N) or null
  void* checkpoints;          // (batch, K, ceil(T / checkpoint_steps), N, E) or null

  // Forward only.
  Tensor y;
  void* last_state;  // (batch, K, E, N)

  // Backward only. The gradients are contiguous and have the shapes of what they belong to.
  Tensor grad_y;
  const void* grad_last;  // (batch, K, E, N)
  Tensor grad_x, grad_dt, grad_B, grad_C;
  void* grad_A;
  void* grad_D;
  void* grad_dt_bias;
  void* grad_dt_weight;
  void* grad_initial_state;

  // Answers, with Status kBadPath: path[bad_k, bad_t] = bad_position.
  int64_t bad_k, bad_t, bad_position;
};

}  // namespace visionssm
