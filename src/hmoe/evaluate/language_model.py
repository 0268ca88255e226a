"""Show a model to lm-evaluation-harness: log-likelihoods of continuations and texts, and generated text.

Scores are those of the harness's own `hf` model: the same split between context and continuation, the same
truncation from the left. Choices of one document are read together, their common beginning once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hmoe.data.tokenizer import Tokenizer
from hmoe.errors import ConfigError, DataError
from hmoe.evaluate.candidate_batches import CandidateGroup, batch_groups, group_candidates
from hmoe.evaluate.precision import EvaluationPrecision
from hmoe.evaluate.read_counts import Question, QuestionCounts, ReadCounts
from hmoe.model.generate import Sampling, generate_tokens
from hmoe.model.likelihood import Candidate, CandidateScore, GroupCost, GroupScores, score_candidates
from hmoe.model.transformer import Transformer
from hmoe.parallel.workers import ONE_WORKER, Workers, share_work

BATCH_TOKENS = 4096
_GENERATED_TOKENS = 256  # where a task does not say; the harness's own default

TokenPair = tuple[list[int], list[int]]  # tokens of a context and of its continuation
Answer = tuple[float, bool]  # log-likelihood in nats, and whether greedy decoding writes the continuation


class LanguageModel(TemplateLM):  # type: ignore[misc]
    """The harness's interface to a given (model, tokenizer, context_length).

    Args:
        model: the model, in evaluation mode.
        tokenizer: the model's tokenizer.
        context_length: tokens read at once; longer requests lose the beginning of their context.
        batch_tokens: tokens of one forward pass; a document that is longer is read alone.
        precision: float32 or bfloat16; None: that of the weights.
        begin: tokens before every text of the model, see `hmoe.data.tokenizer.get_begin_tokens`.
        report: called with the sequences scored, or texts written, and their number in all.
        workers: processes that share the requests; all of them make the same ones.

    Raises:
        ConfigError: for a length below 1, or a precision that does not exist.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        context_length: int,
        batch_tokens: int = BATCH_TOKENS,
        precision: str | None = None,
        begin: Sequence[int] = (),
        report: Callable[[int, int], None] = lambda done, total: None,
        workers: Workers = ONE_WORKER,
    ) -> None:
        super().__init__()
        self._workers = workers
        if batch_tokens < 1 or context_length < 1:
            raise ConfigError(
                f"batch_tokens = {batch_tokens}, context_length = {context_length}; must be at least 1"
            )
        self.model, self._words, self._max_length = model, tokenizer, context_length
        self._begin = list(begin)
        self._batch_tokens, self._precision, self.report = (
            batch_tokens,
            EvaluationPrecision(model, precision),
            report,
        )
        self._device = model.embed.weight.device
        self.measured = ReadCounts()

    @property
    def eot_token_id(self) -> int:
        """The id that separates documents."""
        return self._words.separator

    @property
    def prefix_token_id(self) -> int:
        """The token that an empty context becomes: the first of those before every text, or the separator."""
        return self._begin[0] if self._begin else self._words.separator

    @property
    def max_length(self) -> int:
        """The number of tokens read at once."""
        return self._max_length

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer in the harness's caches."""
        return self._words.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text, after those before every text unless `add_special_tokens` is false."""
        begin = [] if add_special_tokens is False else self._begin
        return begin + self._words.encode([string])[0]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Answer]:
        """Return (log-likelihood in nats, does greedy decoding write it) of each (context, continuation)."""
        pairs = self._encode_pairs([request.args for request in requests])
        documents = [_name_question(request) for request in requests]
        answers = self._score(pairs, documents, documents)
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return answers

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[Answer]:
        return self._score(
            [(context, continuation) for _, context, continuation in requests],
            [None] * len(requests),
            [None] * len(requests),
        )

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts in nats, every token once, in windows without overlap."""
        pairs: list[TokenPair] = []
        counts, questions = [], list[Question | None]()
        for request in requests:
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            )
            text_pairs = [make_disjoint_window(window) for window in windows]
            pairs += text_pairs
            counts.append(len(text_pairs))
            questions += [_name_question(request)] * len(text_pairs)
        # Windows do not begin alike: each is read as a document of its own.
        answers = iter(self._score(pairs, list(range(len(pairs))), questions))
        sums = [sum(next(answers)[0] for _ in range(count)) for count in counts]
        for request, log_likelihood in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, log_likelihood)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Write text after each context, up to the first stop sequence; greedy unless the request differs."""
        num_done = 0

        def write(request: Any) -> str:
            nonlocal num_done
            text = self._write_text(*request.args)
            num_done = min(num_done + self._workers.size, len(requests))
            self.report(num_done, len(requests))
            return text

        texts = share_work(self._workers, requests, write)
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _write_text(self, context: str, request_options: dict[str, Any]) -> str:
        options = normalize_gen_kwargs(request_options, _GENERATED_TOKENS)
        stops = handle_stop_sequences(options.get("until"), eos=None)
        new_tokens = options["max_gen_toks"]
        room = self.max_length - new_tokens
        if room < 1:
            raise ConfigError(
                f"the task generates {new_tokens} tokens, the model reads {self.max_length} at once"
            )
        ids = (self.tok_encode(context) or [self.eot_token_id])[-room:]
        temperature = options.get("temperature", 1.0 if options["do_sample"] else 0.0)
        sampling = Sampling(temperature, options.get("top_k", 0), options.get("top_p", 1.0))
        detokenizer = self._words.detokenizer(ids)
        with self._precision():
            for token in generate_tokens(
                self.model, ids, new_tokens, sampling, options.get("seed", 0), self._words
            ):
                detokenizer.add(token)
                if any(stop and stop in detokenizer.text for stop in stops):
                    break
        return str(postprocess_generated_text(detokenizer.text, stops, None))

    def _encode_pairs(self, texts: Iterable[tuple[str, str]]) -> list[TokenPair]:
        """Split (context, continuation) into tokens as TemplateLM does, but encode all texts at once."""
        split = []
        for context, continuation in texts:
            # Spaces at the end of a context go to the continuation, as tokens of words begin with a space.
            kept = context.rstrip()
            split.append((kept, context[len(kept) :] + continuation) if kept else (context, continuation))
        distinct = list(dict.fromkeys(text for context, rest in split for text in (context, context + rest)))
        ids = dict(zip(distinct, self._words.encode(distinct), strict=True))
        pairs = []
        for context, rest in split:
            whole, before = ids[context + rest], ids[context]
            if context:
                pairs.append((self._begin + before, whole[len(before) :]))
            elif whole[:1] == [self.prefix_token_id]:
                pairs.append((whole[:1], whole[1:]))
            else:
                pairs.append(([self.prefix_token_id], whole))
        return pairs

    def _score(
        self, pairs: list[TokenPair], documents: Sequence[Any], questions: Sequence[Question | None]
    ) -> list[Answer]:
        """Return the answers in order; requests of one document (None: of one context) are read together.

        What is read for a request is counted for its question, if it has one.
        """
        candidates: list[Candidate] = []
        owners: list[int] = []  # the request that each candidate is a part of
        places_of: dict[Any, list[int]] = {}  # candidates that begin alike: their beginning is read once
        for request, (pair, document) in enumerate(zip(pairs, documents, strict=True)):
            pieces = self._cut_request(*pair)
            for piece in pieces:
                # Windows of one request do not begin alike, so each of them is read alone.
                key: Any = ("window", len(candidates))
                if len(pieces) == 1:
                    key = ("context", tuple(pair[0])) if document is None else ("document", document)
                places_of.setdefault(key, []).append(len(candidates))
                candidates.append(piece)
                owners.append(request)
        groups = [group for places in places_of.values() for group in group_candidates(places, candidates)]
        nats, greedy = [0.0] * len(pairs), [True] * len(pairs)
        batches = list(batch_groups(groups, self._batch_tokens))
        for batch, result in zip(batches, self._score_batches(batches, len(candidates)), strict=True):
            for group, scores, cost in zip(batch, result.groups, result.costs, strict=True):
                question = questions[owners[group.places[0]]]
                if question is not None:
                    self.measured.questions.setdefault(question, QuestionCounts()).add(cost)
                for place, candidate_score in zip(group.places, scores, strict=True):
                    nats[owners[place]] -= candidate_score.nll
                    greedy[owners[place]] &= candidate_score.greedy
            self.measured.tokens += result.tokens
            self.measured.units += result.units
        return list(zip(nats, greedy, strict=True))

    def _score_batches(
        self, batches: Sequence[list[CandidateGroup]], num_candidates: int
    ) -> list[GroupScores]:
        """Return the scores of every batch; each process reads some of them."""
        num_done = 0

        def score(batch: list[CandidateGroup]) -> Any:
            nonlocal num_done
            with self._precision():
                result = score_candidates(self.model, [group.candidates for group in batch])
            num_done += self._workers.size * sum(len(scores) for scores in result.groups)
            self.report(min(num_done, num_candidates), num_candidates)
            return astuple(result)

        return [
            GroupScores(
                [[CandidateScore(*each) for each in scores] for scores in groups],
                tokens,
                units,
                [GroupCost(*cost) for cost in costs],
            )
            for groups, tokens, units, costs in share_work(self._workers, batches, score)
        ]

    def _cut_request(self, context: list[int], continuation: list[int]) -> list[Candidate]:
        """Return a request as it is read: at once, or a long continuation in windows that advance by half."""
        if not continuation:
            ending = self._words.decode(context)[-40:]
            raise DataError(f"a continuation has no tokens of its own, after ...{ending!r}")
        tokens, length = context + continuation, self.max_length
        # A candidate has one token more than the model reads, because the last one is only predicted.
        if len(continuation) <= length:
            self.measured.truncated += len(tokens) > length + 1
            return [Candidate(tokens[-(length + 1) :], len(continuation))]
        self.measured.windowed += 1
        step = max(1, length // 2)
        ends = [min(begin + step, len(tokens)) for begin in range(len(context), len(tokens), step)]
        begins = [len(context), *ends[:-1]]
        return [
            Candidate(tokens[max(0, end - length - 1) : end], end - begin)
            for begin, end in zip(begins, ends, strict=True)
        ]


def _name_question(request: Any) -> Question | None:
    """Return the document of a task that a request is of; None where it names none."""
    return (request.task_name, request.doc_id) if request.doc_id is not None else None
