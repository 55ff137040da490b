// One vector register of floats or doubles, for whatever instruction set this file is compiled for.
//
// Arithmetic is that of GCC's and Clang's vector extension (a + b, a * b, -a); what it lacks is here as functions. The
// same source is compiled several times, each time into its own namespace VISIONSSM_TARGET.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "arguments.h"

#define INLINE static inline __attribute__((always_inline))

namespace visionssm::VISIONSSM_TARGET {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
// How many states of a channel the inner loop holds in registers at once.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kStatesAtOnce = 16;
#else
constexpr int kStatesAtOnce = 4;
#endif

typedef float floats __attribute__((vector_size(kVectorBytes)));
typedef double doubles __attribute__((vector_size(kVectorBytes)));
typedef uint32_t words __attribute__((vector_size(kVectorBytes)));
typedef uint16_t halves __attribute__((vector_size(kVectorBytes / 2)));

template <class T>
struct Simd;
template <>
struct Simd<float> {
  using Vector = floats;
  static constexpr int lanes = kVectorBytes / 4;
  static constexpr int64_t dtype = kFloat32;
};
template <>
struct Simd<double> {
  using Vector = doubles;
  static constexpr int lanes = kVectorBytes / 8;
  static constexpr int64_t dtype = kFloat64;
};
template <class T>
using Vector = typename Simd<T>::Vector;
template <class T>
constexpr int kLanes = Simd<T>::lanes;

template <class T>
INLINE Vector<T> broadcast(T value) {
  return value - Vector<T>{};
}

template <class T>
INLINE Vector<T> load(const T* source) {
  Vector<T> v;
  memcpy(&v, source, sizeof v);
  return v;
}

template <class T>
INLINE void store(T* target, Vector<T> v) {
  memcpy(target, &v, sizeof v);
}

// The first `count` lanes, of less than all; the others are zero, or left alone in memory.
#if defined(__AVX512F__)
INLINE floats load_some(const float* source, int64_t count) { return _mm512_maskz_loadu_ps((1u << count) - 1, source); }
INLINE void store_some(float* target, floats v, int64_t count) { _mm512_mask_storeu_ps(target, (1u << count) - 1, v); }
INLINE halves load_some(const uint16_t* source, int64_t count) {
  return (halves)_mm256_maskz_loadu_epi16((1u << count) - 1, source);
}
INLINE void store_some(uint16_t* target, halves v, int64_t count) {
  _mm256_mask_storeu_epi16(target, (1u << count) - 1, (__m256i)v);
}
#else
INLINE floats load_some(const float* source, int64_t count) {
  floats v = {};
  for (int64_t i = 0; i < count; i++) v[i] = source[i];
  return v;
}
INLINE void store_some(float* target, floats v, int64_t count) {
  for (int64_t i = 0; i < count; i++) target[i] = v[i];
}
INLINE halves load_some(const uint16_t* source, int64_t count) {
  halves v = {};
  for (int64_t i = 0; i < count; i++) v[i] = source[i];
  return v;
}
INLINE void store_some(uint16_t* target, halves v, int64_t count) {
  for (int64_t i = 0; i < count; i++) target[i] = v[i];
}
#endif
INLINE doubles load_some(const double* source, int64_t count) {
  doubles v = {};
  for (int64_t i = 0; i < count; i++) v[i] = source[i];
  return v;
}
INLINE void store_some(double* target, doubles v, int64_t count) {
  for (int64_t i = 0; i < count; i++) target[i] = v[i];
}

template <class T>
INLINE Vector<T> load_part(const T* source, int64_t count) {
  return count >= kLanes<T> ? load(source) : load_some(source, count);
}

template <class T>
INLINE void store_part(T* target, Vector<T> v, int64_t count) {
  if (count >= kLanes<T>) return store(target, v);
  store_some(target, v, count);
}

// The same pointer, with its origin hidden: so that the numbers behind it are addressed from one register, not from one
// each.
template <class T>
INLINE T* opaque(T* pointer) {
  asm("" : "+r"(pointer));
  return pointer;
}

// a * b + c, rounded once where the instruction set can; the larger and the smaller, NaN where b is NaN.
#if defined(__AVX512F__)
INLINE floats fma(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE doubles fma(doubles a, doubles b, doubles c) { return _mm512_fmadd_pd(a, b, c); }
INLINE floats max(floats a, floats b) { return _mm512_max_ps(a, b); }
INLINE floats min(floats a, floats b) { return _mm512_min_ps(a, b); }
INLINE float sum(floats v) { return _mm512_reduce_add_ps(v); }
#elif defined(__AVX2__)
INLINE floats fma(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
INLINE doubles fma(doubles a, doubles b, doubles c) { return _mm256_fmadd_pd(a, b, c); }
INLINE floats max(floats a, floats b) { return _mm256_max_ps(a, b); }
INLINE floats min(floats a, floats b) { return _mm256_min_ps(a, b); }
#elif defined(__aarch64__)
INLINE floats fma(floats a, floats b, floats c) {
  return (floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
INLINE doubles fma(doubles a, doubles b, doubles c) {
  return (doubles)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
INLINE floats max(floats a, floats b) { return (floats)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
INLINE floats min(floats a, floats b) { return (floats)vminq_f32((float32x4_t)a, (float32x4_t)b); }
#else
INLINE floats fma(floats a, floats b, floats c) { return a * b + c; }
INLINE doubles fma(doubles a, doubles b, doubles c) { return a * b + c; }
#if defined(__SSE2__)
INLINE floats max(floats a, floats b) { return _mm_max_ps(a, b); }
INLINE floats min(floats a, floats b) { return _mm_min_ps(a, b); }
#else
INLINE floats max(floats a, floats b) { return a > b ? a : b; }
INLINE floats min(floats a, floats b) { return a < b ? a : b; }
#endif
#endif

#if !defined(__AVX512F__)
INLINE float sum(floats v) {
  float part[kLanes<float>];
  store(part, v);
  for (int half = kLanes<float> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) part[i] += part[i + half];
  return part[0];
}
#endif

INLINE double sum(doubles v) {
  double total = 0;
  for (int i = 0; i < kLanes<double>; i++) total += v[i];
  return total;
}

// Between 16-bit and 32-bit integers.
#if defined(__AVX512F__)
INLINE words widen(halves v) { return (words)_mm512_cvtepu16_epi32((__m256i)v); }
INLINE halves narrow(words v) { return (halves)_mm512_cvtepi32_epi16((__m512i)v); }
#elif defined(__AVX2__)
INLINE words widen(halves v) { return (words)_mm256_cvtepu16_epi32((__m128i)v); }
INLINE halves narrow(words v) {
  const __m256i packed = _mm256_packus_epi32((__m256i)v, (__m256i)v);
  return (halves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
#else
INLINE words widen(halves v) { return __builtin_convertvector(v, words); }
INLINE halves narrow(words v) { return __builtin_convertvector(v, halves); }
#endif

// bfloat16 is the upper half of a float.
INLINE floats from_bfloat16(halves bits) { return (floats)(widen(bits) << 16); }

// Rounds to nearest, ties to even; NaN stays NaN.
#if defined(__AVX512BF16__)
INLINE halves to_bfloat16(floats v) { return (halves)_mm512_cvtneps_pbh(v); }
#else
INLINE halves to_bfloat16(floats v) {
  const words bits = (words)v;
  const words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return narrow((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}
#endif

#if defined(__AVX512F__)
INLINE floats from_float16(halves bits) { return _mm512_cvtph_ps((__m256i)bits); }
INLINE halves to_float16(floats v) { return (halves)_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#elif defined(__AVX2__)
INLINE floats from_float16(halves bits) { return _mm256_cvtph_ps((__m128i)bits); }
INLINE halves to_float16(floats v) { return (halves)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#elif defined(__aarch64__)
INLINE floats from_float16(halves bits) { return (floats)vcvt_f32_f16((float16x4_t)bits); }
INLINE halves to_float16(floats v) { return (halves)vcvt_f16_f32((float32x4_t)v); }
#else
// Multiplying by 2^112 moves a half's exponent, subnormals included, to where a float has it.
INLINE floats from_float16(halves bits) {
  const words wide = widen(bits);
  const words magnitude = (wide & 0x7fff) << 13;
  const words finite = (words)((floats)magnitude * 0x1p112f);
  const words special = magnitude | 0x7f800000;  // infinity or NaN
  return (floats)((magnitude >= 0x0f800000 ? special : finite) | ((wide & 0x8000) << 16));
}

INLINE halves to_float16(floats v) {
  const words bits = (words)v, magnitude = bits & 0x7fffffff;
  const words normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 leaves the bits of a subnormal half, rounded to even, at the bottom.
  const words subnormal = (words)((floats)magnitude + 0.5f) - 0x3f000000;
  words chosen = magnitude < 0x38800000 ? subnormal : normal;
  chosen = magnitude >= 0x477ff000 ? 0x7c00 - words{} : chosen;
  chosen = magnitude > 0x7f800000 ? 0x7e00 - words{} : chosen;
  return narrow(chosen | ((bits >> 16) & 0x8000));
}
#endif

// How numbers of each dtype become T, in which all sums are made, and go back. `count` may be less than a whole vector.
template <class T>
struct Native {
  static constexpr int64_t bytes = sizeof(T);
  INLINE Vector<T> read(const void* source, int64_t count) { return load_part((const T*)source, count); }
  INLINE void write(void* target, Vector<T> v, int64_t count) { store_part((T*)target, v, count); }
};

template <floats (*from)(halves), halves (*to)(floats)>
struct SixteenBit {
  static constexpr int64_t bytes = 2;
  INLINE floats read(const void* source, int64_t count) {
    halves bits;
    if (count < kLanes<float>) return from(load_some((const uint16_t*)source, count));
    memcpy(&bits, source, sizeof bits);
    return from(bits);
  }
  INLINE void write(void* target, floats v, int64_t count) {
    const halves bits = to(v);
    if (count < kLanes<float>) return store_some((uint16_t*)target, bits, count);
    memcpy(target, &bits, sizeof bits);
  }
};
using BFloat16 = SixteenBit<from_bfloat16, to_bfloat16>;
using Float16 = SixteenBit<from_float16, to_float16>;

// Calls run(format) with the format of a dtype.
template <class T, class Run>
INLINE void with_format(int64_t dtype, const Run& run) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == kBFloat16) return run(BFloat16());
    if (dtype == kFloat16) return run(Float16());
  }
  run(Native<T>());
}

// Calls run(c, count) for the vectors of a row; `count` is less than a whole vector for the last one.
template <class Run>
INLINE void each_vector(int64_t columns, const Run& run) {
  int64_t c = 0;
  for (; c + kLanes<float> <= columns; c += kLanes<float>) run(c, kLanes<float>);
  if (c < columns) run(c, columns - c);
}

// Rows of `count` numbers in another format.
template <class T, class Format>
INLINE void read_row(Format format, const char* source, int64_t count, T* target) {
  for (int64_t i = 0; i < count; i += kLanes<T>)
    store_part(target + i, format.read(source + i * Format::bytes, count - i), count - i);
}

template <class T, class Format>
INLINE void write_row(Format format, char* target, int64_t count, const T* source) {
  for (int64_t i = 0; i < count; i += kLanes<T>)
    format.write(target + i * Format::bytes, load_part(source + i, count - i), count - i);
}

}  // namespace visionssm::VISIONSSM_TARGET
