"""Compiles every ragged Triton kernel without a GPU and prints one JSON object: what ptxas made of it.

    python -m tests.kernels.compile_ragged [--capability 90] [--table hopper] [--dtype bf16]

Run as a process of its own, because Triton decides at import whether it interprets kernels.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hmoe.kernels.ragged import shapes
from hmoe.kernels.ragged.forward import combine_kernel, place_kernel
from hmoe.kernels.ragged.launch import KERNELS
from hmoe.kernels.ragged.loss import BLOCK, loss_kernel
from hmoe.kernels.ragged.rotation import ROWS, rotate_kernel
from hmoe.kernels.ragged.select import begin_kernel, choose_kernel, pairs_kernel, select_backward_kernel
from hmoe.kernels.ragged.tiles import plan_kernel
from hmoe.kernels.router_rule import choose_block_size

TYPES = {  # of arguments that are not in the precision of the layer
    **dict.fromkeys(("token_N", "expert_N", "plan", "count_E", "width_E", "num_tokens_E"), "*i64"),
    **dict.fromkeys(("num_pairs", "num_tokens", "blocks"), "i32"),
    **dict.fromkeys(
        ("gate_N", "partial", "logits_TE", "bias_E", "probs_TE", "dprobs_TE", "dgate_N", "dlogits_TE"),
        "*fp32",
    ),
    **dict.fromkeys(("place_TE", "block_count", "block_begin"), "*i32"),
    **dict.fromkeys(("p", "scale"), "fp32"),
    "chosen_TE": "*i8",
}
KEPT = {"up": {"KEEP": True}}  # flags that a launch is given in addition to its own
PLAIN: dict[str, tuple[Any, dict[str, Any]]] = {  # kernels without tile shapes
    "plan": (plan_kernel, {"E": 8, "PADDED": 8}),
    "place": (place_kernel, {"E": 8, "PADDED": 8, "BLOCK": 256}),
    "combine": (combine_kernel, {"D": 768, "BD": 1024, "E": 8, "PADDED": 8, "GATED": True}),
}
for experts in (8, 64, 1024):  # of a router
    held = {"E": experts, "PADDED": experts, "BLOCK": choose_block_size(experts)}
    scores = {"SIGMOID": False, "RENORMALIZE": True}
    for k in (2, 0):
        flags = {"K": k, "SIGMOID": False, "BIASED": True, "GIVEN": False}
        PLAIN[f"choose {k} of {experts}"] = (choose_kernel, {**held, **flags})
    PLAIN[f"pairs {experts}"] = (pairs_kernel, {**held, **scores})
    PLAIN[f"select_backward {experts}"] = (
        select_backward_kernel,
        {**held, **scores, "PROBS": True, "GATES": True},
    )
SIZES = (
    "num_rows",
    "heads",
    "length",
    "x_stride_batch",
    "x_stride_head",
    "x_stride_position",
    "out_stride_batch",
    "out_stride_head",
    "out_stride_position",
    "table_stride_batch",
)
TYPES |= dict.fromkeys(SIZES, "i32")
TYPES |= {"target_T": "*i64", "count": "*fp32", "nll_T": "*fp32", "ignore_index": "i32"}
PLAIN["loss"] = (loss_kernel, {"V": 32000, "BLOCK": BLOCK, "BACK": True})
PLAIN["rotate"] = (rotate_kernel, {"HALF": 32, "PADDED": 32, "ROWS": ROWS})
SCALAR = r"ld\.global(?:\.\w+)*\.b16"
PLAIN["begin"] = (begin_kernel, {"CHUNK": 1024})


def compiled(
    kernel: Any, constants: dict[str, Any], dtype: str, capability: int, options: dict[str, int]
) -> Any:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else TYPES.get(name) or f"*{dtype}" for name in names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*")  # pointers, which PyTorch aligns to 16 bytes
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def facts(result: Any) -> dict[str, int]:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(result.asm["cubin"])
        usage = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    text = usage.stdout + usage.stderr
    ptx = result.asm["ptx"]
    matches = {name: re.search(rf"{name}:(\d+)", text) for name in ("REG", "STACK", "LOCAL")}
    return {
        **{name: int(match[1]) for name, match in matches.items() if match},
        "shared": result.metadata.shared,
        "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
        "cp_async_16": len(re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*, 0x10", ptx)),
        "scalar_loads": len(re.findall(SCALAR, ptx)),
        "late_loads": len(re.findall(SCALAR, ptx.rpartition("bar.sync")[2])),  # after the last barrier
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--table", default="hopper", choices=("hopper", "portable"))
    parser.add_argument("--dtype", default="bf16")
    arguments = parser.parse_args()
    table = shapes.FLOAT32 if arguments.dtype == "fp32" else shapes.TABLES[arguments.table]
    facts_by_kernel: dict[str, dict[str, int]] = {}
    for launch, (kernel, flags) in KERNELS.items():
        for shape in dict.fromkeys(table[launch].values()):
            options = shape.options
            how = {name: options.pop(name) for name in ("num_warps", "num_stages")}
            constants = {"D": 768, "PADDED": 8, "UPCAST": False, **flags, **KEPT.get(launch, {}), **options}
            result = compiled(kernel, constants, arguments.dtype, arguments.capability, how)
            facts_by_kernel[f"{launch} {'x'.join(map(str, shape))}"] = facts(result)
    for name, (kernel, constants) in PLAIN.items():
        facts_by_kernel[name] = facts(
            compiled(kernel, constants, arguments.dtype, arguments.capability, {"num_warps": 4})
        )
    print(json.dumps(facts_by_kernel, indent=1))


if __name__ == "__main__":
    main()
