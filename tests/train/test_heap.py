"""Memory that a step frees stays with the process, so the next step need not fault it in."""

import subprocess
import sys

import pytest

_COUNT_FAULTS = """
import ctypes, resource, sys
import torch
from hmoe.train.heap import keep_freed_memory
if not hasattr(ctypes.CDLL(None), "mallopt"):
    sys.exit(77)
if sys.argv[1] == "keep":
    keep_freed_memory()
def use():  # 8 MiB in blocks of 2, freed again: above what glibc keeps by itself
    tensors = [torch.ones(2 << 18) for _ in range(4)]
for _ in range(4):  # until the heap has its size
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_kept_memory_is_not_faulted_in_again() -> None:
    faults = {}
    for word in ("keep", "leave"):
        run = subprocess.run(
            [sys.executable, "-c", _COUNT_FAULTS, word], capture_output=True, text=True, check=False
        )
        if run.returncode == 77:
            pytest.skip("this C library has no mallopt")
        faults[word] = int(run.stdout)
    assert faults["keep"] < faults["leave"] / 4
