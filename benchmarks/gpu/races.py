"""Stage 3: compute-sanitizer over two small layers: bytes that nobody owns, and races in shared memory.

python -m benchmarks.gpu.races        the two layers alone: what the tool watches
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping

import torch

from benchmarks.gpu.facts import ROOT
from benchmarks.gpu.layers import make_layer
from benchmarks.gpu.setting import Case, Outcome, Setting
from hmoe.bench.shapes import LayerShape

SMALL = (
    LayerShape(32, (16, 48, 96, 32), 2, 17),
    LayerShape(32, tuple(16 * (1 + expert % 7) for expert in range(64)), 8, 37),
)
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def cases(setting: Setting) -> Mapping[str, Case]:
    """Return the cases: the layers alone, which compiles their kernels, then what each of the tools says.

    Both tools run at once, since each starts slowly.
    """
    tools: dict[str, subprocess.Popen[str]] = {}

    def plain() -> Outcome:
        command = [sys.executable, "-m", "benchmarks.gpu.races"]
        result = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True,
                               timeout=setting.left - 2, check=False)  # fmt: skip
        if result.returncode:
            raise RuntimeError(result.stderr[-1500:])
        sanitizer = shutil.which(
            "compute-sanitizer", path=os.environ.get("PATH", "") + ":/usr/local/cuda/bin"
        )
        for tool in ("memcheck", "racecheck") if sanitizer and not setting.dry else ():
            words = [str(sanitizer), "--tool", tool, "--error-exitcode", "99", "--print-limit", "3"]
            tools[tool] = subprocess.Popen([*words, *command], cwd=ROOT, env=os.environ | ENVIRONMENT, text=True,
                                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        return result.stdout.strip(), None

    def check(tool: str) -> Outcome:
        if tool not in tools:
            return "skipped: no compute-sanitizer, or a dry run", None
        try:
            text, _ = tools[tool].communicate(timeout=max(setting.left - 3, 1))
        except subprocess.TimeoutExpired:
            tools[tool].kill()
            text = tools[tool].communicate()[0]
            raise TimeoutError(text[-1500:]) from None
        summary = " ".join(re.findall(r"(?:ERROR|RACECHECK) SUMMARY:.*", text))
        if tools[tool].returncode:
            raise RuntimeError(f"exit {tools[tool].returncode}: {summary}\n{text[:3000]}")
        return summary, text[-2000:]

    return {"layers": plain, "memcheck": lambda: check("memcheck"), "racecheck": lambda: check("racecheck")}


def main() -> None:
    from benchmarks.gpu.correct import compute

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for size in SMALL[: 2 if device == "cuda" else 1]:
        given = make_layer(size, torch.float16, device)
        assert all(value.isfinite().all() for value in compute(given, torch.ones_like(given.x_TD), "triton"))
    print(f"{len(SMALL)} layers, {device}: all finite")


if __name__ == "__main__":
    main()
