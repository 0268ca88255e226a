// The forward pass: tasks of many rows through packed tiles, and weights streamed once where experts have few rows.
#pragma once
#include "plan.hpp"

namespace {

void forward_task(const Layer& l, const Plan& plan, const Task& t, Arena& arena, bf16* out_ND) {
  const int64_t e = t.expert, D = l.dim, h = l.width[e], pair = plan.pair[e] + t.begin;
  const int64_t rows = ceil_div(t.rows, BLOCK) * BLOCK, in_deep = ceil_div(D, DEPTH), hidden_deep = ceil_div(h, DEPTH);
  const bf16 *w_gate = l.w_gate + plan.unit[e] * D, *w_up = l.w_up + plan.unit[e] * D, *w_down = l.w_down + plan.unit[e] * D;
  const Scratch s(arena, rows * in_deep * DEPTH, rows * hidden_deep * DEPTH, rows);
  gather(l.x, l.token + pair, t.rows, rows, D, s.left);
  gemm(  // columns: 16 of gate, 16 of up, 16 of gate, ...
      s.left, rows, in_deep, 2 * hidden_deep * DEPTH, s,
      [&](bf16* packed, int64_t k, int64_t deep, int64_t n, int64_t columns) {
        for (int64_t strip = n / SIDE; strip < (n + columns) / SIDE; strip++, packed += deep * TILE)
          pack_transposed(strip % 2 ? w_up : w_gate, h, D, strip / 2 * SIDE, k, deep, packed);
      },
      [&](int64_t m, int64_t n, const float* c) {
        const int64_t unit = n / 2;
        const __mmask16 mask = first(h - unit);
        for (int64_t r = m; r < m + BLOCK; r++, c += BLOCK) {
          const __m512 g = _mm512_load_ps(c), u = _mm512_load_ps(c + 16);
          const __m512 a = _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), u);
          store(s.right + (r / SIDE) * hidden_deep * TILE + (unit / DEPTH) * TILE + (r % SIDE) * DEPTH + unit % DEPTH, 0xffff, a);
          if (l.pre_gate && r < t.rows) {
            const int64_t at = plan.pre[e] + (t.begin + r) * h + unit;
            store(l.pre_gate + at, mask, g);
            store(l.pre_up + at, mask, u);
          }
        }
      });
  gemm(
      s.right, rows, hidden_deep, in_deep * DEPTH, s,
      [&](bf16* packed, int64_t k, int64_t deep, int64_t n, int64_t columns) {
        pack_rows([&](int64_t i) { return i < h ? w_down + i * D : nullptr; }, D, k, deep, n, columns, packed);
      },
      [&](int64_t m, int64_t n, const float* c) {
        for (int64_t r = m; r < std::min(m + BLOCK, t.rows); r++, c += BLOCK) {
          const __m512 gate = _mm512_set1_ps(l.gate[pair + r]);
          bf16* out = out_ND + (pair + r) * D + n;
          store(out, first(D - n), _mm512_mul_ps(gate, _mm512_load_ps(c)));
          store(out + 16, first(D - n - 16), _mm512_mul_ps(gate, _mm512_load_ps(c + 16)));
        }
      });
}

// UNITS hidden units of an expert and all its rows: two dot products and one scaled addition per row and unit. The next
// units are asked for in time, since here reading the weights is all that takes time.
void stream_units(const Layer& l, const Plan& plan, int64_t e, int64_t first_unit, int64_t units, float* sum_TD, int64_t padded) {
  constexpr int UNITS = 2;  // 4 and 8 were slower, and so was 2 without asking ahead
  const int64_t D = l.dim, h = l.width[e], ahead = UNITS * D;
  const bf16 *gate[UNITS], *up[UNITS], *down[UNITS];
  for (int64_t i = first_unit; i < first_unit + units; i += UNITS) {
    const int64_t real = std::min((int64_t)UNITS, first_unit + units - i);
    for (int j = 0; j < UNITS; j++) {
      const int64_t row = (plan.unit[e] + i + std::min((int64_t)j, real - 1)) * D;
      gate[j] = l.w_gate + row, up[j] = l.w_up + row, down[j] = l.w_down + row;
    }
    for (int64_t r = 0; r < l.count[e]; r++) {
      const int64_t pair = plan.pair[e] + r, at = plan.pre[e] + r * h + i;
      const bf16* x = l.x + l.token[pair] * D;
      __m512 dot_gate[UNITS], dot_up[UNITS];
      for (int j = 0; j < UNITS; j++) dot_gate[j] = dot_up[j] = _mm512_setzero_ps();
      for (int64_t d = 0; d < D; d += DEPTH) {
        const __mmask32 m = first32(D - d);
        const __m512bh v = (__m512bh)_mm512_maskz_loadu_epi16(m, x + d);
        for (int j = 0; j < UNITS; j++) {
          _mm_prefetch(reinterpret_cast<const char*>(gate[j] + ahead + d), _MM_HINT_T0);
          _mm_prefetch(reinterpret_cast<const char*>(up[j] + ahead + d), _MM_HINT_T0);
          dot_gate[j] = _mm512_dpbf16_ps(dot_gate[j], v, (__m512bh)_mm512_maskz_loadu_epi16(m, gate[j] + d));
          dot_up[j] = _mm512_dpbf16_ps(dot_up[j], v, (__m512bh)_mm512_maskz_loadu_epi16(m, up[j] + d));
        }
      }
      alignas(64) float g[SIDE] = {}, u[SIDE] = {}, a[SIDE];
      for (int j = 0; j < real; j++) g[j] = _mm512_reduce_add_ps(dot_gate[j]), u[j] = _mm512_reduce_add_ps(dot_up[j]);
      const __m512 gs = _mm512_load_ps(g), us = _mm512_load_ps(u);
      if (l.pre_gate) store(l.pre_gate + at, first(real), gs), store(l.pre_up + at, first(real), us);
      _mm512_store_ps(a, _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(gs, sigmoid(gs)), us), _mm512_set1_ps(l.gate[pair])));
      float* sum = sum_TD + l.token[pair] * padded;
      for (int64_t d = 0; d < D; d += SIDE) {
        const __mmask16 m = first(D - d);
        __m512 s = _mm512_load_ps(sum + d);
        for (int j = 0; j < UNITS; j++) {
          if (d % DEPTH == 0) _mm_prefetch(reinterpret_cast<const char*>(down[j] + ahead + d), _MM_HINT_T0);
          s = _mm512_fmadd_ps(_mm512_set1_ps(a[j]), load(down[j] + d, m), s);
        }
        _mm512_store_ps(sum + d, s);
      }
    }
  }
}

// Few rows per expert: each thread streams an equal share of all units into sums of its own.
void stream(const Layer& l, const Plan& plan, Arena& shared, bf16* y_TD) {
  const int64_t D = l.dim, padded = ceil_div(D, SIDE) * SIDE, threads = l.threads;
  float* sums = reinterpret_cast<float*>(shared.room(4 * (threads + 1) * l.tokens * padded));
  std::vector<int64_t> busy, begin{0};  // experts with pairs, and their units counted through
  for (int64_t e = 0; e < l.experts; e++)
    if (l.count[e]) busy.push_back(e), begin.push_back(begin.back() + l.width[e]);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static, 1)
    for (int64_t thread = 0; thread < threads; thread++) {
      float* sum_TD = sums + thread * l.tokens * padded;
      memset(sum_TD, 0, 4 * l.tokens * padded);
      const int64_t from = begin.back() * thread / threads, to = begin.back() * (thread + 1) / threads;
      for (size_t b = 0; b < busy.size(); b++) {
        const int64_t some = std::max(from - begin[b], (int64_t)0), end = std::min(to - begin[b], l.width[busy[b]]);
        if (some < end) stream_units(l, plan, busy[b], some, end - some, sum_TD, padded);
      }
    }
#pragma omp for schedule(static)
    for (int64_t t = 0; t < l.tokens; t++)
      for (int64_t d = 0; d < D; d += SIDE) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t thread = 0; thread < threads; thread++)
          sum = _mm512_add_ps(sum, _mm512_load_ps(sums + (thread * l.tokens + t) * padded + d));
        store(y_TD + t * D + d, first(D - d), sum);
      }
  }
}

}  // namespace
