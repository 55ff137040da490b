// exp, softplus and what follows from them, on vectors.
//
// Floats use polynomials. 2^t = 2^n (1 + r q(r)) with n the integer nearest to t: written so, an exponential close to 1
// has an error that shrinks with its distance from 1, and a state that decays slowly over many steps stays accurate.
// Doubles call the C library, lane by lane.
#pragma once
#include <math.h>

#include <type_traits>

#include "simd.h"

namespace visionssm::VISIONSSM_TARGET {

// Decays take A already multiplied by this, so that floats need only a power of two.
template <class T>
constexpr T kExponentScale = 1;
template <>
constexpr float kExponentScale<float> = 1.44269504088896341f;

// (2^r - 1) / r on [-1/2, 1/2].
INLINE floats power_slope(floats r) {
  floats q = broadcast(0.001340043731033802f);
  q = fma(q, r, broadcast(0.009666373953223228f));
  q = fma(q, r, broadcast(0.05550333112478256f));
  q = fma(q, r, broadcast(0.2402234822511673f));
  return fma(q, r, broadcast(0.6931471824645996f));
}

// The same to 1e-4 of the power, in fewer steps.
INLINE floats rough_power_slope(floats r) {
  floats q = broadcast(0.05500892922282219f);
  q = fma(q, r, broadcast(0.2422109693288803f));
  return fma(q, r, broadcast(0.6932829022407532f));
}

// 2^(a b) = scale + scale * excess.
struct Power {
  floats scale, excess;
};

#if defined(__AVX512F__)
INLINE floats nearest_integer(floats t) {
  return _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

template <floats (*slope)(floats) = power_slope>
INLINE floats power_of_two(floats a, floats b) {
  const floats t = a * b, n = nearest_integer(t), r = t - n;
  return _mm512_scalef_ps(fma(slope(r), r, broadcast(1.0f)), n);
}

INLINE Power split_power_of_two(floats a, floats b) {
  const floats t = a * b, n = nearest_integer(t), r = t - n;
  return {_mm512_scalef_ps(broadcast(1.0f), n), power_slope(r) * r};
}
#else
// Adding 1.5 * 2^23 leaves the nearest integer in the lowest bits, and from there it goes into a float's exponent: 0
// from 2^-127 down, infinity from 2^128 up.
template <floats (*slope)(floats) = power_slope>
INLINE Power split_power_of_two(floats a, floats b) {
  constexpr float rounder = 12582912.0f;
  const floats t = min(broadcast(128.0f), max(broadcast(-127.0f), a * b));
  const floats rounded = t + rounder;
  const floats r = t - (rounded - rounder);
  return {(floats)(((words)rounded << 23) + 0x3f800000), slope(r) * r};
}

template <floats (*slope)(floats) = power_slope>
INLINE floats power_of_two(floats a, floats b) {
  const Power power = split_power_of_two<slope>(a, b);
  return fma(power.scale, power.excess, power.scale);
}
#endif

template <class V>
struct Decay {
  V factor;     // exp(delta A)
  V minus_one;  // exp(delta A) - 1, without cancellation
};

// exp(delta A), from delta and A * kExponentScale.
INLINE floats decay(floats delta, floats scaled_A) { return power_of_two(delta, scaled_A); }

INLINE floats exponential(floats v) { return power_of_two(v, broadcast(kExponentScale<float>)); }

INLINE Decay<floats> decay_and_excess(floats delta, floats scaled_A) {
  const Power power = split_power_of_two(delta, scaled_A);
  return {fma(power.scale, power.excess, power.scale), fma(power.scale, power.excess, power.scale - 1.0f)};
}

INLINE floats absolute(floats v) { return (floats)((words)v & 0x7fffffff); }

// max(z, 0) + log1p(exp(-|z|)), accurate for very negative z too.
INLINE floats softplus(floats z) {
  const floats e = power_of_two(absolute(z), broadcast(-kExponentScale<float>));
  floats p = broadcast(0.005232624243944883f);
  p = fma(p, e, broadcast(-0.029504956677556038f));
  p = fma(p, e, broadcast(0.07822549343109131f));
  p = fma(p, e, broadcast(-0.1366320699453354f));
  p = fma(p, e, broadcast(0.1910598874092102f));
  p = fma(p, e, broadcast(-0.2484297752380371f));
  p = fma(p, e, broadcast(0.3331909477710724f));
  p = fma(p, e, broadcast(-0.4999949336051941f));
  p = fma(p, e, broadcast(0.9999999403953552f));
  return fma(p, e, max(floats{}, z));
}

// z / (1 + exp(-z)).
INLINE floats silu(floats z) { return z / (power_of_two(z, broadcast(-kExponentScale<float>)) + 1.0f); }

// log2 of the normal distribution's Phi(-a), for a from 0 on; from 5.5 on, where Phi is below 2^-25, only roughly. Even and
// odd powers apart, which halves the chain of operations that wait for each other.
INLINE floats log2_of_tail(floats a) {
  const floats square = a * a;
  floats even = broadcast(-2.3148379213466797e-08f), odd = broadcast(7.04617207247793e-07f);
  even = fma(even, square, broadcast(-9.225429494108539e-06f));
  odd = fma(odd, square, broadcast(6.58175049466081e-05f));
  even = fma(even, square, broadcast(-0.00024146429495885968f));
  odd = fma(odd, square, broadcast(-8.211690874304622e-05f));
  even = fma(even, square, broadcast(0.007050208747386932f));
  odd = fma(odd, square, broadcast(-0.05251263827085495f));
  even = fma(even, square, broadcast(-0.4591970145702362f));
  odd = fma(odd, square, broadcast(-1.1511070728302002f));
  return fma(odd, a, fma(even, square, broadcast(-1.0f)));
}

// The same to 5e-5, in fewer steps.
INLINE floats rough_log2_of_tail(floats a) {
  const floats square = a * a;
  floats even = broadcast(0.005507790017873049f), odd = broadcast(-0.0002828983124345541f);
  even = fma(even, square, broadcast(-0.46474573016166687f));
  odd = fma(odd, square, broadcast(-0.04741450771689415f));
  even = fma(even, square, broadcast(-1.000097393989563f));
  odd = fma(odd, square, broadcast(-1.149174451828003f));
  return fma(odd, a, even);
}

// Phi(-|x|), from |x|. For results that are rounded to bfloat16 shorter polynomials are enough.
template <class Format>
INLINE floats tail(Format, floats a) {
  if constexpr (std::is_same_v<Format, BFloat16>)
    return power_of_two<rough_power_slope>(rough_log2_of_tail(a), broadcast(1.0f));
  else
    return power_of_two(log2_of_tail(a), broadcast(1.0f));
}

// From here on Phi(-|x|) is 0.
constexpr float kNoTail = 16.0f;

// x Phi(x) = max(x, 0) - |x| Phi(-|x|), which loses no digits where x is very negative.
template <class Format>
INLINE floats gelu(Format format, floats x) {
  const floats a = min(broadcast(kNoTail), absolute(x));
  return max(floats{}, x) - a * tail(format, a);
}

struct Gelu {
  floats value, slope;  // x Phi(x), and Phi(x) + x Phi'(x)
};

template <class Format>
INLINE Gelu gelu_and_slope(Format format, floats x) {
  const floats a = min(broadcast(kNoTail), absolute(x)), t = tail(format, a);
  const floats density = 0.3989422804014327f * power_of_two(a * a, broadcast(-0.5f * kExponentScale<float>));
  const floats below = fma(-a, density, t);  // the slope at -a; at a it is 1 minus that
  return {max(floats{}, x) - a * t, x > 0.0f ? 1.0f - below : below};
}

// The derivative of softplus, from its value: 1 - exp(-delta).
INLINE floats softplus_slope(floats delta) {
  return -decay_and_excess(delta, broadcast(-kExponentScale<float>)).minus_one;
}

template <double (*function)(double)>
INLINE doubles each(doubles v) {
  for (int i = 0; i < kLanes<double>; i++) v[i] = function(v[i]);
  return v;
}

INLINE doubles exponential(doubles v) { return each<::exp>(v); }

INLINE doubles decay(doubles delta, doubles A) { return each<::exp>(delta * A); }

INLINE Decay<doubles> decay_and_excess(doubles delta, doubles A) {
  return {each<::exp>(delta * A), each<::expm1>(delta * A)};
}

INLINE double softplus_lane(double z) { return z > 20 ? z : (z > 0 ? z : 0) + ::log1p(::exp(z > 0 ? -z : z)); }

INLINE double softplus_slope_lane(double delta) { return delta > 20 ? 1 : -::expm1(-delta); }

INLINE doubles softplus(doubles z) { return each<softplus_lane>(z); }

INLINE doubles softplus_slope(doubles delta) { return each<softplus_slope_lane>(delta); }

// (exp(z) - (exp(z) - 1) / z) / z, which is what d/dA (exp(delta A) - 1) / A is over delta^2; a series near 0.
template <class T, class V>
INLINE V zoh_slope(V z, Decay<V> e) {
  const V threshold = broadcast<T>(sizeof(T) == sizeof(float) ? 0.5 : 1e-2);
  constexpr double coefficients[] = {1.0 / 5760, 1.0 / 840, 1.0 / 144, 1.0 / 30, 1.0 / 8, 1.0 / 3, 1.0 / 2};
  V series = broadcast<T>(1.0 / 45360);
  for (double coefficient : coefficients) series = fma(series, z, broadcast<T>(coefficient));
  const V away = (e.factor - e.minus_one / z) / z;
  return ((z < threshold) & (z > -threshold)) ? series : away;
}

}  // namespace visionssm::VISIONSSM_TARGET
