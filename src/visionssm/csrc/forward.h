// The forward scan.
//
// One task walks one block of channels of one image along all paths, one after the other, and adds their outputs up in
// the map itself; so every sum has a fixed order, however many threads there are. Where there are too few tasks for the
// threads, the paths become tasks of their own, with a map each, and the maps are added in the same order afterwards.
#pragma once
#include "memory.h"
#include "path_sum.h"
#include "tile.h"

namespace visionssm::VISIONSSM_TARGET {

constexpr int kForwardSteps = 16;
constexpr int64_t kWidestBlock = 512, kNarrowestBlock = 96;

template <class T>
struct ForwardScratch {
  T *delta, *out, *x, *dt, *B, *C, *zeros, *state, *map;

  ForwardScratch(Arena& arena, const Arguments& a, int64_t padded, bool keeps_map) {
    const int64_t columns = larger(padded, larger(a.N, a.R));
    delta = arena.take<T>(kForwardSteps * padded);
    out = arena.take<T>((kForwardSteps + kAhead) * padded);
    x = arena.take<T>(kForwardSteps * padded);
    dt = arena.take<T>(kForwardSteps * larger(padded, a.R));
    B = arena.take<T>(kForwardSteps * a.N);
    C = arena.take<T>(kForwardSteps * a.N);
    zeros = arena.take<T>(columns);
    state = arena.take<T>(padded * a.N);
    map = keeps_map ? arena.take<T>(a.L * padded) : nullptr;
    if (zeros) memset(zeros, 0, columns * sizeof(T));
  }
};

// The recurrence over one tile for kVectors vectors of channels, from place v of the block on, and kStates of their
// states, from n on, all of which stay in registers. The first states of a channel start its output with D x, the
// others add to it. With `add`, which takes all states at once, what earlier paths left is added at the end.
template <class T, int kVectors, int kStates, bool kZoh>
INLINE void advance(
    const Tile<T, kForwardSteps>& tile, const ForwardScratch<T>& scratch, const Parameters<T>& parameters, int64_t k,
    const Block<T>& block, int64_t v, int64_t n, bool add) {
  constexpr int W = kLanes<T>;
  using V = Vector<T>;
  const int64_t N = parameters.N, stride = parameters.rows() * W, padded = block.padded, at = v * W;
  const T* D = parameters.D(k, block.first_vector + v);
  const T* A = parameters.A(k, block.first_vector + v) + n * W;
  T* state = scratch.state + (v * N + n) * W;
  V h[kVectors][kStates], scaled_A[kVectors][kStates], inverse_A[kVectors][kStates], skip[kVectors];
  for (int j = 0; j < kVectors; j++) {
    skip[j] = load(D + j * stride);
    for (int i = 0; i < kStates; i++) {
      h[j][i] = load(state + (j * N + i) * W);
      scaled_A[j][i] = load(A + j * stride + i * W);
      if constexpr (kZoh) inverse_A[j][i] = kExponentScale<T> / scaled_A[j][i];
    }
  }
  const T* delta = scratch.delta + at;
  const int64_t steps = tile.steps;
  const bool far = tile.far;
  for (int64_t s = 0; s < steps; s++, delta += padded) {
    const T* B = opaque(tile.B[s] + n);
    const T* C = opaque(tile.C[s] + n);
    const T* x_row = tile.x[s] + at;
    T* out_row = tile.out[s] + at;
    for (int j = 0; j < kVectors; j++) {
      if (far) {
        __builtin_prefetch(tile.x[s + kAhead] + at + j * W);
        __builtin_prefetch(tile.out[s + kAhead] + at + j * W, 1);
      }
      const V step = load(delta + j * W), x = load(x_row + j * W), drive = kZoh ? x : step * x;
      T* out = out_row + j * W;
      V y = n == 0 ? skip[j] * x : load(out);
#pragma GCC unroll 16
      for (int i = 0; i < kStates; i++) {
        const V b = broadcast(B[i]) * drive;
        if constexpr (kZoh) {
          const Decay<V> e = decay_and_excess(step, scaled_A[j][i]);
          h[j][i] = fma(e.factor, h[j][i], e.minus_one * inverse_A[j][i] * b);
        } else {
          h[j][i] = fma(decay(step, scaled_A[j][i]), h[j][i], b);
        }
        y = fma(broadcast(C[i]), h[j][i], y);
      }
      store(out, add ? load(out) + y : y);
    }
  }
  for (int j = 0; j < kVectors; j++)
    for (int i = 0; i < kStates; i++) store(state + (j * N + i) * W, h[j][i]);
}

// kStates at a time for as long as there are so many, then half of that.
template <class T, int kStates, bool kZoh>
INLINE void advance_states(
    const Tile<T, kForwardSteps>& tile, const ForwardScratch<T>& scratch, const Parameters<T>& parameters, int64_t k,
    const Block<T>& block, int64_t v, int64_t n, bool add) {
  for (; n + kStates <= parameters.N; n += kStates)
    advance<T, 1, kStates, kZoh>(tile, scratch, parameters, k, block, v, n, add);
  if constexpr (kStates > 1) advance_states<T, kStates / 2, kZoh>(tile, scratch, parameters, k, block, v, n, add);
}

// A single state per channel: kVectors vectors at a time, then half of that.
template <class T, int kVectors, bool kZoh>
INLINE void advance_vectors(
    const Tile<T, kForwardSteps>& tile, const ForwardScratch<T>& scratch, const Parameters<T>& parameters, int64_t k,
    const Block<T>& block, int64_t v, bool add) {
  for (; v + kVectors <= block.vectors; v += kVectors)
    advance<T, kVectors, 1, kZoh>(tile, scratch, parameters, k, block, v, 0, add);
  if constexpr (kVectors > 1) advance_vectors<T, kVectors / 2, kZoh>(tile, scratch, parameters, k, block, v, add);
}

template <class T, bool kZoh>
static void advance_all(
    const Tile<T, kForwardSteps>& tile, const ForwardScratch<T>& scratch, const Parameters<T>& parameters, int64_t k,
    const Block<T>& block, bool add) {
  if (parameters.N == 1) return advance_vectors<T, 4, kZoh>(tile, scratch, parameters, k, block, 0, add);
  for (int64_t v = 0; v < block.vectors; v++)
    advance_states<T, kStatesAtOnce, kZoh>(tile, scratch, parameters, k, block, v, 0, add);
}

template <class T>
static void load_state(const Arguments& a, int64_t b, int64_t k, const Block<T>& block, T* state) {
  constexpr int W = kLanes<T>;
  if (!a.initial_state) {
    memset(state, 0, block.padded * a.N * sizeof(T));
    return;
  }
  for (int64_t v = 0; v < block.vectors; v++) {
    const T* source = (const T*)a.initial_state + ((b * a.K + k) * a.E + block.first + v * W) * a.N;
    transpose_in(source, a.N, smaller(W, block.width - v * W), state + v * a.N * W);
  }
}

template <class T>
static void save_state(const Arguments& a, int64_t b, int64_t k, const Block<T>& block, const T* state, T* target) {
  constexpr int W = kLanes<T>;
  for (int64_t v = 0; v < block.vectors; v++)
    transpose_out(
        state + v * a.N * W, a.N, smaller(W, block.width - v * W),
        target + ((b * a.K + k) * a.E + block.first + v * W) * a.N);
}

template <class T>
static void keep_state(const Arguments& a, int64_t b, int64_t k, int64_t t, const Block<T>& block, const T* state) {
  constexpr int W = kLanes<T>;
  T* target = checkpoint<T>(a, b, k, t, block.first);
  for (int64_t v = 0; v < block.vectors; v++)
    for (int64_t n = 0; n < a.N; n++)
      store_part(target + n * a.E + v * W, load(state + (v * a.N + n) * W), smaller(W, block.width - v * W));
}

// One path of one image for one block of channels. The outputs go to `target` if it is given, else into `sums`; with
// `add` what is in `sums` is added first.
template <class T>
static void forward_path(
    const Arguments& a, const Parameters<T>& parameters, int64_t b, int64_t k, const Block<T>& block,
    const SumMap<T>& sums, bool add, const Tensor* target, const ForwardScratch<T>& scratch) {
  const int64_t padded = block.padded;
  const int32_t* path = a.path + k * a.path_stride;
  // Where a row's states fit into the registers, and it is neither cut nor converted, it is finished where it ends up.
  T* result = target ? (T*)address(*target, b, 0, k, block.first) : sums.data;
  const int64_t result_stride = target ? target->position_stride : sums.stride;
  const bool native = !target || (target->dtype == Simd<T>::dtype && (!add || result == sums.data));
  const bool in_place = native && block.width == padded && a.N <= kStatesAtOnce && (a.N & (a.N - 1)) == 0;
  Tile<T, kForwardSteps> tile;
  tile.far = a.L * block.width * int64_t(sizeof(T)) > kSecondLevelCache / 2;
  load_state(a, b, k, block, scratch.state);
  for (int64_t t = 0; t < a.T; t += kForwardSteps) {
    tile.walk(path, a.T, t, smaller(kForwardSteps, a.T - t), t + kForwardSteps);
    if (a.checkpoints && t % a.checkpoint_steps == 0) keep_state(a, b, k, t, block, scratch.state);
    fetch(tile, a.x, b, k, block.first, block.width, padded, scratch.zeros, scratch.x, tile.x);
    fetch_shared(tile, a.B, b, k, a.N, scratch.zeros, scratch.B, tile.B);
    fetch_shared(tile, a.C, b, k, a.N, scratch.zeros, scratch.C, tile.C);
    if (a.R)
      fetch_shared(tile, a.dt, b, k, a.R, scratch.zeros, scratch.dt, tile.dt);
    else
      fetch(tile, a.dt, b, k, block.first, block.width, padded, scratch.zeros, scratch.dt, tile.dt);
    for (int64_t s = 0; s < tile.rows; s++) {
      const bool written = in_place && tile.position[s] >= 0;
      tile.out[s] = written ? result + tile.source[s] * result_stride : scratch.out + s * padded;
    }
    step_sizes(a, tile, parameters, k, block, 0, tile.steps, scratch.delta);
    if (a.zoh)
      advance_all<T, true>(tile, scratch, parameters, k, block, in_place && add);
    else
      advance_all<T, false>(tile, scratch, parameters, k, block, in_place && add);
    if (!in_place) finish_rows(tile, scratch.out, block, sums, add, target, b, k);
  }
  save_state(a, b, k, block, scratch.state, (T*)a.last_state);
}

// All paths of one image for one block of channels, one after the other.
template <class T>
static void forward_block(
    const Arguments& a, const Parameters<T>& parameters, int64_t b, const Block<T>& block,
    const ForwardScratch<T>& scratch) {
  walk_paths(
      a, a.y, !a.merge, b, block, scratch.map, [&](int64_t k, const SumMap<T>& sums, bool add, const Tensor* target) {
        forward_path(a, parameters, b, k, block, sums, add, target, scratch);
      });
}

// How the channels are cut into blocks, and whether paths are tasks of their own.
struct Plan {
  int64_t blocks, threads;
  bool apart;
};

template <class T>
static Plan forward_plan(const Arguments& a) {
  const int64_t vectors = divide_up(a.E, kLanes<T>);
  // Inputs and sums of a block that several paths walk over should stay in the cache from one path to the next.
  int64_t widest = kWidestBlock;
  if (a.K > 1 && !a.x_per_path)
    widest = larger(kNarrowestBlock, smaller(widest, kSecondLevelCache / (2 * a.L * int64_t(sizeof(T)))));
  const double states_of_work = double(a.batch) * a.K * a.T * a.E * (a.N + 2);
  Plan best = {1, useful_threads(a.threads, states_of_work / 20000), false};
  double least = 1e300;
  for (int64_t blocks = divide_up(vectors, larger(1, widest / kLanes<T>)); blocks <= vectors; blocks++) {
    const double width = divide_up(vectors, blocks) + 0.5;
    const double together = divide_up(a.batch * blocks, best.threads) * width * a.K;
    const double apart =
        divide_up(a.batch * blocks * a.K, best.threads) * width + 0.3 * a.K * a.batch * vectors / best.threads;
    if (together < least) least = together, best = {blocks, best.threads, false};
    if (a.K > 1 && apart < least) least = apart, best = {blocks, best.threads, true};
  }
  return best;
}

template <class T>
static Status forward(const Arguments& a) {
  const Plan plan = forward_plan<T>(a);
  const int64_t padded = divide_up(divide_up(a.E, kLanes<T>), plan.blocks) * kLanes<T>;
  const bool own_maps = plan.apart && a.merge;
  const bool shared_rows = plan.blocks > 1 && plan.threads > 1;
  const bool keeps_map = !plan.apart && needs_map<T>(a, a.y, !a.merge, shared_rows);
  Arena measure;
  ForwardScratch<T>(measure, a, padded, keeps_map);
  const int64_t per_thread = measure.used;
  measure.take<T>(Parameters<T>::size(a));
  measure.take<T>(own_maps ? a.K * a.batch * a.L * a.E : 0);
  Memory memory(measure.used + (plan.threads - 1) * per_thread);
  if (!memory.data) return kNoMemory;
  Arena shared(memory.data + plan.threads * per_thread);
  const Parameters<T> parameters = {shared.take<T>(Parameters<T>::size(a)), divide_up(a.E, kLanes<T>), a.N, a.R};
  T* maps = own_maps ? shared.take<T>(a.K * a.batch * a.L * a.E) : nullptr;

#pragma omp parallel num_threads(plan.threads)
  {
    Arena arena(memory.data + thread_number() * per_thread);
    const ForwardScratch<T> scratch(arena, a, padded, keeps_map);
    const auto pack = [&](int64_t k, int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; v++) pack_parameters(a, parameters, k, v, scratch.dt);
    };
    // With one image every task packs what it needs; several share it, and have to wait for each other.
    const bool alone = a.batch == 1;
    if (!alone) {
#pragma omp for collapse(2) schedule(static)
      for (int64_t k = 0; k < a.K; k++)
        for (int64_t v = 0; v < parameters.vectors; v++) pack(k, v, v + 1);
    }
    if (!plan.apart) {
#pragma omp for collapse(2) schedule(dynamic) nowait
      for (int64_t b = 0; b < a.batch; b++)
        for (int64_t i = 0; i < plan.blocks; i++) {
          const Block<T> block = Block<T>::of(i, plan.blocks, a.E);
          for (int64_t k = 0; k < (alone ? a.K : 0); k++)
            pack(k, block.first_vector, block.first_vector + block.vectors);
          forward_block(a, parameters, b, block, scratch);
        }
    } else {
#pragma omp for collapse(3) schedule(dynamic)
      for (int64_t b = 0; b < a.batch; b++)
        for (int64_t i = 0; i < plan.blocks; i++)
          for (int64_t k = 0; k < a.K; k++) {
            const Block<T> block = Block<T>::of(i, plan.blocks, a.E);
            if (alone) pack(k, block.first_vector, block.first_vector + block.vectors);
            if (!a.merge) {
              forward_path(a, parameters, b, k, block, {}, false, &a.y, scratch);
              continue;
            }
            forward_path(a, parameters, b, k, block, own_map(a, maps, b, k, block), false, nullptr, scratch);
          }
#pragma omp for collapse(2) schedule(static)
      for (int64_t b = 0; b < (a.merge ? a.batch : 0); b++)
        for (int64_t p = 0; p < a.L; p++) merge_position<T>(a, maps, a.y, b, p);
    }
  }
  return kDone;
}

}  // namespace visionssm::VISIONSSM_TARGET
