// y = x W^T for few rows of x: weights are read once, in the order in which they lie. See model/native/packing.py.
//
// A panel holds 32 outputs; in it, `group` inputs of all 32 follow each other. Each number of y is one sum in the order
// of the inputs, however many rows there are: what stands beside a row in a batch changes no bit of it.
#pragma once

#include "vector.h"

namespace slipway {

constexpr int PANEL = 32;
#ifdef __AVX512F__
constexpr int ROWS = 12;  // 24 sums fill the registers
#else
constexpr int ROWS = 4;
#endif

struct Matrix {
  const void* weights;
  const float* scales;  // of each output, where weights are 8-bit
  const float* bias;
  int inputs;   // rounded up to whole groups
  int outputs;  // rounded up to whole panels
};

#ifdef SLIPWAY_PAIRS
typedef __m512bh Pairs;

inline Pairs pairs(const bf16* from) { return (Pairs)_mm512_loadu_si512(from); }

inline Pairs pairs(const int8_t* from) {
  auto half = [](const int8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
  };
  return _mm512_cvtne2ps_pbh(half(from + LANES), half(from));
}

inline floats add(floats to, Pairs weights, const bf16* x) {
  int32_t pair;
  memcpy(&pair, x, sizeof pair);
  return (floats)_mm512_dpbf16_ps((__m512)to, weights, (Pairs)_mm512_set1_epi32(pair));
}
#else
struct Pairs {
  floats even, odd;
};

inline Pairs pairs(const bf16* from) {
  bits both;
  memcpy(&both, from, sizeof both);
  return {(floats)(both << 16), (floats)(both & 0xffff0000u)};
}

inline Pairs pairs(const int8_t* from) {
  Pairs found;
  for (int i = 0; i < LANES; i++) found.even[i] = from[2 * i], found.odd[i] = from[2 * i + 1];
  return found;
}

inline floats add(floats to, Pairs weights, const bf16* x) {
  to += weights.even * widened(x[0]);
  return to + weights.odd * widened(x[1]);
}
#endif

// What a kind of weights is made of.
struct Full {
  typedef float Weight;
  typedef float Input;
  static constexpr int group = 1;
  static floats unit(const float* from) { return load(from); }
  static floats plus(floats to, floats weights, const float* x) { return to + weights * *x; }
};

template <class W>
struct Paired {
  typedef W Weight;
  typedef bf16 Input;
  static constexpr int group = 2;
  static Pairs unit(const W* from) { return pairs(from); }
  static floats plus(floats to, Pairs weights, const bf16* x) { return add(to, weights, x); }
};

typedef Paired<bf16> Half;
typedef Paired<int8_t> Byte;

template <class Kind, int M>
void multiply(const typename Kind::Input* x, long stride, const typename Kind::Weight* w, int groups, float* sums) {
  floats low[M] = {}, high[M] = {};
  constexpr int half = LANES * Kind::group;
  for (int g = 0; g < groups; g++, w += 2 * half, x += Kind::group) {
    __builtin_prefetch((const char*)w + 2048);
    auto one = Kind::unit(w), other = Kind::unit(w + half);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      low[m] = Kind::plus(low[m], one, x + m * stride);
      high[m] = Kind::plus(high[m], other, x + m * stride);
    }
  }
  for (int m = 0; m < M; m++) store(sums + m * PANEL, low[m]), store(sums + m * PANEL + LANES, high[m]);
}

// `rows` sums of a panel: 1 to ROWS.
template <class Kind, int M = ROWS>
void multiply(int rows, const typename Kind::Input* x, long stride, const typename Kind::Weight* w, int groups,
              float* sums) {
  if constexpr (M > 1) {
    if (rows < M) return multiply<Kind, M - 1>(rows, x, stride, w, groups, sums);
  }
  multiply<Kind, M>(x, stride, w, groups, sums);
}

// The sums of one panel, with scale and bias: use(row, sums of 32 outputs) for each row.
template <class Kind, class Use>
void panel_of(const Matrix& matrix, int panel, int rows, const typename Kind::Input* x, long stride, const Use& use) {
  const auto* w = (const typename Kind::Weight*)matrix.weights + (long)panel * PANEL * matrix.inputs;
  const float* bias = matrix.bias ? matrix.bias + panel * PANEL : nullptr;
  const float* scales = matrix.scales ? matrix.scales + panel * PANEL : nullptr;
  const int tiles = (rows + ROWS - 1) / ROWS;
  for (int tile = 0; tile < tiles; tile++) {
    const int first = (int)((long)rows * tile / tiles), last = (int)((long)rows * (tile + 1) / tiles);
    alignas(64) float sums[ROWS * PANEL];
    multiply<Kind>(last - first, x + first * stride, stride, w, matrix.inputs / Kind::group, sums);
    for (int row = first; row < last; row++) {
      float* own = sums + (row - first) * PANEL;
      for (int i = 0; i < PANEL; i += LANES) {
        floats v = load(own + i);
        if (scales) v = v * load(scales + i);
        if (bias) v = v + load(bias + i);
        store(own + i, v);
      }
      use(row, own);
    }
  }
}

}  // namespace slipway
