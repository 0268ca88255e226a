// The backward pass: tasks of rows make d gate, d up and d x, then tasks of units make the weights' gradients.
#pragma once
#include "plan.hpp"

namespace {

// A tiles of d gate, d up and gate x activation of an expert, transposed: [3][unit strips][row tiles].
struct Transposed {
  std::vector<int64_t> begin;
  bf16* tiles = nullptr;
  explicit Transposed(const Layer& l) : begin(l.experts + 1) {
    for (int64_t e = 0; e < l.experts; e++) begin[e + 1] = begin[e] + 3 * strips(l, e) * depth(l, e) * TILE;
  }
  static int64_t strips(const Layer& l, int64_t e) { return 2 * ceil_div(l.width[e], DEPTH); }
  static int64_t depth(const Layer& l, int64_t e) { return ceil_div(l.count[e], DEPTH); }
};

void backward_task(const Layer& l, const Plan& plan, const Task& t, Arena& arena, const bf16* dy_TD, float* dgate_N,
                   const Transposed* transposed, bf16* dx_ND) {
  const int64_t e = t.expert, D = l.dim, h = l.width[e], pair = plan.pair[e] + t.begin;
  const int64_t rows = ceil_div(t.rows, BLOCK) * BLOCK, in_deep = ceil_div(D, DEPTH), hidden_deep = ceil_div(h, DEPTH);
  const bf16 *w_gate = l.w_gate + plan.unit[e] * D, *w_up = l.w_up + plan.unit[e] * D, *w_down = l.w_down + plan.unit[e] * D;
  // left: dy; right: d gate | d up as one operand, then 16 partial sums of d (routing gate) per row
  const Scratch s(arena, rows * in_deep * DEPTH, rows * 2 * hidden_deep * DEPTH + rows * 2 * SIDE, rows);
  float* partial = reinterpret_cast<float*>(s.right + rows * 2 * hidden_deep * DEPTH);
  memset(partial, 0, 4 * rows * SIDE);
  gather(dy_TD, l.token + pair, t.rows, rows, D, s.left);
  gemm(
      s.left, rows, in_deep, hidden_deep * DEPTH, s,
      [&](bf16* packed, int64_t k, int64_t deep, int64_t n, int64_t columns) {
        for (int64_t strip = n / SIDE; strip < (n + columns) / SIDE; strip++, packed += deep * TILE)
          pack_transposed(w_down, h, D, strip * SIDE, k, deep, packed);
      },
      [&](int64_t m, int64_t n, const float* c) {
        alignas(64) bf16 pairs[3][TILE];
        for (int64_t unit = n; unit < n + BLOCK; unit += SIDE, c += SIDE) {
          const __mmask16 mask = first(h - unit);
          __m256i even[3];
          for (int64_t i = 0; i < BLOCK; i++) {
            const int64_t r = m + i;
            const bool real = r < t.rows;
            const int64_t at = plan.pre[e] + (t.begin + r) * h + unit;
            const __m512 g = real ? load(l.pre_gate + at, mask) : _mm512_setzero_ps();
            const __m512 u = real ? load(l.pre_up + at, mask) : _mm512_setzero_ps();
            const __m512 gate = _mm512_set1_ps(real ? l.gate[pair + r] : 0.0f), da = _mm512_load_ps(c + i * BLOCK);
            const __m512 sig = sigmoid(g), silu = _mm512_mul_ps(g, sig), a = _mm512_mul_ps(silu, u);
            _mm512_store_ps(partial + r * SIDE, _mm512_fmadd_ps(da, a, _mm512_load_ps(partial + r * SIDE)));
            const __m512 scaled = _mm512_mul_ps(da, gate);
            // silu'(g) = sig (1 + g (1 - sig)) = sig + silu (1 - sig)
            const __m512 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(_mm512_set1_ps(1.0f), sig), sig);
            const __m256i now[3] = {narrow(_mm512_mul_ps(_mm512_mul_ps(scaled, u), slope)), narrow(_mm512_mul_ps(scaled, silu)),
                                    narrow(_mm512_mul_ps(a, gate))};
            bf16* row = s.right + (r / SIDE) * 2 * hidden_deep * TILE + (unit / DEPTH) * TILE + (r % SIDE) * DEPTH + unit % DEPTH;
            _mm256_store_si256((__m256i*)row, now[0]);
            _mm256_store_si256((__m256i*)(row + hidden_deep * TILE), now[1]);
            for (int j = 0; j < 3; j++) {
              if (i % 2) _mm512_store_si512(pairs[j] + (i / 2) * 2 * SIDE, interleave(even[j], now[j]));
              even[j] = now[j];
            }
          }
          if (!transposed) continue;
          const int64_t strips = Transposed::strips(l, e), depth = Transposed::depth(l, e);
          bf16* to = transposed->tiles + transposed->begin[e] + (unit / SIDE * depth + (t.begin + m) / DEPTH) * TILE;
          for (int j = 0; j < 3; j++) transpose(pairs[j], 64, to + j * strips * depth * TILE);
        }
      });
  for (int64_t r = 0; r < t.rows; r++) dgate_N[pair + r] = _mm512_reduce_add_ps(_mm512_load_ps(partial + r * SIDE));
  gemm(
      s.right, rows, 2 * hidden_deep, in_deep * DEPTH, s,
      [&](bf16* packed, int64_t k, int64_t deep, int64_t n, int64_t columns) {
        pack_rows(
            [&](int64_t i) {
              const int64_t unit = i % (hidden_deep * DEPTH);
              return unit < h ? (i < hidden_deep * DEPTH ? w_gate : w_up) + unit * D : nullptr;
            },
            D, k, deep, n, columns, packed);
      },
      [&](int64_t m, int64_t n, const float* c) {
        for (int64_t r = m; r < std::min(m + BLOCK, t.rows); r++, c += BLOCK) {
          bf16* out = dx_ND + (pair + r) * D + n;
          store(out, first(D - n), _mm512_load_ps(c));
          store(out + 16, first(D - n - 16), _mm512_load_ps(c + 16));
        }
      });
}

// Strips of an expert's three transposed operands, d gate and d up (which share x) and gate x activation (which takes dy).
std::vector<Task> weight_tasks(const Layer& l, const Plan& plan) {
  std::vector<Task> tasks;
  const double share = std::max(3 * plan.work / double(6 * l.threads), 1.0);
  for (int64_t e = 0; e < l.experts; e++) {
    if (!l.count[e]) continue;
    const int64_t strips = Transposed::strips(l, e);
    for (int64_t part = 0; part < 2; part++) {
      const int64_t all = part ? strips : 2 * strips, first_strip = part ? 2 * strips : 0;
      int64_t pieces = std::max(ceil_div(all * SIDE, MOST_ROWS), (int64_t)(double(all * SIDE) * l.count[e] / share));
      pieces = std::min(pieces, ceil_div(all, 8));
      const int64_t step = ceil_div(ceil_div(all, pieces), 2) * 2;
      for (int64_t begin = 0; begin < all; begin += step) {
        const int64_t some = std::min(step, all - begin);
        tasks.push_back({e, first_strip + begin, some, double(some + 4) * l.count[e]});
      }
    }
  }
  largest_first(tasks);
  return tasks;
}

void weight_task(const Layer& l, const Plan& plan, const Task& t, Arena& arena, const bf16* dy_TD, const Transposed& transposed,
                 bf16* const dw[3]) {
  const int64_t e = t.expert, D = l.dim, h = l.width[e], M = l.count[e], strips = Transposed::strips(l, e), depth = Transposed::depth(l, e);
  const int64_t* token = l.token + plan.pair[e];
  const bf16* rows = t.begin < 2 * strips ? l.x : dy_TD;
  const Scratch s(arena, 0, 0, t.rows * SIDE);
  gemm(
      transposed.tiles + transposed.begin[e] + t.begin * depth * TILE, t.rows * SIDE, depth, ceil_div(D, DEPTH) * DEPTH, s,
      [&](bf16* packed, int64_t k, int64_t deep, int64_t n, int64_t columns) {
        pack_rows([&](int64_t i) { return i < M ? rows + token[i] * D : nullptr; }, D, k, deep, n, columns, packed);
      },
      [&](int64_t m, int64_t n, const float* c) {
        for (int64_t i = 0; i < BLOCK; i++, c += BLOCK) {
          const int64_t strip = t.begin + (m + i) / SIDE, unit = strip % strips * SIDE + i % SIDE;
          if (unit >= h) continue;
          bf16* out = dw[strip / strips] + (plan.unit[e] + unit) * D + n;
          store(out, first(D - n), _mm512_load_ps(c));
          store(out + 16, first(D - n - 16), _mm512_load_ps(c + 16));
        }
      });
}

}  // namespace
