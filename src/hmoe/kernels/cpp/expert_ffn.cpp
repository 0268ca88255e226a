// The bfloat16 expert computation on x86-64 CPUs, called through ctypes by hmoe/kernels/native.py.
//
// Forward: rows of an expert are gathered into tiles, gate and up are one product whose blocks end in SwiGLU, the down
// projection writes rows scaled by their gate, and each token sums its rows. Backward: the same tasks make d gate, d up and
// d x; then each weight gradient is one product over all rows of an expert. Every task is done by one thread and no two
// tasks add to the same number, so results do not depend on scheduling.
#include <sys/syscall.h>
#include <unistd.h>

#include <mutex>

#include "backward.hpp"
#include "forward.hpp"

namespace {

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
