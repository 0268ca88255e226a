from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from tokenizers import processors

from hmoe import ConfigError, DataError
from hmoe.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer, get_begin_tokens
from hmoe.evaluate import language_model
from hmoe.evaluate.language_model import LanguageModel
from hmoe.model.likelihood import Candidate, score_candidates
from hmoe.runs.open_model import OpenedModel, open_model
from tests.conftest import sentences
from tests.evaluate.helpers import ROUTERS, model, words
from tests.evaluate.independent import log_likelihood

LENGTH = 40


def asked(kind: str, *arguments: Any, document: int | None = None) -> Instance:
    return Instance(kind, {}, arguments, 0, ("task", document, 1))


def likelihoods(pairs: list[tuple[str, str]], per_document: int = 0) -> list[Instance]:
    documents = [n // per_document if per_document else None for n in range(len(pairs))]
    return [asked("loglikelihood", *pair, document=d) for pair, d in zip(pairs, documents, strict=True)]


def varied() -> list[tuple[str, str]]:
    """Pairs as tasks ask them: shared contexts, shared answers, one token, many, none before, too long."""
    contexts = [sentences(1, 1), f"{sentences(2, 2)}\nAnswer:", sentences(3, 9), "The  ", "the old house  "]
    pairs = [
        (context, f" {answer}")
        for context in contexts
        for answer in ("no", "a bird sings", "a bird falls or", "é\n")
    ]
    pairs += [(f"The {who}", " sings under the old stone.") for who in ("bird", "small river", "house")]
    return [*pairs, ("", "the river"), ("", "a house."), ("x", "y")]


@pytest.mark.parametrize("router", list(ROUTERS))
@pytest.mark.parametrize("per_document", [0, 1, 4])
@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_answers_are_those_of_each_sequence_alone(router: str, per_document: int, batch_tokens: int) -> None:
    moe_model, tokenizer = model(ROUTERS[router]), words()
    pairs = [pair for pair in varied() if pair[0].strip() == pair[0] and pair[0]]
    answers = LanguageModel(moe_model, tokenizer, LENGTH, batch_tokens).loglikelihood(
        likelihoods(pairs, per_document)
    )
    for (context, answer), (nats, greedy) in zip(pairs, answers, strict=True):
        alone, alone_greedy = log_likelihood(moe_model, tokenizer, context, answer, LENGTH)
        assert nats == pytest.approx(alone, rel=1e-9)
        assert greedy == alone_greedy


def test_what_greedy_decoding_writes_is_said_to_be_greedy() -> None:
    moe_model, tokenizer = model(ROUTERS["top_k"]), words()
    lm = LanguageModel(moe_model, tokenizer, LENGTH)
    context = tokenizer.decode(tokenizer.encode(["The old bird"])[0])
    ids = tokenizer.encode([context])[0]
    new = []
    for _ in range(3):
        new.append(int(moe_model(torch.tensor([[*ids, *new]]))[0][0, -1].argmax()))
    other = [*new[:2], (new[2] + 1) % 256]
    answers = lm._loglikelihood_tokens([(None, ids, new), (None, ids, other), (None, ids, new[:1])])
    assert [greedy for _, greedy in answers] == [True, False, True]


TEXT = st.text(st.sampled_from("the bird \n.é"), max_size=12)


@given(pairs=st.lists(st.tuples(TEXT, TEXT.filter(str.strip)), min_size=1, max_size=5))
@settings(deadline=None)
def test_pairs_are_split_as_the_harness_splits_them(pairs: list[tuple[str, str]]) -> None:
    lm = LanguageModel(model(ROUTERS["top_k"]), words(), LENGTH)
    for (context, answer), pair in zip(pairs, lm._encode_pairs(pairs), strict=True):
        if context.strip():
            assert pair == TemplateLM._encode_pair(lm, context, answer)
        elif not context:
            assert pair == ([lm.eot_token_id], words().encode([answer])[0])


def test_a_beginning_is_read_once_and_units_are_counted() -> None:
    tokenizer = ByteTokenizer()
    moe_model = model({"widths": [10, 10, 10, 10], "router": {"name": "top_k", "k": 3}})
    lm = LanguageModel(moe_model, tokenizer, 200)
    lm.loglikelihood(likelihoods([("abcdefgh", " xy"), ("abcdefgh", " xyz"), ("abcdefgh", " q")], 3))
    assert (
        lm.measured.tokens == 9 + 1 + 2
    )  # "abcdefgh ", then "x" and "xy": the last token of each is not read
    assert lm.measured.units == 2 * 3 * 10 * lm.measured.tokens
    assert lm.measured.truncated == 0


def test_what_is_too_long_loses_its_beginning_and_is_counted() -> None:
    moe_model, tokenizer = model(ROUTERS["top_k"]), ByteTokenizer()
    lm = LanguageModel(moe_model, tokenizer, 10)
    long = "0123456789ab"
    answers = lm.loglikelihood(likelihoods([(long, "XYZ"), (long[:8], "XYZ"), (long[4:], "XYZ")]))
    assert lm.measured.truncated == 1
    (kept,) = lm.loglikelihood(likelihoods([(long[-8:], "XYZ")]))
    assert answers[0][0] == pytest.approx(kept[0], rel=1e-9)
    assert answers[1][0] != pytest.approx(kept[0], rel=1e-3)


def test_an_answer_longer_than_the_context_is_read_in_windows() -> None:
    """Of 10 tokens that advance by 5: the first five after what is left of the context, the next after 5 and more."""
    moe_model, tokenizer = model(ROUTERS["top_k"]), ByteTokenizer()
    lm = LanguageModel(moe_model, tokenizer, 10)
    answer = "abcdefghijklm"
    requests = likelihoods([("0123456789", answer), ("0123456789", answer[:10]), ("0", answer)], 3)
    answers = lm.loglikelihood(requests)
    assert (lm.measured.windowed, lm.measured.truncated) == (2, 1)
    for (context, whole), (nats, greedy) in zip(
        [request.args for request in requests[::2]], answers[::2], strict=True
    ):
        parts = []
        for start in range(0, 13, 5):
            before, part = context + whole[:start], whole[start : start + 5]
            parts.append(log_likelihood(moe_model, tokenizer, before[-(11 - len(part)) :], part, 10))
        assert nats == pytest.approx(sum(part for part, _ in parts), rel=1e-9)
        assert greedy == all(most for _, most in parts)
    alone = log_likelihood(moe_model, tokenizer, "9", answer[:10], 10)[0]
    assert answers[1][0] == pytest.approx(alone, rel=1e-9)


def test_an_answer_without_tokens_is_one_line() -> None:
    lm = LanguageModel(model(ROUTERS["top_k"]), ByteTokenizer(), 10)
    with pytest.raises(DataError, match=r"a continuation has no tokens of its own, after \.\.\.'why\?'"):
        lm.loglikelihood(likelihoods([("ok", "fine"), ("why?", "")]))


def test_candidates_that_share_too_little_are_read_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Truncated ones: attention over all of them together would cost more than it saves."""
    groups: list[int] = []

    def counted(model: Any, asked: Any) -> Any:
        groups.extend(len(group) for group in asked)
        return score_candidates(model, asked)

    monkeypatch.setattr(language_model, "score_candidates", counted)
    lm = LanguageModel(model(ROUTERS["top_k"]), ByteTokenizer(), 30)
    lm.loglikelihood(
        likelihoods([(sentences(1, 2), answer) for answer in ("a", "bcd", "efghi", "jklmnopq")], 4)
    )
    assert groups == [1, 1, 1, 1]
    groups.clear()
    lm.loglikelihood(
        likelihoods([("the small bird", answer) for answer in ("a", "bcd", "efghi", "jklmnopq")], 4)
    )
    assert groups == [4]


def test_batches_keep_their_tokens_and_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def measured(model: Any, asked: Any) -> Any:
        result = score_candidates(model, asked)
        sizes.append(result.tokens)
        return result

    monkeypatch.setattr(language_model, "score_candidates", measured)
    told: list[tuple[int, int]] = []
    report = lambda done, total: told.append((done, total))  # noqa: E731
    lm = LanguageModel(model(ROUTERS["top_k"]), ByteTokenizer(), 200, batch_tokens=50, report=report)
    lm.loglikelihood(likelihoods([("x" * n, "yz") for n in (5, 90, 20, 30, 1, 3)]))
    assert sizes[0] == 91
    assert all(size <= 50 for size in sizes[1:])
    assert len(sizes) == 3
    assert told[-1] == (6, 6)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_bfloat16_is_autocast_and_float32_casts_the_weights() -> None:
    pairs = [pair for pair in varied() if pair[0].strip() == pair[0] and pair[0]][:6]
    moe_model, tokenizer = model(ROUTERS["top_k"], torch.float32), words()
    exact = LanguageModel(moe_model, tokenizer, LENGTH).loglikelihood(likelihoods(pairs))
    half = LanguageModel(moe_model, tokenizer, LENGTH, precision="bfloat16")
    rounded = half.loglikelihood(likelihoods(pairs))
    assert moe_model.embed.weight.dtype == torch.float32
    assert [n for n, _ in rounded] != [n for n, _ in exact]
    split = half._encode_pairs(pairs)
    for (context, answer), (nats, _), (truth, _) in zip(split, rounded, exact, strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            alone = (
                score_candidates(moe_model, [[Candidate([*context, *answer][-(LENGTH + 1) :], len(answer))]])
                .groups[0][0]
                .nll
            )
        assert abs(nats - truth) <= 2 * max(abs(-alone - truth), 2**-8 * abs(truth))
    moe_model.to(torch.bfloat16)
    LanguageModel(moe_model, tokenizer, LENGTH, precision="float32")
    assert moe_model.embed.weight.dtype == torch.float32
    with pytest.raises(ConfigError, match="precision = fp8: must be float32 or bfloat16"):
        LanguageModel(moe_model, tokenizer, LENGTH, precision="fp8")


@pytest.mark.parametrize("options", [{"batch_tokens": 0}, {"context_length": 0}])
def test_lengths_below_one_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        LanguageModel(model(None), words(), **{"context_length": LENGTH, **options})


# Against the harness's own `hf` model.


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "with <s>"])
def stock(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[HFLM, OpenedModel, list[int]]:
    """A LLaMA of transformers under lm-eval's HFLM, and the same folder opened by us."""
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer.from_str(words().content.decode())
    special = {"eos_token": "<|endoftext|>"}
    if request.param:
        raw.add_special_tokens(["<s>"])
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 300)])
        special["bos_token"] = "<s>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=LENGTH, **special)
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=304, max_position_embeddings=LENGTH, initializer_range=0.2, **shape)
    torch.manual_seed(1)
    llama = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("llama")
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    harness = HFLM(pretrained=llama, tokenizer=tokenizer, device="cpu", batch_size=4, max_length=LENGTH)
    opened = open_model(folder, print)
    return harness, opened, get_begin_tokens(opened.tokenizer)


def ours(stock: tuple[HFLM, OpenedModel, list[int]]) -> LanguageModel:
    _, opened, begin = stock
    return LanguageModel(opened.model, opened.tokenizer, LENGTH, begin=begin)


def close(log_likelihood_nats: float, expected: float) -> bool:
    return log_likelihood_nats == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("per_document", [0, 4])
def test_likelihoods_equal_the_stock_models(
    stock: tuple[HFLM, OpenedModel, list[int]], per_document: int
) -> None:
    requests = likelihoods(varied(), per_document)
    lm = ours(stock)
    expected = stock[0].loglikelihood(requests, disable_tqdm=True)
    for (nats, greedy), (truth, truth_greedy) in zip(lm.loglikelihood(requests), expected, strict=True):
        assert close(nats, truth)
        assert greedy == truth_greedy
    assert lm.measured.truncated >= 4  # the comparison covers truncation
    tokens = [(None, *pair) for pair in lm._encode_pairs([pair for pair in varied() if pair[0]])]
    again = stock[0]._loglikelihood_tokens(tokens, disable_tqdm=True)
    for (nats, _), (truth, _) in zip(lm._loglikelihood_tokens(tokens), again, strict=True):
        assert close(nats, truth)


def test_rolling_likelihoods_equal_the_stock_models(stock: tuple[HFLM, OpenedModel, list[int]]) -> None:
    requests = [asked("loglikelihood_rolling", text) for text in (sentences(4, 1), sentences(5, 12), "a")]
    expected = stock[0].loglikelihood_rolling(requests, disable_tqdm=True)
    for nats, truth in zip(ours(stock).loglikelihood_rolling(requests), expected, strict=True):
        assert close(nats, truth)


def test_generated_text_equals_the_stock_models(stock: tuple[HFLM, OpenedModel, list[int]]) -> None:
    how = [{"until": ["\n"], "max_gen_toks": 12}, {"until": [], "max_gen_toks": 5, "do_sample": False}]
    requests = [
        asked("generate_until", context, options)
        for context in (sentences(6, 1), sentences(7, 9))
        for options in how
    ]
    expected = stock[0].generate_until(requests, disable_tqdm=True)
    assert all(expected)
    assert ours(stock).generate_until(requests) == expected


def test_begin_tokens_are_the_tokenizers_own(stock: tuple[HFLM, OpenedModel, list[int]]) -> None:
    harness, _, begin = stock
    assert begin in ([], [300])
    for text in ("the bird", "", " a"):
        assert ours(stock).tok_encode(text) == harness.tok_encode(text)
    assert ours(stock).prefix_token_id == harness.prefix_token_id
    assert get_begin_tokens(ByteTokenizer()) == []
    assert get_begin_tokens(HuggingFaceTokenizer(words().content, "x")) == []


def test_generation_ends_at_a_stop_sequence_and_can_be_drawn() -> None:
    moe_model, tokenizer = model(ROUTERS["top_k"]), words()
    lm = LanguageModel(moe_model, tokenizer, LENGTH)
    (free,) = lm.generate_until([asked("generate_until", "The old", {"until": [], "max_gen_toks": 20})])
    stop = free[4:6]
    (cut,) = lm.generate_until([asked("generate_until", "The old", {"until": [stop], "max_gen_toks": 20})])
    assert cut == free[: free.index(stop)]
    drawn = {"until": [], "max_gen_toks": 20, "do_sample": True, "temperature": 1.0}
    first, second, other = (
        lm.generate_until([asked("generate_until", "The old", {**drawn, "seed": seed})])[0]
        for seed in (1, 1, 2)
    )
    assert first == second != other
    with pytest.raises(ConfigError, match="generates 40 tokens, the model reads 40 at once"):
        lm.generate_until([asked("generate_until", "The old", {"until": [], "max_gen_toks": LENGTH})])


def test_answers_can_be_cached_by_the_harness(tmp_path: Path) -> None:
    from lm_eval.api.model import CachingLM

    lm = LanguageModel(model(ROUTERS["top_k"]), words(), LENGTH)
    kept = CachingLM(lm, str(tmp_path / "cache.db"))
    requests = likelihoods([("The old bird", " sings"), ("The old bird", " falls")])
    first = kept.loglikelihood(requests)
    read = lm.measured.tokens
    assert kept.loglikelihood(requests) == first
    assert lm.measured.tokens == read
    kept.dbdict.close()
