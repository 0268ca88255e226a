"""Compiles every ragged Triton kernel without a GPU and prints one JSON object: what ptxas made of it.

    python -m tests.kernels.compile_ragged [--capability 90] [--all] [--dtype bf16]

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

from hmoe.kernels.ragged import tune
from hmoe.kernels.ragged.backward import down_backward_kernel, weight_kernel
from hmoe.kernels.ragged.forward import combine_kernel, down_kernel, up_kernel
from hmoe.kernels.ragged.tiles import plan_kernel

INTEGERS = {
    "token_N": "*i64",
    "order_N": "*i64",
    "start_T": "*i64",
    "plan": "*i64",
    "count_E": "*i64",
    "width_E": "*i64",
}
SCALARS = {"tune_rows": "i32", "tune_width": "i32", "num_pairs": "i32", "num_tokens": "i32"}
FLOATS = {"gate_N": "*fp32", "partial": "*fp32"}
UNALIGNED = set(SCALARS)  # everything else is a pointer that PyTorch aligns to 16 bytes

CASES: dict[str, tuple[Any, dict[str, bool]]] = {
    "up": (up_kernel, {"KEEP": True}),
    "down": (down_kernel, {"TWO": False}),
    "dx": (down_kernel, {"TWO": True}),
    "down_backward": (down_backward_kernel, {}),
    "weights_gate_up": (weight_kernel, {"TWO": True}),
    "weights_down": (weight_kernel, {"TWO": False}),
}


KINDS = {name: "weights" if name.startswith("weights") else "down" if name == "dx" else name for name in CASES}


def compiled(kernel: Any, constants: dict[str, Any], dtype: str, capability: int, options: dict[str, int]) -> Any:
    function = kernel.fn if hasattr(kernel, "configs") else kernel
    names = function.arg_names
    signature = {
        name: "constexpr"
        if name in constants
        else INTEGERS.get(name) or SCALARS.get(name) or FLOATS.get(name) or f"*{dtype}"
        for name in names
    }
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name not in constants and name not in UNALIGNED
    }
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
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
    numbers = {
        name: int(found[1]) for name in ("REG", "STACK", "LOCAL") if (found := re.search(rf"{name}:(\d+)", text))
    }
    return {
        **numbers,
        "shared": result.metadata.shared,
        "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
        "cp_async_16": len(re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*, 0x10", ptx)),
        "scalar_loads": len(re.findall(r"ld\.global(?:\.\w+)*\.b16", ptx)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--all", action="store_true", help="every tile shape, not only the first of each kernel")
    arguments = parser.parse_args()
    found: dict[str, dict[str, int]] = {}
    for name, (kernel, flags) in CASES.items():
        shapes = tune.FLOAT32 if arguments.dtype == "fp32" else tune.SHAPES[KINDS[name]]
        for shape in shapes if arguments.all else shapes[:1]:
            config = tune.configs((shape,))[0]
            constants = {"D": 768, "PADDED": 8, "UPCAST": False, **flags, **config.kwargs}
            options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
            result = compiled(kernel, constants, arguments.dtype, arguments.capability, options)
            found[f"{name} {'x'.join(map(str, shape))}"] = facts(result)
    plan = {"E": 8, "PADDED": 8}
    found["plan"] = facts(compiled(plan_kernel, plan, arguments.dtype, arguments.capability, {"num_warps": 4}))
    both = {"D": 768, "BD": 1024, "GATED": True}
    found["combine"] = facts(compiled(combine_kernel, both, arguments.dtype, arguments.capability, {"num_warps": 4}))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
