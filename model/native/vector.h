// Vectors of 16 numbers: one register of AVX-512, two or four where registers are smaller.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>
#define SLIPWAY_PAIRS 1  // the processor multiplies pairs of bf16
#endif

namespace slipway {

typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef uint32_t bits __attribute__((vector_size(64)));
typedef uint16_t shorts __attribute__((vector_size(32)));

constexpr int LANES = 16;

struct bf16 {
  uint16_t raw;
};

inline floats fill(float x) { return x - floats{}; }

inline ints lane_numbers() { return ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

inline floats load(const float* from) {
  floats v;
  memcpy(&v, from, sizeof v);
  return v;
}

inline floats load(const bf16* from) {
#ifdef SLIPWAY_PAIRS
  return (floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#endif
  shorts v;
  memcpy(&v, from, sizeof v);
  return (floats)(__builtin_convertvector(v, bits) << 16);
}

inline void store(float* to, floats v) { memcpy(to, &v, sizeof v); }

// Rounds to the nearest, to even between two; what is no number stays so.
inline shorts rounded(floats v) {
#ifdef SLIPWAY_PAIRS
  return (shorts)_mm512_cvtneps_pbh((__m512)v);
#else
  bits raw = (bits)v;
  bits up = (raw + 0x7fff + ((raw >> 16) & 1)) >> 16;
  return __builtin_convertvector(v == v ? up : bits{} + 0x7fc0, shorts);
#endif
}

inline void store(bf16* to, floats v) {
  shorts v16 = rounded(v);
  memcpy(to, &v16, sizeof v16);
}

inline float widened(float x) { return x; }

inline float widened(bf16 x) {
  uint32_t raw = (uint32_t)x.raw << 16;
  float wide;
  memcpy(&wide, &raw, sizeof wide);
  return wide;
}

inline void put(float* to, float x) { *to = x; }

inline void put(bf16* to, float x) {
  floats v = fill(x);
  shorts v16 = rounded(v);
  to->raw = v16[0];
}

inline floats largest(floats a, floats b) { return a > b ? a : b; }

inline float sum(floats v) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += v[i];
  return total;
}

inline float largest(floats v) {
  float found = v[0];
  for (int i = 1; i < LANES; i++) found = v[i] > found ? v[i] : found;
  return found;
}

// e^x within 2 units in the last place, for x up to 88; below -87 as there. A polynomial on [-ln 2 / 2, ln 2 / 2], with
// the coefficients of Cephes (Moshier 1989).
inline floats exponential(floats x) {
  x = x > 88.0f ? fill(88.0f) : x;
  x = x < -87.0f ? fill(-87.0f) : x;
  const float shift = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to whole numbers
  floats power = (x * 1.44269504f + shift) - shift;
  floats r = x - power * 0.693359375f;
  r = r + power * 2.12194440e-4f;
  floats y = fill(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  ints exponent = (__builtin_convertvector(power, ints) + 127) << 23;
  return y * (floats)exponent;
}

inline floats silu(floats x) { return x / (1.0f + exponential(-x)); }

// GELU in its tanh form (Hendrycks and Gimpel 2016): x times the logistic function of twice the tanh's argument.
inline floats gelu(floats x) {
  floats inner = 1.5957691216f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exponential(-inner));
}

}  // namespace slipway
