// Attention of a few queries over keys and values that lie in pages of 16 positions.
//
// Keys of a page and head: [width][16], so that 16 scores are summed at once. Values: [16][width rounded up to 16].
#pragma once

#include <algorithm>

#include "vector.h"

namespace slipway {

constexpr int PAGE = LANES;
constexpr int QUERIES = 4;  // that read keys and values together
constexpr int AHEAD = 4;    // pages, or parts of a value, whose sums are made side by side

template <class Number>
struct Keys {
  const Number* keys;    // of one layer and head, in page 0
  const Number* values;
  long key_page, value_page;  // numbers from one page to the next
  const int32_t* table;       // the pages of the sequence
  int width, value_width;
};

// Scores of `N` queries with the positions of `B` pages.
template <class Number, int N, int B>
void score(const float* const* queries, const Keys<Number>& at, int page, int pages, float* scores, long room) {
  const Number *keys[B], *next[B], *values[B];
  for (int b = 0; b < B; b++) {
    keys[b] = at.keys + at.table[page + b] * at.key_page;
    values[b] = at.values + at.table[page + b] * at.value_page;
    next[b] = at.keys + at.table[std::min(page + B + b, pages - 1)] * at.key_page;
  }
  floats sums[N][B] = {};
  for (int k = 0; k < at.width; k++) {
    floats key[B];
    for (int b = 0; b < B; b++) {
      __builtin_prefetch(next[b] + k * PAGE);
      __builtin_prefetch(values[b] + k * PAGE);
    }
    for (int b = 0; b < B; b++) key[b] = load(keys[b] + k * PAGE);
    for (int n = 0; n < N; n++)
      for (int b = 0; b < B; b++) sums[n][b] += key[b] * queries[n][k];
  }
  for (int n = 0; n < N; n++)
    for (int b = 0; b < B; b++) store(scores + n * room + (page + b) * PAGE, sums[n][b]);
}

// e^(score - largest) of the first `count`, and 0 from there to `end`; gives their sum.
inline float soften(float* scores, int count, int end) {
  const int whole = (count + LANES - 1) / LANES * LANES;
  for (int i = count; i < whole; i++) scores[i] = -__builtin_inff();
  floats top = load(scores);
  for (int i = LANES; i < whole; i += LANES) top = largest(top, load(scores + i));
  const float best = largest(top);
  floats total = {};
  for (int i = 0; i < whole; i += LANES) {
    floats share = exponential(load(scores + i) - best);
    share = lane_numbers() + i < count ? share : floats{};
    store(scores + i, share);
    total += share;
  }
  for (int i = whole; i < end; i++) scores[i] = 0;
  return sum(total);
}

// Values of `count` positions, weighed by `N` rows of shares: `V` vectors of the width from `part` on.
template <class Number, int N, int V>
void weigh(const float* shares, long room, const Keys<Number>& at, int part, int count, floats (&sums)[N][V]) {
  for (int first = 0; first < count; first += PAGE) {
    const Number* value = at.values + at.table[first / PAGE] * at.value_page + part;
    const int last = std::min(PAGE, count - first);
    for (int s = 0; s < last; s++, value += at.value_width) {
      floats own[V];
      for (int v = 0; v < V; v++) own[v] = load(value + v * LANES);
      for (int n = 0; n < N; n++)
        for (int v = 0; v < V; v++) sums[n][v] += own[v] * shares[n * room + first + s];
    }
  }
}

template <class Number, int N, int V, class Use>
void weigh_part(const float* shares, long room, const Keys<Number>& at, int part, int count, const Use& use) {
  floats sums[N][V] = {};
  weigh<Number, N, V>(shares, room, at, part, count, sums);
  for (int n = 0; n < N; n++)
    for (int v = 0; v < V; v++) use(n, part + v * LANES, sums[n][v]);
}

// Query n, already scaled, sees the first `seen[n]` positions. use(n, at, 16 numbers) for each part of its result.
// A position that nobody sees is never read: it may hold anything.
template <class Number, int N, class Use>
void attend(const float* const* queries, const int* seen, const Keys<Number>& at, float* scores, long room,
            const Use& use) {
  const int count = *std::max_element(seen, seen + N), pages = (count + PAGE - 1) / PAGE;
  int page = 0;
  for (; page + AHEAD <= pages; page += AHEAD) score<Number, N, AHEAD>(queries, at, page, pages, scores, room);
  for (; page < pages; page++) score<Number, N, 1>(queries, at, page, pages, scores, room);
  float totals[N];
  for (int n = 0; n < N; n++) totals[n] = soften(scores + n * room, seen[n], count);
  auto divided = [&](int n, int part, floats v) { use(n, part, v / totals[n]); };
  int part = 0;
  for (; part + AHEAD * LANES <= at.value_width; part += AHEAD * LANES)
    weigh_part<Number, N, AHEAD>(scores, room, at, part, count, divided);
  for (; part < at.value_width; part += LANES) weigh_part<Number, N, 1>(scores, room, at, part, count, divided);
}

// As above, of 1 to QUERIES queries.
template <class Number, class Use, int N = QUERIES>
void attend_some(int rows, const float* const* queries, const int* seen, const Keys<Number>& at, float* scores,
                 long room, const Use& use) {
  if constexpr (N > 1) {
    if (rows < N) return attend_some<Number, Use, N - 1>(rows, queries, seen, at, scores, room, use);
  }
  attend<Number, N>(queries, seen, at, scores, room, use);
}

}  // namespace slipway
