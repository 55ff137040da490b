// Summing what the paths of one image write to the same map, always in the order of the paths.
#pragma once
#include "tile.h"

namespace visionssm::VISIONSSM_TARGET {

// A map of sums over the paths, for one block of channels: rows of T, `stride` numbers apart.
struct Yes {
  constexpr operator bool() const { return true; }
};
struct No {
  constexpr operator bool() const { return false; }
};

template <class T>
struct SumMap {
  T* data;
  int64_t stride;
};

// Adds rows, `padded` apart, to what earlier paths left in `sums`, and writes them to `target` if that is given, else
// to `sums`.
template <class T, int kSteps>
INLINE void finish_rows(
    const Tile<T, kSteps>& tile, const T* rows, const Block<T>& block, const SumMap<T>& sums, bool add,
    const Tensor* target, int64_t b, int64_t k) {
  constexpr int W = kLanes<T>;
  const int64_t padded = block.padded, width = block.width, steps = tile.steps;
  const auto finish = [&](auto format, char* out, int64_t stride, auto adds) {
    for (int64_t s = 0; s < steps; s++) {
      const int64_t p = tile.position[s];
      if (p < 0) continue;
      const T* row = rows + s * padded;
      const T* before = sums.data + p * sums.stride;
      char* result = out + p * stride;
      for (int64_t i = 0; i < width; i += W) {
        Vector<T> value = load(row + i);
        if constexpr (adds) value = load_part(before + i, width - i) + value;
        format.write(result + i * format.bytes, value, width - i);
      }
    }
  };
  const auto run = [&](auto format, char* out, int64_t stride) {
    if (add)
      finish(format, out, stride, Yes());
    else
      finish(format, out, stride, No());
  };
  if (!target) return run(Native<T>(), (char*)sums.data, sums.stride * int64_t(sizeof(T)));
  with_format<T>(target->dtype, [&](auto format) {
    run(format, address(*target, b, 0, k, block.first), target->position_stride * format.bytes);
  });
}

// Whether a task that walks all paths needs a map of its own to sum in: where the result is of another type than the
// sums, or its rows are shared with tasks of other threads, which would pull each other's lines out of the caches.
template <class T>
static bool needs_map(const Arguments& a, const Tensor& result, bool per_path, bool shared) {
  return !per_path && !(a.K == 1 && a.complete) && (shared || result.dtype != Simd<T>::dtype);
}

// Calls walk(k, sums, add, target) for every path such that `result` becomes the sum of what they write, made in `map`
// if there is one, or holds each path's own output where it has one map per path.
template <class T, class Walk>
INLINE void walk_paths(
    const Arguments& a, const Tensor& result, bool per_path, int64_t b, const Block<T>& block, T* map,
    const Walk& walk) {
  if (per_path || (a.K == 1 && a.complete)) {
    for (int64_t k = 0; k < a.K; k++) walk(k, SumMap<T>{}, false, &result);
    return;
  }
  const bool in_place = !map;
  SumMap<T> sums = {map, block.padded};
  if (in_place) sums = {(T*)address(result, b, 0, 0, block.first), result.position_stride};
  if (!in_place && !a.complete) memset(sums.data, 0, a.L * sums.stride * sizeof(T));
  for (int64_t k = 0; k < a.K; k++) {
    const bool last = a.complete && k == a.K - 1;
    walk(k, sums, !a.complete || k > 0, last ? &result : nullptr);
  }
  if (in_place || a.complete) return;
  with_format<T>(result.dtype, [&](auto format) {
    for (int64_t p = 0; p < a.L; p++)
      write_row(format, address(result, b, p, 0, block.first), block.width, sums.data + p * sums.stride);
  });
}

// Where paths are tasks of their own: one map per path, (K, batch, L, E).
template <class T>
static SumMap<T> own_map(const Arguments& a, T* maps, int64_t b, int64_t k, const Block<T>& block) {
  T* map = maps + (k * a.batch + b) * a.L * a.E + block.first;
  if (!a.complete)
    for (int64_t p = 0; p < a.L; p++) memset(map + p * a.E, 0, block.width * sizeof(T));
  return {map, a.E};
}

// Adds those maps up at one position.
template <class T>
static void merge_position(const Arguments& a, const T* maps, const Tensor& target, int64_t b, int64_t p) {
  constexpr int W = kLanes<T>;
  char* out = address(target, b, p, 0, 0);
  for (int64_t e = 0; e < a.E; e += W) {
    const int64_t lanes = smaller(W, a.E - e);
    const T* source = maps + (b * a.L + p) * a.E + e;
    Vector<T> value = load_part(source, lanes);
    if (!a.complete) value = Vector<T>{} + value;
    for (int64_t k = 1; k < a.K; k++) value = value + load_part(source + k * a.batch * a.L * a.E, lanes);
    with_format<T>(target.dtype, [&](auto format) { format.write(out + e * format.bytes, value, lanes); });
  }
}

}  // namespace visionssm::VISIONSSM_TARGET
