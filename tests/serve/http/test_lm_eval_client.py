"""The client of lm-evaluation-harness gets what the model itself scores."""

from types import SimpleNamespace

import pytest
import torch

from hmoe.model.generate import Sampling, generate_tokens
from hmoe.model.likelihood import Candidate, score_candidates
from tests.serve.helpers import CONTEXT, TOKENIZER, Live


def test_lm_evals_client_gets_the_scores_of_the_scorer(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    class Bytes:
        """What lm-eval asks of a Hugging Face tokenizer."""

        eos_token_id, eos_token, bos_token_id = TOKENIZER.separator, "<|endoftext|>", None

        def encode(self, text: str, **_: object) -> list[int]:
            return TOKENIZER.encode([text])[0]

        def __call__(self, texts: str | list[str], **_: object) -> SimpleNamespace:
            ids = TOKENIZER.encode([texts] if isinstance(texts, str) else texts)
            return SimpleNamespace(input_ids=ids[0] if isinstance(texts, str) else ids)

        def decode(self, ids: list[int], **_: object) -> str:
            return TOKENIZER.decode(ids)

    def make(batch_size: int, concurrent: int) -> LocalCompletionsAPI:
        client = LocalCompletionsAPI(
            base_url=live.url + "/v1/completions", model="small", tokenizer_backend=None, max_length=CONTEXT,
            batch_size=batch_size, num_concurrent=concurrent,
        )  # fmt: skip
        client.tokenizer_backend, client.tokenizer, client.tokenized_requests = "huggingface", Bytes(), True
        return client

    pairs = [
        ("It was", " a dark night"),
        ("Once upon", " a time"),
        ("Hello", ","),
        ("é", " ü"),
        ("x", "\u6f22"),
    ]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    expected = []
    for context, continuation in pairs:
        ids, scored = TOKENIZER.encode([context + continuation])[0], len(continuation.encode())
        expected.append(score_candidates(live.model, [[Candidate(ids, scored)]]).groups[0][0])
    for client in (make(1, 1), make(3, 1), make(1, 4)):
        for (nll, greedy), wanted in zip(
            client.loglikelihood(requests, disable_tqdm=True), expected, strict=True
        ):
            assert -nll == pytest.approx(wanted.nll, abs=1e-4)
            assert greedy == wanted.greedy
    until = Instance(
        "generate_until", {}, ("It was", {"until": ["zzz"], "max_gen_toks": 12, "temperature": 0}), 0
    )
    ids = TOKENIZER.encode(["It was"])[0]
    with torch.no_grad():
        text = TOKENIZER.decode(list(generate_tokens(live.model, ids, 12, Sampling(0), 0, TOKENIZER)))
    assert make(1, 1).generate_until([until], disable_tqdm=True) == [text]
