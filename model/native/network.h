// A decoder as Python hands it over (the structures of decode_native.py), and the memory that a pass works in.
//
// D width, rounded up to whole panels in memory; what is rounded up holds zeros. fp32 but for what a product reads.
#pragma once

#include <vector>

#include "attention.h"
#include "pool.h"
#include "product.h"

namespace slipway {

struct Norm {
  const float* weight;
  const float* bias;  // null: RMSNorm (Zhang and Sennrich 2019), else LayerNorm
};

struct Layer {
  Norm attention_norm;
  Matrix qkv;
  Matrix out;
  Norm mlp_norm;
  Matrix up;  // of SwiGLU panels of gate and up by turns
  Matrix down;
};

struct Network {
  const Layer* layers;
  Matrix head;
  Norm norm;
  const void* embed;
  const float* positions;  // a row of D for each, or null
  const float* cosines;    // a row of K for each position, or null
  const float* sines;
  int layer_count, width, heads, kv_heads, head_width, value_width, hidden, context;
  float eps;
};

// Tokens of one pass. Those of a sequence follow each other, in the order of their positions.
struct Batch {
  const int64_t* ids;
  const int32_t* positions;
  const int32_t* slots;   // the row of `tables` of each token's sequence
  const int32_t* tables;  // pages of each sequence
  void* keys;             // [layer, page, kv head, K, 16]
  void* values;           // [layer, page, kv head, 16, K rounded up]
  int tokens, table_width, pages;
};

inline int whole_panels(int numbers) { return (numbers + PANEL - 1) / PANEL * PANEL; }

template <class Input>
void normalise(const Norm& norm, const float* x, int width, float eps, Input* to) {
  const int padded = whole_panels(width);
  float mean = 0;
  if (norm.bias) {
    floats total = {};
    for (int i = 0; i < padded; i += LANES) total += load(x + i);
    mean = sum(total) / width;
  }
  floats squares = {};
  for (int i = 0; i < padded; i += LANES) {
    floats apart = load(x + i) - mean;
    apart = lane_numbers() + i < width ? apart : floats{};
    squares += apart * apart;
  }
  const float scale = 1.0f / __builtin_sqrtf(sum(squares) / width + eps);
  for (int i = 0; i < padded; i += LANES) {
    floats y = (load(x + i) - mean) * scale * load(norm.weight + i);
    if (norm.bias) y += load(norm.bias + i);
    store(to + i, y);
  }
}

// Turns each pair (x[i], x[i + K/2]) by its position's angle (RoPE; Su et al. 2021).
inline void turn(float* x, const float* cosines, const float* sines, int width) {
  const int half = width / 2;
  for (int i = 0; i < half; i++) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cosines[i] + b * sines[i];
    x[i + half] = b * cosines[i + half] + a * sines[i + half];
  }
}

}  // namespace slipway
