// The bfloat16 expert computation on x86-64 CPUs, called through ctypes by hmoe/kernels/native.py.
//
// Forward: rows of an expert are gathered into tiles, gate and up are one product whose blocks end in SwiGLU, the down
// projection writes rows scaled by their gate, and each token sums its rows. Backward: the same tasks make d gate, d up and
// d x; then each weight gradient is one product over all rows of an expert. Every task is done by one thread and no two
// tasks add to the same number, so results do not depend on scheduling.
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <vector>

#include "gemm.hpp"

using namespace hmoe;

struct Layer {  // mirrored by native.py
  int64_t tokens, dim, experts, threads;
  int64_t pairs, units, room;            // sizes of token, of the weights' rows, of each pre-activation
  const int64_t *token, *count, *width;  // token of each pair; pairs and hidden units of each expert
  const float* gate;                     // of each pair
  const bf16 *x, *w_gate, *w_up, *w_down;
  bf16 *pre_gate, *pre_up;  // pre-activations, expert after expert, [pairs][units]; null: not kept
  int64_t* order;           // pairs grouped by token
};

namespace {

constexpr int64_t MOST_ROWS = 1024;  // rows of a task: its operands should stay near the core
constexpr int64_t FEW_ROWS = 4;      // up to here an expert's weights are streamed once and never packed

struct Task {
  int64_t expert, begin, rows;  // rows of the expert, or units in the weight-gradient phase
  double cost;
};

struct Outside {};  // thrown for arguments that point outside of their tensors

struct Plan {
  std::vector<int64_t> pair, unit, pre, start;  // where each expert's pairs, units, pre-activations begin; each token's pairs
  double work = 0;
  explicit Plan(const Layer& l, bool sort) : pair(l.experts + 1), unit(l.experts + 1), pre(l.experts + 1), start(l.tokens + 1) {
    for (int64_t e = 0; e < l.experts; e++) {
      if (l.count[e] < 0) throw Outside();
      pair[e + 1] = pair[e] + l.count[e];
      unit[e + 1] = unit[e] + l.width[e];
      pre[e + 1] = pre[e] + l.count[e] * l.width[e];
    }
    work = double(pre[l.experts]);
    if (pair[l.experts] > l.pairs || unit[l.experts] > l.units || (l.pre_gate && pre[l.experts] > l.room)) throw Outside();
    for (int64_t n = 0; n < pair[l.experts]; n++) {
      if (l.token[n] < 0 || l.token[n] >= l.tokens) throw Outside();
      start[l.token[n] + 1]++;
    }
    for (int64_t t = 0; t < l.tokens; t++) start[t + 1] += start[t];
    if (!sort) return;
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t n = 0; n < pair[l.experts]; n++) l.order[next[l.token[n]]++] = n;
  }
};

void largest_first(std::vector<Task>& tasks) {
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.cost > b.cost; });
}

// Whole experts where they are small beside a thread's share, else equal row ranges.
std::vector<Task> row_tasks(const Layer& l, const Plan& plan) {
  std::vector<Task> tasks;
  const double share = std::max(plan.work / double(4 * l.threads), 1.0);
  for (int64_t e = 0; e < l.experts; e++) {
    const int64_t rows = l.count[e];
    if (!rows) continue;
    int64_t parts = ceil_div(rows, MOST_ROWS);
    if (l.threads > 1) parts = std::max(parts, std::min((int64_t)(double(rows) * l.width[e] / share), ceil_div(rows, 128)));
    const int64_t step = ceil_div(ceil_div(rows, parts), BLOCK) * BLOCK;
    for (int64_t begin = 0; begin < rows; begin += step) {
      const int64_t some = std::min(step, rows - begin);
      tasks.push_back({e, begin, some, double(some + 64) * l.width[e]});
    }
  }
  largest_first(tasks);
  return tasks;
}

template <class Run>
void run_tasks(const std::vector<Task>& tasks, int64_t threads, Run run) {
  std::atomic<size_t> next{0};
  std::atomic<bool> out_of_memory{false};  // an exception must not leave a parallel region
#pragma omp parallel num_threads(threads)
  {
    static thread_local Arena arena;
    Tiles tiles;
    try {
      for (size_t i = next++; i < tasks.size(); i = next++) run(tasks[i], arena);
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  }
  if (out_of_memory) throw std::bad_alloc();
}

void gather(const bf16* rows_TD, const int64_t* token, int64_t rows, int64_t padded, int64_t dim, bf16* tiles) {
  const int64_t depth = ceil_div(dim, DEPTH);
  for (int64_t r = 0; r < padded; r++) {
    bf16* dst = tiles + (r / SIDE) * depth * TILE + (r % SIDE) * DEPTH;
    if (r < rows)
      pack_row(rows_TD + token[r] * dim, dim, dst);
    else
      for (int64_t k = 0; k < depth; k++) _mm512_store_si512(dst + k * TILE, _mm512_setzero_si512());
  }
}

// y_t = sum of the token's rows, in float32, rounded once.
void combine(const Layer& l, const Plan& plan, const bf16* rows_ND, bf16* y_TD) {
  constexpr int64_t WIDE = 4;  // vectors of 32 columns at a time
#pragma omp parallel for num_threads(l.threads) schedule(static)
  for (int64_t t = 0; t < l.tokens; t++)
    for (int64_t d = 0; d < l.dim; d += WIDE * DEPTH) {
      __m512 even[WIDE], odd[WIDE];  // columns 0, 2, ... and 1, 3, ...
      for (int64_t j = 0; j < WIDE; j++) even[j] = odd[j] = _mm512_setzero_ps();
      for (int64_t i = plan.start[t]; i < plan.start[t + 1]; i++) {
        const bf16* row = rows_ND + l.order[i] * l.dim + d;
        for (int64_t j = 0; j < WIDE; j++) {
          const __m512i v = _mm512_maskz_loadu_epi16(first32(l.dim - d - j * DEPTH), row + j * DEPTH);
          even[j] = _mm512_add_ps(even[j], _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)));
          odd[j] = _mm512_add_ps(odd[j], _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(0xffff0000))));
        }
      }
      for (int64_t j = 0; j < WIDE; j++)
        _mm512_mask_storeu_epi16(y_TD + t * l.dim + d + j * DEPTH, first32(l.dim - d - j * DEPTH), interleave(narrow(even[j]), narrow(odd[j])));
    }
}

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

std::mutex one_call;  // the shared arenas serve one call at a time

}  // namespace

extern "C" {

const char* hmoe_instructions() {
#ifdef __AMX_BF16__
  return "AMX";
#else
  return "AVX-512 BF16";
#endif
}

// Asks Linux for the tile registers, once per process; 0 when they are there or not needed.
int hmoe_start() {
#ifdef __AMX_BF16__
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) != 0;
#else
  return 0;
#endif
}

// 0; 1 when memory ran out; 2 when the arguments point outside of their tensors.
int hmoe_forward(const Layer* l, bf16* y_TD) try {
  static Arena shared;
  const std::lock_guard<std::mutex> guard(one_call);
  const Plan plan(*l, true);
  if (!l->experts || *std::max_element(l->count, l->count + l->experts) <= FEW_ROWS) return stream(*l, plan, shared, y_TD), 0;
  bf16* out_ND = reinterpret_cast<bf16*>(shared.room(2 * plan.pair[l->experts] * l->dim));
  run_tasks(row_tasks(*l, plan), l->threads, [&](const Task& t, Arena& arena) { forward_task(*l, plan, t, arena, out_ND); });
  combine(*l, plan, out_ND, y_TD);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
} catch (const Outside&) {
  return 2;
}

// dw_*: null when the weights' gradients are not wanted.
int hmoe_backward(const Layer* l, const bf16* dy_TD, float* dgate_N, bf16* dx_TD, bf16* dw_gate, bf16* dw_up, bf16* dw_down) try {
  static Arena shared_rows, shared_tiles;
  const std::lock_guard<std::mutex> guard(one_call);
  const Plan plan(*l, false);
  bf16* const dw[3] = {dw_gate, dw_up, dw_down};
  Transposed transposed(*l);
  bf16* dx_ND = reinterpret_cast<bf16*>(shared_rows.room(2 * plan.pair[l->experts] * l->dim));
  if (dw_gate) transposed.tiles = reinterpret_cast<bf16*>(shared_tiles.room(2 * transposed.begin[l->experts]));
  run_tasks(row_tasks(*l, plan), l->threads, [&](const Task& t, Arena& arena) {
    backward_task(*l, plan, t, arena, dy_TD, dgate_N, dw_gate ? &transposed : nullptr, dx_ND);
  });
  combine(*l, plan, dx_ND, dx_TD);
  if (!dw_gate) return 0;
  run_tasks(weight_tasks(*l, plan), l->threads,
            [&](const Task& t, Arena& arena) { weight_task(*l, plan, t, arena, dy_TD, transposed, dw); });
  for (int64_t e = 0; e < l->experts; e++)
    for (bf16* w : dw)
      if (!l->count[e]) memset(w + plan.unit[e] * l->dim, 0, 2 * l->width[e] * l->dim);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
} catch (const Outside&) {
  return 2;
}
}
