"""Run folder -> Hugging Face folder -> run folder: the same bits; and the same function as a Mixtral."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralForCausalLM

from hmoe import ConfigError
from hmoe.cli.main import run_command_line as hmoe
from hmoe.config import recipes
from hmoe.data.tokenizer import ByteTokenizer, train_bpe
from hmoe.hub import HMoEForCausalLM
from hmoe.hub.export import ExportOptions, export_opened_model, measure_padding
from hmoe.model.transformer import build_transformer
from hmoe.runs.open_model import OpenedModel, open_model
from tests.conftest import sentences
from tests.model.test_transformer import config
from tests.train.helpers import run as train_run

ROPE = {"kind": "yarn", "factor": 4.0, "original_length": 16}
MODELS: dict[str, dict[str, Any]] = {
    "top-k": {},
    "top-p": {"moe": {"widths": [5, 9, 4], "router": {"name": "top_p", "p": 0.7}, "router_entropy": 0.03}},
    "raw gates": {"moe": {"widths": [5, 9, 4], "router": {"name": "top_k", "k": 2, "renormalize": False}}},
    "tied, wide heads, QK-norm, yarn": {
        "tied": True,
        "head_dim": 6,
        "qk_norm": "width",
        "rope_scaling": ROPE,
    },
    "a dense layer": {"ffn": 7, "moe": {"widths": [5, 9], "dense_layers": [0]}},
    "dense": {"moe": None, "ffn": 11},
    "rectified": {
        "moe": {
            "widths": [5, 9, 4],
            "router": {
                "name": "top_k",
                "k": 1,
                "capacity_factor": 1.0,
                "eval_capacity_factor": 0.5,
                "rectify": "fr+ir",
                "when": "fewer",
            },
        }
    },
    "bias, groups": {
        "moe": {
            "widths": [5, 9, 4, 6],
            "router": {
                "name": "top_k",
                "k": 2,
                "scores": "sigmoid",
                "bias_rate": 0.1,
                "groups": 2,
                "keep_groups": 1,
                "gate_scale": 2.5,
            },
        }
    },
    "experts choose": {
        "moe": {"widths": [5, 9, 4], "router": {"name": "expert_choice", "capacity_factor": 2.0}}
    },
    "everything beside": {
        "moe": {
            "widths": [5, 9, 4],
            "shared": 6,
            "zero": {"null": 1, "copy": 1, "constant": 2},
            "hyper": {"dim": 5, "embedding": 6, "hidden": 7, "layer_embedding": 3},
        }
    },
}


def say(text: str) -> None:
    raise AssertionError(text)


def opened(**changes: Any) -> OpenedModel:
    model = build_transformer(config(vocab=300, **changes), 3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return OpenedModel(model, train_bpe([sentences(0, 40)], 300), 64, "small")


def tokens() -> torch.Tensor:
    return torch.randint(0, 290, (2, 21))


@pytest.mark.parametrize("kind", list(MODELS))
def test_there_and_back_not_a_bit_changes(kind: str, tmp_path: Path) -> None:
    model = opened(**MODELS[kind])
    export_opened_model(model, tmp_path, tmp_path / "out", ExportOptions(shard_size="10KB"))
    ids = tokens()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs) is HMoEForCausalLM
    again = open_model(tmp_path / "out", say)
    assert recipes_equal(again, model)
    for (name, ours), (same, back) in zip(
        model.model.named_parameters(), again.model.named_parameters(), strict=True
    ):
        assert name == same
        assert torch.equal(ours, back), name
    with torch.no_grad():
        logits = model.model(ids)[0]
        assert torch.equal(again.model(ids)[0], logits)
        torch.testing.assert_close(theirs(ids).logits, logits, rtol=1e-5, atol=5e-6)  # sums in another order
    assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert again.context_length == 64


def recipes_equal(a: OpenedModel, b: OpenedModel) -> bool:
    """The same architecture; a head width, key/value heads and a context that are the default are written out."""
    left, right = a.model.config, b.model.config
    same = {"head_dim": right.head_width, "kv_heads": right.num_kv_heads, "context": b.context_length}
    return left == replace(right, **same)


@pytest.mark.parametrize(
    "changes", [{}, {"tied": True, "kv_heads": 2, "head_dim": 6, "rope_scaling": ROPE}], ids=["plain", "more"]
)
def test_the_same_function_as_an_ordinary_mixtral(changes: dict[str, Any], tmp_path: Path) -> None:
    model = opened(**changes)
    report = export_opened_model(model, tmp_path, tmp_path / "out", ExportOptions("mixtral"))
    assert report.padded_width == 16
    assert f"{report.padding:.2f}" == "2.67"
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs) is MixtralForCausalLM
    ids = tokens()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model.model(ids)[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            open_model(tmp_path / "out", say).model(ids)[0], model.model(ids)[0], rtol=1e-5, atol=1e-5
        )
    ours = HMoEForCausalLM.from_pretrained(export_as_hmoe(model, tmp_path))
    options = {
        "max_new_tokens": 12,
        "min_new_tokens": 12,
        "do_sample": False,
        "attention_mask": torch.ones_like(ids),
    }
    assert torch.equal(theirs.generate(ids, **options), ours.generate(ids, **options))


def export_as_hmoe(model: OpenedModel, folder: Path) -> Path:
    export_opened_model(model, folder, folder / "hmoe", ExportOptions())
    return folder / "hmoe"


def test_the_cost_of_padding() -> None:
    assert measure_padding((8, 8)) == 1
    assert measure_padding((72, 88, 104, 120, 136, 152, 168, 184)) == pytest.approx(1.4375)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("top-p", "router is top-p"),
        ("raw gates", "raw probabilities"),
        ("a dense layer", r"layers \[0\] are dense"),
        ("dense", "the model is dense"),
        ("tied, wide heads, QK-norm, yarn", "queries and keys are normalised"),
        ("rectified", r"router\.capacity_factor = 1\.0"),
        ("bias, groups", r"router\.gate_scale = 2\.5"),
        ("everything beside", r"moe\.shared is not part of Mixtral"),
    ],
)
def test_what_mixtral_cannot_say_is_refused(kind: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        export_opened_model(opened(**MODELS[kind]), tmp_path, tmp_path / "out", ExportOptions("mixtral"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (ExportOptions("gguf"), "must be one of hmoe, mixtral"),
        (ExportOptions("mixtral", with_code=True), "with_code has no effect with form = mixtral"),
    ],
)
def test_options_that_cannot_work(how: ExportOptions, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        export_opened_model(opened(), tmp_path, tmp_path / "out", how)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_opened_model(opened(), tmp_path, tmp_path / "out", ExportOptions())
    with pytest.raises(ConfigError, match="is not empty"):
        export_opened_model(opened(), tmp_path, tmp_path / "out", ExportOptions())


def test_bytes_are_the_same_bytes_under_autotokenizer(tmp_path: Path) -> None:
    model = replace(opened(), tokenizer=ByteTokenizer(), chat_template="{{ messages[0]['content'] }}")
    export_opened_model(model, tmp_path, tmp_path / "out", ExportOptions())
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "Naïve — 日本\n\n\t<|x|> 🙂"
    assert theirs(text)["input_ids"] == list(text.encode())
    assert theirs.decode(list(text.encode())) == text
    assert theirs.eos_token_id == ByteTokenizer.separator
    assert theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert theirs(["a", "bc"], padding=True)["input_ids"][0].count(ByteTokenizer.separator) == 1
    assert (
        json.loads((tmp_path / "out" / "generation_config.json").read_text())["pad_token_id"]
        == ByteTokenizer.separator
    )
    assert "pad_token_id" not in {
        k for k, v in json.loads((tmp_path / "out" / "config.json").read_text()).items() if v is not None
    }
    again = open_model(tmp_path / "out", say)
    assert again.tokenizer.encode([text]) == [list(text.encode())]
    assert again.tokenizer.separator == 256
    assert again.chat_template == model.chat_template


def test_what_begins_and_ends_a_text_and_the_template_survive_import_and_export(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(train_bpe([sentences(0, 40)], 296).content.decode())
    tokenizer.add_special_tokens(["<s>", "<|eot|>"])
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    source = tmp_path / "source"
    export_opened_model(opened(), tmp_path, source, ExportOptions())
    tokenizer.save(str(source / "tokenizer.json"))
    first, ends = tokenizer.token_to_id("<s>"), [0, tokenizer.token_to_id("<|eot|>")]
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "bos_token_id": first}))
    (source / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("{{ unk_token }}")
    named = json.loads((source / "tokenizer_config.json").read_text())
    named.pop("add_bos_token")  # it says that nothing goes before a text
    (source / "tokenizer_config.json").write_text(
        json.dumps({**named, "bos_token": "<s>", "unk_token": "<|eot|>"})
    )
    run, again = tmp_path / "run", tmp_path / "again"
    assert hmoe(["import", str(source), str(run), "data.sequence_length=32", "data.batch_tokens=128"]) == 0
    assert hmoe(["export", str(run), str(again)]) == 0
    for folder in (source, run, again):
        found = open_model(folder, say)
        assert found.begin == (first,)
        assert found.tokenizer.ends == tuple(ends)
        assert found.chat_template == "{{ bos_token }}{{ messages[0].content }}"
        assert found.context_length == 64
    written = json.loads((again / "config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"]) == (first, ends)
    theirs = AutoTokenizer.from_pretrained(again)
    assert (theirs.bos_token, theirs.unk_token) == ("<s>", "<|eot|>")
    assert (
        theirs.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, chat_template="rag")
        == "<|eot|>"
    )
    assert json.loads((again / "generation_config.json").read_text())["eos_token_id"] == ends


def test_the_card_speaks_of_the_weights_that_are_exported(tmp_path: Path) -> None:
    train_run(tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = sorted((tmp_path / "run" / "checkpoints").iterdir())
    step = int(last[-2].name.removeprefix("step-"))
    shutil.rmtree(last[-1])
    assert hmoe(["export", str(tmp_path / "run"), str(tmp_path / "hf")]) == 0
    card = (tmp_path / "hf" / "README.md").read_text()
    assert f"| training steps | {step} |" in card
    assert f"| training tokens | {next(row['tokens'] for row in rows if row['step'] == step):,} |" in card


def test_bfloat16_weights_are_the_rounded_ones(tmp_path: Path) -> None:
    model = opened()
    export_opened_model(model, tmp_path, tmp_path / "out", ExportOptions(dtype=torch.bfloat16))
    again = open_model(tmp_path / "out", say)
    for (_, ours), (_, low) in zip(
        model.model.named_parameters(), again.model.named_parameters(), strict=True
    ):
        assert low.dtype == torch.bfloat16
        assert torch.equal(low, ours.to(torch.bfloat16))


@pytest.mark.parametrize(
    "kind",
    [
        "everything beside",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("top-k", "top-p", "rectified")),
    ],
)
def test_code_loads_where_hmoe_is_not_installed(kind: str, tmp_path: Path) -> None:
    model, ids = opened(**MODELS[kind]), tokens()
    export_opened_model(model, tmp_path, tmp_path / "out", ExportOptions(with_code=True))
    script = f"""
import sys
sys.modules["hmoe"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "out")!r}, trust_remote_code=True).eval()
ids = torch.tensor({ids.tolist()})
out = model(ids, labels=ids, output_router_logits=True)
out.loss.backward()
model.generate(ids, max_new_tokens=3)
AutoTokenizer.from_pretrained({str(tmp_path / "out")!r}, trust_remote_code=True)
torch.save(out.logits, {str(tmp_path / "logits")!r})
"""
    env = {
        "HF_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = torch.load(tmp_path / "logits")
    torch.testing.assert_close(found, model.model(ids)[0], rtol=1e-5, atol=1e-5)
    for file in (tmp_path / "out").glob("*.py"):  # nothing but PyTorch, transformers and each other
        for name in re.findall(r"^\s*(?:from|import) ([\w.]+)", file.read_text(), re.MULTILINE):
            top = name.split(".")[0]
            assert top in ("", "torch", "transformers", "huggingface_hub", *sys.stdlib_module_names), (
                f"{file.name}: {name}"
            )


def test_the_command_line_from_run_to_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Train, export, import, prepare text with the model's tokenizer, train on: the model goes on from its weights."""
    train_run(tmp_path / "run")
    source, there, back = str(tmp_path / "run"), str(tmp_path / "hf"), str(tmp_path / "back")
    assert hmoe(["export", source, there]) == 0
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "expert widths, hidden units" in card
    assert "training tokens" in card
    assert re.search(r"\| 0 \| 0\.\d{3} ", card)
    assert hmoe(["import", there, back, "data.path=" + str(tmp_path / "data"), "data.sequence_length=32",
                 "data.batch_tokens=128", "data.micro_batches=2", "train.steps=2", "train.device=cpu",
                 "train.sample_every=0"]) == 0  # fmt: skip
    ids = tokens() % 257
    with torch.no_grad():
        assert torch.equal(
            open_model(tmp_path / "back", say).model(ids)[0], open_model(tmp_path / "run", say).model(ids)[0]
        )
    (tmp_path / "text.txt").write_text(sentences(0, 500))
    recipe = f"{back}/config.yaml"
    wrong, right = (
        ["data", "prepare", str(tmp_path / "text.txt"), "--validation", "0", "--tokenizer"] for _ in range(2)
    )
    assert hmoe([*wrong, "bpe:257", "--out", str(tmp_path / "wrong")]) == 0
    assert hmoe(["train", recipe, "--run", back, "data.path=" + str(tmp_path / "wrong")]) == 3
    assert "was not prepared with the tokenizer of the model" in capfd.readouterr().err
    assert hmoe(["train", recipe, "--run", back, "model.layers=3"]) == 2
    assert "model.layers: differs" in capfd.readouterr().err
    assert hmoe([*right, back, "--out", str(tmp_path / "data")]) == 0
    data = "data.path=" + str(tmp_path / "data")
    assert hmoe(["train", recipe, "--run", back, data, "optim.lr=1e-5", "train.eval_every=0"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "back" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert hmoe(["train", recipe, "--run", back, "optim.lr=1e-4"]) == 2
    assert hmoe(["import", there, back]) == 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            ["export", "/nowhere", "/tmp/x"],
            2,
            "/nowhere: no such folder; must be a run folder or a Hugging Face folder",
        ),
        (["export", "/nowhere", "/tmp/x", "--precision", "fp8"], 2, "must be float32 or bfloat16"),
        (
            ["export", "/nowhere", "/tmp/x", "--shard-size", "foo"],
            2,
            "--shard-size foo: must be a number with KB",
        ),
        (["import", "/nowhere", "/nowhere/x"], 2, "/nowhere: no such folder"),
        (["import", "/nowhere", "/usr"], 2, "exists and is not empty"),
    ],
)
def test_errors_are_one_line(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hmoe(words) == code
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_the_model_of_an_import_comes_from_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_opened_model(opened(), tmp_path, tmp_path / "hf", ExportOptions())
    words = ["import", str(tmp_path / "hf"), str(tmp_path / "run")]
    assert hmoe([*words, "model.dim=32"]) == 2
    assert "model.dim: comes from" in capsys.readouterr().err
    assert hmoe([*words, "model.moe.parameter_penalty=0.2", "optim.lr=1e-5"]) == 0
    found = recipes.read_recipe(str(tmp_path / "run" / "config.yaml"))[1]
    assert found.model.moe is not None
    assert found.model.moe.parameter_penalty == 0.2
    assert found.optim.lr == 1e-5
    assert found.data.path == str(Path.cwd() / "data" / "hf")
