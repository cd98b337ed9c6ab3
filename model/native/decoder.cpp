// One forward pass of a decoder over tokens of many sequences. Read `Decoder::hidden` first.
//
// Called through ctypes (decode_native.py), which checks all sizes. N tokens, D width, F hidden width, K head width.

#include "network.h"

namespace slipway {

struct Base {
  virtual ~Base() = default;
  virtual void hidden(const Batch& batch, float* to) = 0;
  virtual void logits(const float* x, int rows, float* to) = 0;
  virtual void best(const float* logits, int rows, long stride, int allowed, int64_t* ids, float* values) = 0;
};

template <class Kind, class Number>
class Decoder : public Base {
 public:
  typedef typename Kind::Input Input;

  Decoder(const Network& network, int threads, int most_tokens)
      : net_(network),
        layers_(network.layers, network.layers + network.layer_count),
        pool_(threads),
        most_tokens_(most_tokens),
        stride_(whole_panels(network.width)),
        qkv_stride_(whole_panels((network.heads + 2 * network.kv_heads) * network.head_width)),
        hidden_stride_(whole_panels(network.hidden)),
        room_((network.context + AHEAD * PAGE) / PAGE * PAGE),
        x_((size_t)most_tokens * stride_),
        qkv_((size_t)most_tokens * qkv_stride_),
        input_((size_t)most_tokens * stride_),
        mid_((size_t)most_tokens * hidden_stride_),
        scores_((size_t)threads * QUERIES * room_) {}

  // The last norm's result for each token: `to` is [N, D rounded up].
  void hidden(const Batch& batch, float* to) override {
    embed(batch);
    tiles_of(batch);
    for (int i = 0; i < net_.layer_count; i++) {
      const Layer& layer = layers_[i];
      norm(layer.attention_norm, batch.tokens, input_.data());
      product(layer.qkv, batch.tokens, input_.data(), stride_,
              [&](int row, int at, const float* y) { memcpy(qkv_.data() + row * qkv_stride_ + at, y, 4 * PANEL); });
      remember(batch, i);
      attention(batch, i);
      product(layer.out, batch.tokens, input_.data(), stride_, residual());
      norm(layer.mlp_norm, batch.tokens, input_.data());
      up(layer.up, batch.tokens);
      product(layer.down, batch.tokens, mid_.data(), hidden_stride_, residual());
    }
    norm(net_.norm, batch.tokens, to);
  }

  // `x` and `to` are rows of whole panels, the latter as wide as the head has outputs.
  void logits(const float* x, int rows, float* to) override {
    for (int first = 0; first < rows; first += most_tokens_) {
      const int count = std::min(most_tokens_, rows - first);
      for (long i = 0; i < (long)count * stride_; i += LANES) store(input_.data() + i, load(x + first * stride_ + i));
      product(net_.head, count, input_.data(), stride_, [&](int row, int at, const float* y) {
        memcpy(to + (long)(first + row) * net_.head.outputs + at, y, 4 * PANEL);
      });
    }
  }

  // The likeliest of the first `allowed` ids of each row, and its logit: no number where one of them is none.
  void best(const float* logits, int rows, long stride, int allowed, int64_t* ids, float* values) override {
    pool_.run(rows, [&](int row, int) {
      const float* own = logits + row * stride;
      float top = -__builtin_inff();
      bool number = true;
      floats tops = fill(top), strange = {};
      int i = 0;
      for (; i + LANES <= allowed; i += LANES) {
        floats v = load(own + i);
        tops = largest(tops, v);
        strange += v - v;  // not 0 where v is no number or infinite
      }
      top = largest(tops);
      number = sum(strange) == 0;
      for (; i < allowed; i++) {
        top = own[i] > top ? own[i] : top;
        number = number && own[i] - own[i] == 0;
      }
      values[row] = number ? top : __builtin_nanf("");
      ids[row] = number ? std::find(own, own + allowed, top) - own : 0;
    });
  }

 private:
  struct Tile {
    int first, count;  // tokens of one sequence
  };

  void embed(const Batch& batch) {
    each(batch.tokens, [&](int n) {
      float* x = x_.data() + n * stride_;
      const auto* word = (const Number*)net_.embed + batch.ids[n] * net_.width;
      for (int i = 0; i < net_.width; i++) x[i] = widened(word[i]);
      if (!net_.positions) return;
      const float* place = net_.positions + (long)batch.positions[n] * net_.width;
      for (int i = 0; i < net_.width; i++) x[i] += place[i];
    });
  }

  void tiles_of(const Batch& batch) {
    tiles_.clear();
    const int most = std::max(1, QUERIES * net_.kv_heads / net_.heads);
    for (int n = 0; n < batch.tokens; n++) {
      const bool goes_on = n && batch.slots[n] == batch.slots[n - 1] && tiles_.back().count < most;
      if (goes_on) tiles_.back().count++;
      else tiles_.push_back({n, 1});
    }
  }

  template <class To>
  void norm(const Norm& norm, int tokens, To* to) {
    each(tokens, [&](int n) { normalise(norm, x_.data() + n * stride_, net_.width, net_.eps, to + (long)n * stride_); });
  }

  // Rotates queries and keys, scales queries, and puts keys and values into their pages.
  void remember(const Batch& batch, int layer) {
    const int K = net_.head_width, G = net_.kv_heads, H = net_.heads, wide = net_.value_width;
    const float scale = 1.0f / __builtin_sqrtf((float)K);
    each(batch.tokens, [&](int n) {
      float* q = qkv_.data() + n * qkv_stride_;
      float *k = q + H * K, *v = k + G * K;
      const long position = batch.positions[n];
      if (net_.cosines)
        for (int h = 0; h < H + G; h++) turn(q + h * K, net_.cosines + position * K, net_.sines + position * K, K);
      for (int i = 0; i < H * K; i++) q[i] *= scale;
      const long page = (long)layer * batch.pages + batch.tables[(long)batch.slots[n] * batch.table_width + position / PAGE];
      const int at = position % PAGE;
      for (int g = 0; g < G; g++) {
        Number* keys = (Number*)batch.keys + (page * G + g) * K * PAGE + at;
        Number* values = (Number*)batch.values + ((page * G + g) * PAGE + at) * wide;
        for (int i = 0; i < K; i++) put(keys + i * PAGE, k[g * K + i]);
        for (int i = 0; i < wide; i++) put(values + i, i < K ? v[g * K + i] : 0.0f);
      }
    });
  }

  void attention(const Batch& batch, int layer) {
    const int K = net_.head_width, G = net_.kv_heads, group = net_.heads / G, wide = net_.value_width;
    pool_.run((int)tiles_.size() * G, [&](int task, int who) {
      const Tile tile = tiles_[task / G];
      const int g = task % G, rows = tile.count * group;
      Keys<Number> at;
      at.keys = (const Number*)batch.keys + ((long)layer * batch.pages * G + g) * K * PAGE;
      at.values = (const Number*)batch.values + ((long)layer * batch.pages * G + g) * wide * PAGE;
      at.key_page = (long)G * K * PAGE, at.value_page = (long)G * wide * PAGE;
      at.table = batch.tables + (long)batch.slots[tile.first] * batch.table_width;
      at.width = K, at.value_width = wide;
      for (int first = 0; first < rows; first += QUERIES) {
        const int count = std::min(QUERIES, rows - first);
        const float* queries[QUERIES];
        int seen[QUERIES];
        for (int r = 0; r < count; r++) {
          const int token = tile.first + (first + r) / group, head = g * group + (first + r) % group;
          queries[r] = qkv_.data() + token * qkv_stride_ + head * K;
          seen[r] = batch.positions[token] + 1;
        }
        attend_some<Number>(count, queries, seen, at, scores_.data() + (size_t)who * QUERIES * room_, room_,
                            [&](int r, int part, floats v) {
                              const int token = tile.first + (first + r) / group, head = g * group + (first + r) % group;
                              Input* to = input_.data() + token * stride_ + head * K + part;
                              for (int i = 0; i < std::min(LANES, K - part); i++) put(to + i, v[i]);
                            });
      }
    });
  }

  // mid = act(gate) * up, or act(up).
  void up(const Matrix& matrix, int tokens) {
    const bool gated = !net_.norm.bias;
    const int panels = hidden_stride_ / PANEL;
    pool_.run(panels, [&](int panel, int) {
      auto to = [&](int row) { return mid_.data() + row * hidden_stride_ + panel * PANEL; };
      if (!gated) {
        panel_of<Kind>(matrix, panel, tokens, input_.data(), stride_, [&](int row, const float* y) {
          for (int i = 0; i < PANEL; i += LANES) store(to(row) + i, gelu(load(y + i)));
        });
        return;
      }
      thread_local std::vector<float> gates;
      gates.resize((size_t)most_tokens_ * PANEL);
      float* gate = gates.data();
      panel_of<Kind>(matrix, 2 * panel, tokens, input_.data(), stride_,
                     [&](int row, const float* y) { memcpy(gate + row * PANEL, y, 4 * PANEL); });
      panel_of<Kind>(matrix, 2 * panel + 1, tokens, input_.data(), stride_, [&](int row, const float* y) {
        for (int i = 0; i < PANEL; i += LANES) store(to(row) + i, silu(load(gate + row * PANEL + i)) * load(y + i));
      });
    });
  }

  auto residual() {
    return [this](int row, int at, const float* y) {
      float* x = x_.data() + row * stride_ + at;
      for (int i = 0; i < PANEL; i += LANES) store(x + i, load(x + i) + load(y + i));
    };
  }

  // use(row, first output, 32 numbers).
  template <class Use>
  void product(const Matrix& matrix, int rows, const Input* x, long stride, const Use& use) {
    pool_.run(matrix.outputs / PANEL, [&](int panel, int) {
      panel_of<Kind>(matrix, panel, rows, x, stride, [&](int row, const float* y) { use(row, panel * PANEL, y); });
    });
  }

  // work(n) for each token: a few of them on one thread, as waking another costs more.
  template <class Work>
  void each(int tokens, const Work& work) {
    constexpr int share = 4;
    pool_.run((tokens + share - 1) / share, [&](int task, int) {
      for (int n = task * share; n < std::min(tokens, (task + 1) * share); n++) work(n);
    });
  }

  const Network net_;
  const std::vector<Layer> layers_;
  Pool pool_;
  const int most_tokens_;
  const long stride_, qkv_stride_, hidden_stride_, room_;
  std::vector<float> x_, qkv_;
  std::vector<Input> input_, mid_;
  std::vector<float> scores_;
  std::vector<Tile> tiles_;
};

}  // namespace slipway

using slipway::Base;

extern "C" {

// kind: 0 all fp32, 1 all bf16, 2 bf16 with 8-bit matrices.
Base* slipway_open(const slipway::Network* network, int kind, int threads, int most_tokens) {
  using namespace slipway;
  if (kind == 0) return new Decoder<Full, float>(*network, threads, most_tokens);
  if (kind == 1) return new Decoder<Half, bf16>(*network, threads, most_tokens);
  return new Decoder<Byte, bf16>(*network, threads, most_tokens);
}

void slipway_close(Base* decoder) { delete decoder; }

void slipway_hidden(Base* decoder, const slipway::Batch* batch, float* to) { decoder->hidden(*batch, to); }

void slipway_logits(Base* decoder, const float* x, int rows, float* to) { decoder->logits(x, rows, to); }

void slipway_best(Base* decoder, const float* logits, int rows, long stride, int allowed, int64_t* ids, float* values) {
  decoder->best(logits, rows, stride, allowed, ids, values);
}
}
