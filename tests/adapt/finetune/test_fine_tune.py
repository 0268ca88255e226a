"""Fine-tuning small models on small files in the tasks' own formats."""

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    TrainingArguments,
)

from hmoe import CheckpointError, ConfigError, Hyper
from hmoe.adapt.duplicate import balance_loss, duplicate_mlps, heard
from hmoe.adapt.finetune.features import windows
from hmoe.adapt.finetune.fine_tune import Request, finetune
from hmoe.adapt.finetune.scorers import Answers, log_probs
from hmoe.adapt.finetune.tasks import Example, find, settings_of
from hmoe.adapt.finetune.trainer import BalancedTrainer, Collator
from hmoe.cli.main import run as hmoe
from hmoe.hub import attach_hyper
from tests.adapt.finetune.test_tasks import ROWS, write

WORDS = "good bad film story plot the a is was it very 0 1 2 sst2 sentence : summarize question context who me . ? cats purr".split()  # noqa: SIM905


def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return fast


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("switch")
    vocab = len(tokenizer(folder))
    torch.manual_seed(0)
    config = SwitchTransformersConfig(
        vocab_size=vocab, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_sparse_encoder_layers=1, num_decoder_layers=2,
        num_sparse_decoder_layers=1, num_heads=4, num_experts=4, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    SwitchTransformersForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    vocab = len(tokenizer(folder))
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=vocab, n_embd=32, n_layer=2, n_head=4, n_positions=64)).save_pretrained(
        folder
    )
    return folder


def reviews(count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        words = rng.choices("film story plot the a is was it very".split(), k=5)  # noqa: SIM905
        words.insert(rng.randrange(5), "good" if i % 2 else "bad")
        rows.append({"sentence": " ".join(words), "label": i % 2, "idx": i})
    return rows


@pytest.mark.parametrize("method", ["moe", "share", "hyper"])
def test_it_learns_what_can_be_learned(
    method: str, switch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SST-2's format, where one word decides."""
    write(tmp_path / "data", reviews(96, 0), "train")
    write(tmp_path / "data", reviews(24, 1), "validation")
    out = tmp_path / "out"
    command = ["finetune", "sst2", str(switch), str(out), "--data", str(tmp_path / "data"), "--method", method]
    assert hmoe([*command, "--epochs", "7", "--lr", "8e-3"]) == 0, capsys.readouterr().err
    result = json.loads((out / "results.json").read_text())
    assert len(result["epochs"]) == 7
    assert result["best"]["accuracy"] == max(row["accuracy"] for row in result["epochs"]) > 90
    assert "sst2 " + method in capsys.readouterr().out
    plain = sum(p.numel() for p in SwitchTransformersForConditionalGeneration.from_pretrained(switch).parameters())
    assert (result["parameters"] > plain) == (method != "moe")
    if method == "hyper":
        again = attach_hyper(AutoModelForSeq2SeqLM.from_pretrained(out), folder=out)
        assert sum(p.numel() for p in again.parameters()) == result["parameters"]
    more = ["finetune", "sst2", str(out), str(tmp_path / "more"), *command[4:], "--epochs", "1", "--lr", "1e-12"]
    assert hmoe(more) == 0  # goes on with what was added
    gone_on = json.loads((tmp_path / "more" / "results.json").read_text())
    assert gone_on["best"]["accuracy"] == result["epochs"][-1]["accuracy"]
    assert gone_on["parameters"] == result["parameters"]
    if method != "moe":
        assert hmoe([*more[:3], str(tmp_path / "other"), *more[4:], "--method", "moe"]) == 2
        assert f"was fine-tuned with {method}" in capsys.readouterr().err
    assert hmoe(command) == 2  # the folder is used
    assert "out" in capsys.readouterr().err


def test_only_so_many_examples_are_trained_on_and_scored(switch: Path, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write(tmp_path / "data", reviews(20, 0), split)
    words = f"--data {tmp_path / 'data'} --epochs 1 --train-examples 7 --eval-examples 3".split()
    assert hmoe(["finetune", "sst2", str(switch), str(tmp_path / "out"), *words]) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (result["train_sequences"], result["scored"]) == (7, 3)


@pytest.mark.parametrize("name", ["superglue-record", "squad", "cnn_dailymail", "superglue-multirc", "stsb"])
def test_each_kind_of_task_runs(name: str, switch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = dict(ROWS[name][0])
    if name == "squad":
        row["context"] = "it was me . " * 120  # three windows
    for split in ("train", "validation"):
        write(tmp_path / "data", [row] * 3, split)
    out = tmp_path / "out"
    assert hmoe(["finetune", name, str(switch), str(out), "--data", str(tmp_path / "data"), "--epochs", "1"]) == 0
    result = json.loads((out / "results.json").read_text())
    sequences = {"superglue-record": 6}
    assert (result["train_sequences"], result["scored"]) == (sequences.get(name, 3), 3), capsys.readouterr().err
    assert result["settings"]["beams"] == (6 if name == "cnn_dailymail" else 1)


@pytest.mark.parametrize("method", ["moe", "share", "hyper"])
def test_gpt2_with_duplicated_mlps_learns_a_text(method: str, gpt2: Path, tmp_path: Path) -> None:
    """WikiText-2's format: one column, a line per row."""
    rng = random.Random(0)
    for split, count in (("train", 60), ("validation", 12)):
        rows = [
            {"text": "the film was " + rng.choice(["good . it is", "bad . it was"]) + " the story"}
            for _ in range(count)
        ]
        write(tmp_path / "data", rows, split)
    words = f"--data {tmp_path / 'data'} --source-length 32 --epochs 16 --lr 1e-2 --method {method}".split()
    assert hmoe(["finetune", "wikitext2", str(gpt2), str(tmp_path / "out"), *words]) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["best"]["perplexity"] == min(row["perplexity"] for row in result["epochs"]) < 3
    more = [
        "finetune",
        "wikitext2",
        str(tmp_path / "out"),
        str(tmp_path / "more"),
        *words,
        "--lr",
        "1e-12",
        "--epochs",
        "1",
    ]
    assert hmoe(more) == 0
    gone_on = json.loads((tmp_path / "more" / "results.json").read_text())
    assert gone_on["best"]["perplexity"] == pytest.approx(result["epochs"][-1]["perplexity"], rel=1e-3)
    with pytest.raises(ConfigError, match="was saved with duplicated MLPs"):
        duplicate_mlps(GPT2LMHeadModel.from_pretrained(tmp_path / "out"))
    model = duplicate_mlps(GPT2LMHeadModel.from_pretrained(tmp_path / "out"), folder=tmp_path / "out")
    if method == "hyper":
        attach_hyper(model, folder=tmp_path / "out")
        assert sum(p.numel() for p in model.parameters()) == result["parameters"]


def test_of_several_windows_the_most_probable_answer_counts(switch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, fast = find("squad"), PreTrainedTokenizerFast.from_pretrained(switch)
    asked = [Example("question: who ? context: " + "it was me . " * 200, ("me",)), Example("question: a", ("bad",))]
    score = Answers(task, asked, fast, task.settings)
    assert [number for number, _ in score.windows].count(0) > 2
    made = [(0, (-5.0, "it")), (0, (-1.0, "me")), (1, (-9.0, "bad")), (0, (-3.0, "was"))]
    monkeypatch.setattr(score, "_generated", lambda model: iter(made))
    assert score(None) == {"f1": 100, "exact_match": 100}


def test_every_window_has_the_question_and_all_of_the_context_is_read(switch: Path) -> None:
    fast = PreTrainedTokenizerFast.from_pretrained(switch)
    context = " ".join(random.Random(0).choices("good bad film story plot".split(), k=900))  # noqa: SIM905
    settings = settings_of(find("squad"), source_length=100)
    settings = replace(settings, stride=20)
    made = windows(
        Example(f"question: who ? context: {context}", ("me",), head="question: who ? context:"), fast, settings
    )
    head = fast("question: who ? context:", add_special_tokens=False)["input_ids"]
    bodies = []
    for window in made:
        assert len(window["input_ids"]) <= 100
        assert window["input_ids"][: len(head)] == head
        assert window["input_ids"][-1] == 1
        bodies.append(window["input_ids"][len(head) : -1])
    whole = bodies[0] + [token for body in bodies[1:] for token in body[20:]]
    assert whole == fast(context, add_special_tokens=False)["input_ids"]


def test_log_probabilities_are_summed_to_the_end_of_a_text(switch: Path) -> None:
    model = SwitchTransformersForConditionalGeneration.from_pretrained(switch)
    scores = tuple(torch.randn(2, model.config.vocab_size) for _ in range(3))
    sequences = torch.tensor([[0, 5, 1, 0], [0, 6, 7, 1]])  # the first one ended a token earlier
    found = log_probs(model, SimpleNamespace(sequences=sequences, scores=scores))
    each = torch.stack(scores).log_softmax(-1)
    expected = [float(each[0, 0, 5] + each[1, 0, 1]), float(each[0, 1, 6] + each[1, 1, 7] + each[2, 1, 1])]
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_switch_has_its_routers_terms(switch: Path) -> None:
    model = SwitchTransformersForConditionalGeneration.from_pretrained(switch)
    fast = PreTrainedTokenizerFast.from_pretrained(switch)
    batch = Collator(DataCollatorForSeq2Seq(fast, model))([{"input_ids": [4, 5, 1], "labels": [6, 1]}])
    found = model(**batch)
    auxiliary = found.encoder_aux_loss + found.decoder_aux_loss
    z_loss = found.encoder_z_loss + found.decoder_z_loss
    text = torch.nn.functional.cross_entropy(found.logits.flatten(0, 1), batch["labels"].flatten())
    expected = text + model.router_aux_loss_coef * auxiliary + model.router_z_loss_coef * z_loss
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert auxiliary > 0


def small() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()


@pytest.mark.parametrize("k", [1, 3])
def test_duplicated_mlps_are_at_first_the_same_function(k: int) -> None:
    model, tokens = small(), torch.randint(0, 30, (2, 9))
    before = model(tokens).logits
    duplicate_mlps(model, experts=4, k=k)
    torch.testing.assert_close(model(tokens).logits, before, rtol=1e-5, atol=1e-6)
    model.train()
    torch.manual_seed(0)
    with heard(model) as routers:
        model(tokens)
    assert len(routers) == 2
    assert len(set(routers[0][2].flatten().tolist())) > 1  # noise spreads the tokens
    for name, message in (("again", "duplicated already"), ("k", "k = 4, must be from 1 to below")):
        with pytest.raises(ConfigError, match=message):
            duplicate_mlps(model if name == "again" else small(), experts=4, k=4 if name == "k" else 1)


def test_the_noisy_router_against_its_equations() -> None:
    """Shazeer et al. 2017, eq 3-5 and 8-11, one token and expert at a time."""
    model = duplicate_mlps(small(), experts=5, k=2).double().train()
    router = model.transformer.h[0].mlp.router
    torch.nn.init.normal_(router.weight)
    torch.nn.init.normal_(router.noise)
    x = torch.randn(7, 16, dtype=torch.float64)
    torch.manual_seed(5)
    load, gates, experts = (value.detach() for value in router(x))
    weight, spread = router.weight.detach(), router.noise.detach()
    torch.manual_seed(5)
    noise = torch.randn(7, 5, dtype=torch.float64)
    normal = torch.distributions.Normal(0.0, 1.0)
    gate_sums = torch.zeros(5, dtype=torch.float64)
    for t in range(7):
        clean = [float(weight[i] @ x[t]) for i in range(5)]
        std = [float(torch.log1p(torch.exp(spread[i] @ x[t]))) + 1e-2 for i in range(5)]
        noisy = [c + n * s for c, n, s in zip(clean, noise[t].tolist(), std, strict=True)]
        order = sorted(range(5), key=lambda i: -noisy[i])
        assert experts[t].tolist() == order[:2]
        weights = [float(torch.tensor(noisy).double().softmax(0)[i]) for i in order[:2]]
        assert gates[t].tolist() == pytest.approx([w / sum(weights) for w in weights])
        for i in range(5):
            others = sorted((noisy[j] for j in range(5) if j != i), reverse=True)
            expected = float(normal.cdf(torch.tensor((clean[i] - others[1]) / std[i], dtype=torch.float64)))
            assert float(load[t, i]) == pytest.approx(expected, abs=1e-9)
        for w, i in zip(weights, order[:2], strict=True):
            gate_sums[i] += w / sum(weights)
    expected = sum((v.var() / v.mean() ** 2).item() for v in (gate_sums, load.sum(0)))
    assert balance_loss(load, gates, experts).item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_duplicated_mlps_has_their_balance(tmp_path: Path) -> None:
    model = duplicate_mlps(small(), experts=4).train()
    inputs = {"input_ids": torch.randint(0, 30, (3, 9))}
    inputs["labels"] = inputs["input_ids"]
    trainer = BalancedTrainer(model=model, args=TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True))
    torch.manual_seed(0)
    loss = trainer.compute_loss(model, inputs)
    torch.manual_seed(0)
    with heard(model) as routers:
        text = model(**inputs).loss
    balance = sum(balance_loss(*said).item() for said in routers)
    assert balance > 0.01
    assert loss.item() == pytest.approx(text.item() + 1e-2 * balance, rel=1e-6)


def test_hyperexperts_on_duplicated_mlps_start_on_the_same_function() -> None:
    model, tokens = duplicate_mlps(small()), torch.randint(0, 30, (2, 9))
    before = model(tokens).logits
    attach_hyper(model, Hyper(dim=4, init="zero"))
    assert torch.equal(model(tokens).logits, before)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["colla"], 2, "task colla: unknown"),
        (["sst2", "--method", "best"], 2, "method = best, must be one of moe, share, hyper"),
        (["sst2", "--epochs", "0"], 2, "epochs = 0, must be from 1"),
        (["sst2", "--data", "nowhere"], 3, "nowhere: no file train"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], code: int, message: str, switch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hmoe(["finetune", words[0], str(switch), str(tmp_path / "out"), *words[1:]]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_models_that_do_not_fit_are_one_line(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "validation"):
        write(tmp_path / "data", reviews(4, 0), split)
    data = ["--data", str(tmp_path / "data")]
    assert hmoe(["finetune", "sst2", str(gpt2), str(tmp_path / "a"), *data]) == 2
    assert "is a gpt2 model; sst2 is for switch_transformers" in capsys.readouterr().err
    assert hmoe(["finetune", "sst2", str(tmp_path / "nothing"), str(tmp_path / "b"), *data]) == 4
    assert "nothing: cannot be read" in capsys.readouterr().err


def test_texts_and_losses_that_cannot_be_used_are_one_line(
    gpt2: Path, switch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "validation"):
        write(tmp_path / "data", [{"text": "the film was good . " * 30}] * 4, split)
    words, broken = ["--data", str(tmp_path / "data"), "--method", "moe"], tmp_path / "broken"
    model = GPT2LMHeadModel.from_pretrained(gpt2)
    model.transformer.wpe.weight.data[3] = torch.nan
    model.save_pretrained(broken)
    PreTrainedTokenizerFast.from_pretrained(gpt2).save_pretrained(broken)
    for number, (start, more, code, said) in enumerate((
        (gpt2, [], 2, "source_length = 1024, must be at most the 64 tokens that"),
        (switch, [], 2, "is a switch_transformers model; wikitext2 is for gpt2"),
        (broken, ["--source-length", "32", "--epochs", "1"], 5, "wikitext2: a score is not finite after epoch 1"),
    )):  # fmt: skip
        assert hmoe(["finetune", "wikitext2", str(start), str(tmp_path / str(number)), *words, *more]) == code
        error = capsys.readouterr().err.splitlines()
        assert said in error[-1]
        assert not any("Traceback" in line for line in error)


def test_a_loss_that_is_no_number_ends_it(switch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = SwitchTransformersForConditionalGeneration.from_pretrained(switch)
    model.lm_head.weight.data[3] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    PreTrainedTokenizerFast.from_pretrained(switch).save_pretrained(tmp_path / "broken")
    for split in ("train", "validation"):
        write(tmp_path / "data", reviews(4, 0), split)
    words = ["sst2", str(tmp_path / "broken"), str(tmp_path / "out"), "--data", str(tmp_path / "data"), "--epochs", "1"]
    assert hmoe(["finetune", *words]) == 5
    assert "sst2: the training loss is nan after epoch 1; lower --lr" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["/nowhere/x", "./x", "a/b/c", "a b", "HERE", "HERE/file"])
def test_what_is_no_model_is_told_before_data_and_network(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("hmoe.adapt.finetune.fine_tune.load", None)
    monkeypatch.setattr("hmoe.adapt.finetune.starting_model.AutoConfig", None)
    request = Request(find("sst2"), place.replace("HERE", str(tmp_path)))
    with pytest.raises(CheckpointError, match=r"no such folder|is a file|without a config\.json"):
        finetune(request, tmp_path / "out")
