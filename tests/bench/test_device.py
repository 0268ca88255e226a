"""`hmoe bench` on a GPU, without one: what a GPU would see is recorded.

"cuda" is mapped to the CPU, and events are stubs.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from hmoe.bench import contenders, layer, measure, model
from hmoe.bench.shapes import LayerShape
from hmoe.cli.main import run_command_line
from hmoe.errors import ConfigError, HMoEError

FACTORIES = {"randn", "rand", "zeros", "ones", "empty", "full", "tensor", "arange", "randint"}
READS = {"tolist", "item", "cpu", "__float__", "__int__", "__bool__", "numpy"}
EVENT_MS = 1.5
BENCH = str(Path(measure.__file__).parent)


class FakeGpu(TorchFunctionMode):
    """Runs on the CPU what is meant for "cuda".

    It notes where hmoe.bench forgets a device, or reads a tensor on the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []  # begin, end, sync, sleep, read, and what tests add
        self.forgotten: list[str] = []
        self.moved: set[str] = set()
        self.autocast: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        caller = sys._getframe(1)
        if caller.f_code.co_filename.startswith(BENCH):
            if name in FACTORIES and "device" not in kwargs:
                self.forgotten.append(f"{caller.f_code.co_qualname}: {name}")
            if name in READS:
                self.log.append("read")
        return func(*map(_to_cpu, args), **{key: _to_cpu(value) for key, value in kwargs.items()})

    def timed(self) -> list[list[str]]:
        """What happened between each pair of events."""
        spans: list[list[str]] = []
        for entry in self.log:
            if entry == "begin":
                spans.append([])
            elif spans and "end" not in spans[-1]:
                spans[-1].append(entry)
        return spans


def _to_cpu(value: Any) -> Any:
    return "cpu" if isinstance(value, str | torch.device) and str(value) == "cuda" else value


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    fake = FakeGpu()

    class Event:
        count = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            Event.count += 1
            fake.log.append("begin" if Event.count % 2 else "end")

        def elapsed_time(self, end: "Event") -> float:
            assert fake.log[-1] == "sync"  # else not known yet
            return EVENT_MS

    move, autocast = torch.nn.Module.to, torch.autocast

    def to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        if "cuda" in args:
            fake.moved.add(type(self).__name__)
        return move(self, *map(_to_cpu, args), **kwargs)

    def record_autocast(device: str, *args: Any, **kwargs: Any) -> torch.autocast:
        if sys._getframe(1).f_code.co_filename.startswith(BENCH):
            fake.autocast.add(device)
        return autocast(_to_cpu(device), *args, **kwargs)

    cuda: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True, "Event": Event, "synchronize": lambda: fake.log.append("sync"),
        "_sleep": lambda cycles: fake.log.append("sleep"), "get_device_name": lambda: "Some GPU",
        "mem_get_info": lambda: (1 << 35, 1 << 36),
    }  # fmt: skip
    for name, stub in cuda.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(torch, "autocast", record_autocast)
    monkeypatch.setattr(measure, "FLUSH_BYTES", 8)
    monkeypatch.setattr(layer, "measure_read_bandwidth", lambda device: 1e10)
    monkeypatch.setattr(layer, "measure_peak_flops", lambda dtype, device: 1e11)
    monkeypatch.setattr("hmoe.bench.decode.measure_read_bandwidth", lambda device: 1e10)
    measure._flush_buffer.cache_clear()
    with fake:
        yield fake
    measure._flush_buffer.cache_clear()


OWN = ["layer", "--dim", "32", "--widths", "16,48,32", "--tokens", "37", "--rounds", "3"]


def bench(*words: str, out: Path) -> dict[str, Any]:
    assert run_command_line(["bench", *words, "--device", "cuda", "--out", str(out)]) == 0
    (path,) = out.glob("*-cuda-*.json")
    content: dict[str, Any] = json.loads(path.read_text())
    assert content["machine"]["gpu"] == "Some GPU"
    assert content["timing"].startswith("CUDA events")
    assert "L2 flushed" in content["timing"]
    return content


def test_a_call_is_timed_by_events_and_by_the_clock(gpu: FakeGpu) -> None:
    timing = measure.time_call(lambda: gpu.log.append("call"), "cuda")
    assert gpu.log == ["sync", "begin", "call", "end", "sync"]
    assert timing.seconds == EVENT_MS / 1e3 != timing.wall_seconds > 0


def test_queued_launches_wait_behind_a_sleep_and_the_clock_does_not(gpu: FakeGpu) -> None:
    hooks = {"before": lambda: gpu.log.append("before"), "after": lambda: gpu.log.append("after")}
    measure.time_interleaved({"a": lambda: gpu.log.append("call")}, 1, 0, "cuda", **hooks, queued=True)
    call = ["begin", "call", "end", "sync"]
    assert gpu.log == ["before", "sync", *call, "before", "sync", "sleep", *call, "after"]


def test_a_kernel_is_timed_again_and_again_behind_one_sleep(gpu: FakeGpu) -> None:
    assert measure.kernel_milliseconds(lambda: gpu.log.append("call"), "cuda", repeats=2) == EVENT_MS
    assert gpu.log == [*["call"] * 3, "sync", "sleep", *["begin", "call", "end"] * 2, "sync"]


def test_gradients_of_a_call_do_not_add_to_those_of_another(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*arguments: Any) -> contenders.Contender:
        contender = contenders.make_contender(*arguments)
        forward, module = contender.forward, contender.module

        def checked(x: torch.Tensor) -> torch.Tensor:
            assert all(tensor.grad is None for tensor in (x, *module.parameters()))
            return forward(x)

        contender.forward = checked
        return contender

    monkeypatch.setattr(layer, "make_contender", make)
    racing = layer.race_contenders(
        LayerShape(32, (16, 48), 1, 8), torch.float32, "cuda", True, 3, ["hmoe loop"]
    )
    assert all(p.grad is not None for p in racing["hmoe loop"].module.parameters())


def test_layer_reaches_the_device_and_reads_nothing_while_the_clock_runs(
    gpu: FakeGpu, tmp_path: Path
) -> None:
    content = bench(*OWN, "--against", "hmoe", "--against", "hmoe loop", "--dtype", "float32", out=tmp_path)
    assert gpu.forgotten == []
    assert {"MoE", "SwiGLU"} <= gpu.moved
    assert len(content["rows"]) == 6
    assert all(row["ms"] == EVENT_MS != row["wall_ms"] > 0 for row in content["rows"])
    spans = gpu.timed()
    assert len(spans) == 2 * 2 * 3 * (3 + 3)  # calls, passes, contenders, rounds
    assert all("read" not in span for span in spans)
    assert gpu.log.count("read") >= 2 * 2 * 6  # units of two contenders, after every round of both passes


def test_units_are_those_of_the_call_that_was_timed(gpu: FakeGpu) -> None:
    racing = layer.race_contenders(
        LayerShape(32, (16, 48, 32), 2, 29), torch.float32, "cuda", False, 3, ["hmoe"]
    )
    assert len(racing["hmoe"].activated_units) == len(racing["hmoe"].wall_seconds) == 3
    assert all(29 * (16 + 32) <= units <= 29 * (48 + 32) for units in racing["hmoe"].activated_units)
    assert len(set(racing["hmoe"].activated_units)) > 1


def test_decode_on_the_device(gpu: FakeGpu, tmp_path: Path) -> None:
    (row,) = bench("decode", "--shape", "small", "--dtype", "float32", "--rounds", "3", out=tmp_path)["rows"]
    assert gpu.forgotten == []
    assert gpu.moved == {"MoE"}
    assert row["layer us"] == row["experts us"] == pytest.approx(1e3 * EVENT_MS / 12)
    assert row["layer wall us"] > 0


SMALL = [
    "data.tokenizer=bytes",
    "data.sequence_length=32",
    "--data.batch_tokens",
    "128",
    "data.micro_batches=2",
    "train.activation_checkpointing=true",
    "model.dim=32",
    "model.heads=2",
]


def test_step_on_the_device_with_overrides(gpu: FakeGpu, tmp_path: Path) -> None:
    content = bench("step", "tiny", *SMALL, "--precision", "bfloat16", "--rounds", "3", out=tmp_path)
    *rows, parts = content["rows"]
    assert gpu.forgotten == []
    assert gpu.moved == {"Transformer"}
    assert gpu.autocast == {"cuda"}
    assert [row["preset"] for row in rows] == ["tiny", "tiny-equal", "tiny-dense"]
    assert all(row["ms"] == EVENT_MS != row["wall_ms"] > 0 for row in rows)
    assert rows[0]["tokens_per_second"] == pytest.approx(128 / (EVENT_MS / 1e3))  # of the overridden batch
    assert all(row["micro_batches"] == 2 and row["activation_checkpointing"] is True for row in rows)
    assert set(parts["ms"]) == set(parts["wall_ms"]) == set(parts["shares_of_a_step"]) - {"what is left"}
    assert content["overrides"] == SMALL


class _Mixtral(torch.nn.Module):
    def set_experts_implementation(self, name: str) -> None: ...

    def forward(self, ids: torch.Tensor, **options: Any) -> None: ...

    def generate(self, ids: torch.Tensor, **options: Any) -> None: ...


def test_model_on_the_device(gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_mixtral", lambda config, dtype: _Mixtral())
    words = ["model", "tiny", "--prompt", "16", "--new", "2", "--rounds", "3", "--dtype", "float32"]
    content = bench(*words, out=tmp_path)
    assert gpu.forgotten == []
    assert gpu.moved == {"Transformer", "_Mixtral"}
    assert set(content["ms"].values()) == {EVENT_MS}
    assert all(time > 0 for time in content["wall_ms"].values())
    assert content["tokens_per_second"]["hmoe read"] == pytest.approx(16 / (EVENT_MS / 1e3))


def _too_old(name: str, layer: Any) -> str | None:
    return f"{name} is too old for {len(layer.widths)}" if name == "triton" else None


def test_hmoe_triton_forces_the_backend_and_is_left_out_with_its_reason(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = LayerShape(32, (16, 48), 1, 8)
    assert contenders.make_contender("hmoe triton", shape, torch.float32, "cuda").module.backend == "triton"
    monkeypatch.setattr(contenders.choice, "explain_refusal", _too_old)
    with pytest.raises(
        ConfigError, match="against = hmoe triton: triton is too old for 2; nearest choice: hmoe loop"
    ):
        contenders.check_contenders(["hmoe triton"], {"own": shape}, ["bfloat16"], "cuda")
    monkeypatch.setattr(layer, "CONTENDERS", ("hmoe triton", "hmoe"))
    content = bench(*OWN, out=tmp_path)
    assert content["left_out"] == [{"contender": "hmoe triton", "reason": "triton is too old for 3"}]
    assert [row["contender"] for row in content["rows"]] == ["dense", "hmoe"] * 2


@pytest.mark.parametrize("asked", [None, ["hmoe triton"]])
def test_a_wrong_triton_layer_is_not_timed(
    asked: list[str] | None, gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it was not asked for, the others are."""

    def check(shape: LayerShape, dtype: torch.dtype, device: str, backend: str | None = None) -> None:
        if backend == "triton":
            raise HMoEError("y: too large an error")

    monkeypatch.setattr(contenders.choice, "explain_refusal", lambda *_: None)
    monkeypatch.setattr(layer, "check_layer_results", check)
    lines: list[str] = []
    measurement = layer.Measurement(
        asked, False, measure.BenchOptions("cuda", out=tmp_path, say=lines.append)
    )
    if asked:
        with pytest.raises(HMoEError, match="too large an error"):
            measurement._choose(LayerShape(32, (16, 48), 1, 8), torch.float32)
    else:
        assert "hmoe triton" not in measurement._choose(LayerShape(32, (16, 48), 1, 8), torch.float32)
        assert "left out: hmoe triton: y: too large an error" in lines


def test_a_profile_names_the_longest_kernels(
    gpu: FakeGpu, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def profile(call: Callable[[], None], device: str, most: int) -> dict[str, Any]:
        call()
        kernel = {"kernel": "up_kernel", "ms": 0.25, "calls": 3}
        return {"wall_ms": 2.0, "busy_ms": 0.5, "launches": 117, "longest": [kernel]}

    monkeypatch.setattr(layer, "profile_call", profile)
    content = bench(*OWN, "--against", "hmoe loop", "--profile", out=tmp_path)
    (profiled,) = content["profiles"]
    assert (profiled["contender"], profiled["launches"]) == ("hmoe loop", 117)
    out = capsys.readouterr().out
    assert "own bfloat16: hmoe loop, forward+backward: 117 launches, busy 0.50 of 2.00 ms" in out
    assert "0.250 ms     3 calls  up_kernel" in out


@pytest.mark.parametrize("verb", ["layer", "step", "decode", "model"])
def test_without_a_gpu_one_line_names_the_cpu(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["bench", verb, "--device", "cuda", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("--device cuda: PyTorch sees no GPU; nearest choice: cpu")
    assert list(tmp_path.iterdir()) == []
