// The arguments of a layer, where its experts lie, how its rows are cut into tasks, and how rows meet their tokens.
#pragma once
#include <atomic>
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

}  // namespace
