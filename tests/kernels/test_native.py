"""The C++ library's build and its description: what the oracle tests do not see."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hmoe.errors import ConfigError, HMoEError
from hmoe.kernels import build, native
from tests.kernels.cases import arguments, gradient, known, library, low_gates, run


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("case", ["prime tokens", "few tokens", "one expert takes everything", "odd dim"])
def test_the_library_gives_every_number_of_threads_nearly_the_same(
    case: str, threads: int, native_libraries: dict[str, object]
) -> None:
    values, routing, widths, grad, truth = known(case, "cpu", 0, torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for variant in native_libraries.keys() - {"why"}:
            with library(variant):
                results = run("cpu", low_gates(values, torch.bfloat16), routing, widths, grad)
            for actual, expected in zip(results, truth, strict=True):
                torch.testing.assert_close(
                    actual.double(), expected, rtol=0.02, atol=0.02 * float(expected.abs().max())
                )
    finally:
        torch.set_num_threads(before)


def test_a_backward_pass_without_pre_activations_is_an_error(native_libraries: dict[str, object]) -> None:
    values, routing, widths = arguments("prime tokens")
    x, gate, *weights = low_gates(values, torch.bfloat16)
    empty, order = x.new_empty(0), torch.arange(len(gate))
    layer = (x, routing.token_N, gate, routing.num_tokens_E, *weights, widths)
    for variant in native_libraries.keys() - {"why"}:
        with (
            library(variant),
            pytest.raises(ConfigError, match="room = 0 in the forward pass kept no pre-activations"),
        ):
            torch.ops.hmoe.expert_ffn_backward(x, *layer, empty, empty, order, True, "cpu")


def test_the_library_and_onednn_share_tile_registers(native_libraries: dict[str, object]) -> None:
    """oneDNN configures them too, and remembers how: products before and after a layer are right."""
    values, routing, widths = arguments("prime tokens")
    a = torch.randn(64, 96).bfloat16()
    expected = a @ a.T
    for variant in native_libraries.keys() - {"why"}:
        with library(variant):
            for _ in range(3):
                run("cpu", low_gates(values, torch.bfloat16), routing, widths, gradient(values))
                assert torch.equal(a @ a.T, expected)


def test_the_build_command_builds_what_is_then_found(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-m", "hmoe.kernels.build"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert len((result.stdout + result.stderr).splitlines()) == 1
    if result.returncode == 2:  # this machine cannot, or has no compiler
        assert result.stderr.startswith("hmoe: error: ")
        assert not list(tmp_path.rglob("*.so"))
        return
    assert result.returncode == 0
    assert result.stdout.startswith("hmoe: built (")
    code = "from hmoe.kernels import native; assert native.get_library() is not None; print(native.describe_library())"
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("built (")


def test_what_stands_in_the_way_of_a_build_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "read_processor_features", lambda: {"avx2"})
    with pytest.raises(ConfigError, match="nothing to build: this processor lacks avx512f"):
        build.build_library()
    assert native.describe_library().startswith("not for this machine: this processor lacks")
    monkeypatch.setattr(native, "explain_obstacle", lambda: None)
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler found, looked for no-such-compiler"):
        build.build_library()
    assert "not built: bfloat16 layers were 1.5 to 3 times faster" in native.describe_library()
    assert "needs a C++ compiler (no-such-compiler)" in native.describe_library()


def test_a_failing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'x.cpp:1: error: no' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(native, "explain_obstacle", lambda: None)
    monkeypatch.setattr(native, "COMPILERS", (str(compiler),))
    with pytest.raises(HMoEError, match=r"g\+\+ failed: x.cpp:1: error: no"):
        build.build_library()


def test_another_source_or_processor_is_another_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = native.library_path()
    monkeypatch.setattr(native, "read_processor_features", lambda: {"avx512f"})
    second = native.library_path()
    (tmp_path / "a.cpp").write_text("int x;")
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    assert len({first, second, native.library_path()}) == 3


def test_a_damaged_library_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "kernels.so").write_bytes(b"not a library")
    assert native.load_library(tmp_path / "kernels.so") is None


def test_a_cache_that_cannot_be_written_is_one_line() -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": "/proc/no-such"}
    command = [sys.executable, "-m", "hmoe.kernels.build"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("hmoe: error: ")


def test_no_memory_is_an_error_and_no_abort(native_libraries: dict[str, object]) -> None:
    code = """
import resource, sys, torch
from hmoe.kernels import native, expert_ffn
native.get_library = lambda: native.load_library(sys.argv[1])
torch.set_num_threads(2)
x = torch.zeros(4096, 512, dtype=torch.bfloat16)
w = torch.zeros(3, 4096, 512, dtype=torch.bfloat16)
pairs = torch.arange(4096).repeat(2), torch.ones(8192), torch.tensor([4096, 4096])
torch.ones(2000, 2000) @ torch.ones(2000, 2000)  # the threads are there, with their stacks
used = int(open("/proc/self/statm").read().split()[0]) * 4096
for megabytes in range(2, 60, 2):
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), -1))
    try:
        with torch.no_grad():
            expert_ffn(x, *pairs, *w, (2048, 2048), "cpu")
        print("done")
        break
    except (MemoryError, RuntimeError) as error:
        print(type(error).__name__)
"""
    for name, loaded in native_libraries.items():
        if name != "why":
            result = subprocess.run(
                [sys.executable, "-c", code, loaded._name], capture_output=True, text=True, check=False
            )  # type: ignore[attr-defined]
            assert result.returncode == 0, result.stderr[-500:]
            lines = result.stdout.split()
            assert lines[-1] == "done"
            assert "MemoryError" in lines
