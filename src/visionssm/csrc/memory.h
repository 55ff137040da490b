// Scratch memory: one allocation per call, handed out piece by piece.
#pragma once
#include <cstdint>
#include <cstdlib>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace visionssm::VISIONSSM_TARGET {

struct Memory {
  char* data;
  explicit Memory(int64_t bytes) : data((char*)aligned_alloc(64, bytes + 64)) {}
  ~Memory() { free(data); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
};

// Hands out 64-byte aligned pieces of a block of memory; without a block it only counts what would be used.
struct Arena {
  char* start = nullptr;
  int64_t used = 0;
  Arena() = default;
  explicit Arena(char* start) : start(start) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = start ? (T*)(start + used) : nullptr;
    used += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return piece;
  }
};

static inline int thread_number() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

}  // namespace visionssm::VISIONSSM_TARGET
