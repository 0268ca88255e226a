"""What ptxas makes of the ragged kernels, without a GPU.

It is Hopper's matrix instructions and 16-byte copies, with no spilled register.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MATRIX_KERNELS = ("up", "down", "dx", "down_backward", "weights_gate_up", "weights_down")


def facts(*flags: str) -> dict[str, dict[str, int]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.compile_ragged", *flags]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    facts_by_kernel: dict[str, dict[str, int]] = json.loads(result.stdout)
    return facts_by_kernel


def of(kernel: str, facts_by_kernel: dict[str, dict[str, int]]) -> list[dict[str, int]]:
    return [numbers for name, numbers in facts_by_kernel.items() if name.split()[0] == kernel]


@pytest.fixture(scope="module")
def hopper() -> dict[str, dict[str, int]]:
    return facts("--capability", "90")


def test_on_hopper_every_tile_shape_multiplies_with_wgmma_copies_asynchronously_and_spills_nothing(
    hopper: dict[str, dict[str, int]],
) -> None:
    for name, numbers in hopper.items():
        assert numbers["STACK"] == numbers["LOCAL"] == 0, f"{name} spills: {numbers}"
        assert numbers["shared"] <= 227 * 1024, name
        if name.split()[0] in MATRIX_KERNELS:
            assert numbers["wgmma"] > 0, name
            assert numbers["cp_async_16"] > 0, name
            assert numbers["scalar_loads"] == 0, f"{name} loads numbers one by one: {numbers}"
    assert all(len(of(kernel, hopper)) >= 2 for kernel in MATRIX_KERNELS)


def test_the_loss_reads_its_target_before_any_warp_may_overwrite_it(
    hopper: dict[str, dict[str, int]],
) -> None:
    assert hopper["loss"]["scalar_loads"] > hopper["loss"]["late_loads"] == 0


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_portable_shapes_spill_nothing_on_ampere_and_fit_every_gpu_since(dtype: str) -> None:
    for name, numbers in facts("--capability", "80", "--table", "portable", "--dtype", dtype).items():
        assert numbers["STACK"] == numbers["LOCAL"] == 0, f"{name} spills: {numbers}"
        assert numbers["shared"] <= 99 * 1024, name
        if name.split()[0] in MATRIX_KERNELS:
            assert numbers["mma"] > 0, name
            assert numbers["cp_async_16"] > 0, name


def test_float32_compiles_for_checks() -> None:
    float32 = facts("--dtype", "fp32")
    assert set(MATRIX_KERNELS) <= {name.split()[0] for name in float32}
    assert all(numbers["STACK"] == numbers["LOCAL"] == 0 for numbers in float32.values()), float32


def test_the_facts_are_read_from_what_was_compiled(hopper: dict[str, dict[str, int]]) -> None:
    """The patterns behind the assertions match something: a kernel without products has no matrix instruction."""
    assert hopper["combine"]["wgmma"] == 0
    assert all(of(kernel, hopper)[0]["REG"] > 64 for kernel in MATRIX_KERNELS)
