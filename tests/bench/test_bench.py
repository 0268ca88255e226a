"""The benchmarks measure what they say, in tiny shapes; no time is asserted."""

import json
from pathlib import Path

import pytest
import torch

from hmoe.bench import correctness, layer, measure, step
from hmoe.cli.main import run
from hmoe.errors import HMoEError


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's limits take a gigabyte and seconds; here only their use is tested."""
    monkeypatch.setattr(layer, "read_bandwidth", lambda device: 1e10)
    monkeypatch.setattr(layer, "peak_flops", lambda dtype, device: 1e11)
    monkeypatch.setattr("hmoe.bench.decode.read_bandwidth", lambda device: 1e10)


OWN = ["bench", "layer", "--dim", "32", "--widths", "16,48,32", "--tokens", "37", "--rounds", "3"]


def test_layer_races_every_contender_and_writes_it_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*OWN, "--dtype", "float32", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    (path,) = tmp_path.glob("layer-cpu-*threads-*.json")
    assert f"written to {path}" in out
    content = json.loads(path.read_text())
    assert {"processor", "threads", "torch", "date", "kernels"} <= set(content["machine"])
    assert "hmoe triton" in [line["contender"] for line in content["left_out"]]
    names = [
        "dense",
        "hmoe",
        "hmoe equal",
        "hmoe loop",
        "hmoe eager loop",
        "transformers eager",
        "transformers grouped_mm",
    ]
    for backward in ("forward+backward", "forward"):
        rows = [row for row in content["rows"] if row["pass"] == backward]
        assert [row["contender"] for row in rows] == names
        assert rows[0]["ratio"] == 1
        assert all(row["ms"] > 0 and row["tflops_per_second"] > 0 and row["roofline_share"] > 0 for row in rows)
        assert all(row["widths"] == [16, 48, 32] and row["tokens"] == 37 for row in rows)


def test_a_ratio_is_at_equal_activated_work() -> None:
    """A contender that did twice the work in the same time counts as twice as fast."""
    shape = layer.Shape(32, (16, 48), 1, 8)
    racing = {
        name: layer.Contender(torch.relu, lambda: 0.0, torch.nn.Linear(2, 2), None, [0.5, 0.5], [units, units])
        for name, units in (("dense", 100.0), ("other", 200.0))
    }
    dense, other = layer.rows_of(shape, torch.float32, False, racing, {"flops": 1e9, "bytes": 1e9})
    assert (dense["ratio"], other["ratio"]) == (1.0, 2.0)
    assert dense["tflops_per_second"] == pytest.approx(6 * 32 * 100 / 0.5 / 1e12)
    weights, tokens = 6 * 4, 2 * 8 * 32 * 4
    assert dense["least_megabytes"] == pytest.approx((weights + tokens) / 1e6)
    assert dense["roofline_share"] == pytest.approx(6 * 32 * 100 / 1e9 / 0.5)


def test_a_wrong_layer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = correctness.expert_ffn
    monkeypatch.setattr(correctness, "expert_ffn", lambda *a: real(*a) * (1.01 if a[-1] is None else 1))
    with pytest.raises(HMoEError, match=r"y of Shape.* above twice PyTorch's .* nothing was timed"):
        correctness.check(layer.Shape(32, (16, 48), 1, 29), torch.float32, "cpu")


def test_our_contender_counts_the_units_it_really_activated() -> None:
    shape = layer.Shape(32, (16, 48, 32), 2, 29)
    racing = layer.race(shape, torch.float32, "cpu", True, 3, ["hmoe"])
    assert len(racing["hmoe"].seconds) == len(racing["hmoe"].activated_units) == 3
    assert all(29 * (16 + 32) <= units <= 29 * (48 + 32) for units in racing["hmoe"].activated_units)
    assert len(set(racing["hmoe"].activated_units)) > 1  # the routing changed
    assert racing["dense"].activated_units == [29 * 2 * 32.0] * 3


def test_runs_are_interleaved_and_take_every_place() -> None:
    order: list[str] = []
    times = measure.interleaved({name: lambda name=name: order.append(name) for name in "abc"}, 2, 1, "cpu")
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert all(len(t) == 2 for t in times.values())


def test_decode_says_the_share_of_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["bench", "decode", "--shape", "small", "--dtype", "float32", "--rounds", "3", "--out", str(tmp_path)]) == 0
    )
    (path,) = tmp_path.glob("decode-cpu-*.json")
    (row,) = json.loads(path.read_text())["rows"]
    assert row["memory_read_us"] > 0
    assert row["share_of_memory_read_limit"] == pytest.approx(row["memory_read_us"] / row["experts us"], rel=1e-6)


def test_step_compares_siblings_and_says_where_the_time_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "step", "tiny", "--rounds", "3", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("step-tiny-*.json")
    *rows, parts = json.loads(path.read_text())["rows"]
    assert [row["preset"] for row in rows] == ["tiny", "tiny-equal", "tiny-dense"]
    shares = parts["shares_of_a_step"]
    assert {"attention", "experts", "router", "head and loss", "optimiser", "what is left"} <= set(shares)
    assert sum(shares.values()) == pytest.approx(1)


def test_a_papers_preset_is_measured_on_the_corpus_with_its_siblings() -> None:
    overrides = ["data.path=corpus", "data.tokenizer=bytes", "data.sequence_length=64", "data.batch_tokens=128",
                 "data.micro_batches=1"]  # fmt: skip
    name, config = step.load_recipe("hmoe-0.4b-topk", overrides, None, "cuda")
    assert (name, config.data.batch_tokens, config.train.precision) == ("hmoe-0.4b-topk", 128, "bfloat16")
    siblings = {"equal": "moe-0.4b-topk", "dense": "dense-0.2b"}
    assert step._comparable(name, overrides, measure.Options()) == siblings == step.siblings(name)
    assert step.siblings("tiny") == {"equal": "tiny-equal", "dense": "tiny-dense"}
    assert step.siblings("hmoe-16b-topk") == {"equal": "moe-16b-topk"}
    assert step.siblings("my.yaml") == step.siblings("dense-1b") == {}


def test_other_experts_are_measured_alone() -> None:
    lines: list[str] = []
    assert step._comparable("tiny", ["model.moe.router.k=1"], measure.Options(say=lines.append)) == {}
    assert lines == ["alone: an override changes the experts, so tiny-equal and tiny-dense would not be comparable"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["layer", "--dim", "32"], "a shape of your own needs dim and widths"),
        (["layer", "--shape", "small", "--dim", "32", "--widths", "16"], "excludes shape"),
        (["layer", "--dim", "32", "--widths", "16,x"], "widths = 16,x: must be numbers"),
        (["layer", "--dim", "32", "--widths", "16,0"], "all must be integers of at least 1"),
        (
            ["layer", "--dim", "32", "--widths", "16,32", "--top-k", "3"],
            "router.k = 3, must be at most the number of experts",
        ),
        (["layer", "--shape", "huge"], "shape = huge: must be one of 0.4B"),
        (["layer", "--against", "hmo"], "against = hmo: must be one of hmoe"),
        (["layer", "--against", "MegaBlocks"], "against = MegaBlocks: megablocks is not installed"),
        (["layer", "--against", "hmoe triton"], "against = hmoe triton: the Triton kernels run on a GPU"),
        (["layer", "--profile"], "profile counts the kernels of a GPU, with device = cuda"),
        (["layer", "--dtype", "int8"], "dtype = int8: must be bfloat16"),
        (["layer", "--device", "tpu"], "device = tpu: must be cpu or cuda"),
        (["layer", "--rounds", "1"], "greater than or equal to 3"),
        (["decode", "--shape", "huge"], "shape = huge"),
        (["decode", "--dtype", "int8"], "dtype = int8"),
        (["step", "hmoe-3b-topk"], "embedded corpus; nearest choice: quickstart"),
        (["step", "hmoe-3b-topk"], "data.path=corpus data.tokenizer=bytes"),
        (["step", "tiny", "--precision", "int8"], "train.precision"),
        (["step", "tiny", "train.precision=float64"], "train.precision = float64: must be float32 or bfloat16"),
        (
            ["step", "tiny", "--train.precision", "float32", "--precision", "float32"],
            "precision = float32 and an override",
        ),
        (["step", "tiny", "train.device=cuda"], "train.device = cuda, but device = cpu"),
        (["step", "tiny", "--alnoe"], "alnoe"),
        (["step", "tiny", "data.batch_tokens=100"], "batch_tokens = 100"),
    ],
)
def test_errors_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *words, "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_whole_model_beside_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "16", "--new", "2", "--rounds", "3", "--dtype", "float32", "--out", str(tmp_path)]
    assert run(["bench", "model", "tiny", *words]) == 0
    assert "times as fast in reading" in capsys.readouterr().out
    (path,) = tmp_path.glob("model-tiny-float32-*threads-*.json")
    content = json.loads(path.read_text())
    rates = content["tokens_per_second"]
    assert len(rates) == 7
    for part in ("read", "write"):
        best = max(rate for name, rate in rates.items() if name.startswith("transformers") and name.endswith(part))
        assert content["ratio_to_best_of_transformers"][part] == pytest.approx(rates[f"hmoe {part}"] / best)
    assert run(["bench", "model", "hmoe-0.4b-topp", *words]) == 2
    assert "needs a preset with top-k experts" in capsys.readouterr().err


def test_bfloat16_is_the_default_only_where_the_hardware_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old processor emulates it, a thousand times slower."""
    for hardware, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda supported=hardware: supported)
        assert measure.default_dtype("cpu") == expected
        assert measure.default_dtype("cuda") == "bfloat16"


def test_the_machines_limit_is_taken_from_a_product_that_it_can_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(measure, "best", lambda run, device: sizes.append(len(run.args[0])) or 1.0)
    for seconds, size in ((0.001, 2048), (1.0, 512)):
        monkeypatch.setattr(measure, "time_call", lambda run, device, s=seconds: measure.Timing(s, s))
        assert measure.peak_flops(torch.float32, "cpu") == 2 * size**3
        assert sizes.pop() == size
