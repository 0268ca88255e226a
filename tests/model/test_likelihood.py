"""Candidates that share a beginning, scored together, against each sequence on its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmoe import ConfigError
from hmoe.model.likelihood import Candidate, score_candidates
from hmoe.model.transformer import Transformer, build_transformer, without_capacities
from tests.model.test_transformer import config

MODELS = {
    "top_k": build_transformer(config(kv_heads=2), 0, torch.float64),
    "top_p": build_transformer(
        config(moe={"widths": [5, 9, 4], "router": {"name": "top_p", "p": 0.6}}), 0, torch.float64
    ),
}
ROUTER = {"name": "top_k", "k": 1, "capacity_factor": 0.5, "rectify": "fr+ir", "when": "fewer"}
MODELS["capacity"] = build_transformer(config(moe={"widths": [5, 9, 4], "router": ROUTER}), 0, torch.float64)
TOKENS = st.lists(st.integers(0, 28), min_size=1, max_size=6)


def alone(model: Transformer, candidate: Candidate) -> tuple[float, bool]:
    tokens = list(candidate.tokens)
    with torch.no_grad(), without_capacities(model):  # an answer's score must not depend on its rivals
        logits, _ = model(torch.tensor([tokens[:-1]]))
    rows = logits[0].log_softmax(-1)[-candidate.scored :]
    targets = torch.tensor(tokens[-candidate.scored :])
    return -float(rows.gather(1, targets[:, None]).sum()), bool((rows.argmax(1) == targets).all())


@given(groups=st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=3))
@settings(deadline=None, max_examples=40)
@pytest.mark.parametrize("router", list(MODELS))
def test_scores_are_those_of_each_sequence_alone(
    router: str, groups: list[tuple[list[int], list[list[int]]]]
) -> None:
    model = MODELS[router]
    asked = [[Candidate([*begin, *end], len(end)) for end in ends] for begin, ends in groups]
    scored = score_candidates(model, asked)
    for group, scores in zip(asked, scored.groups, strict=True):
        for candidate, result in zip(group, scores, strict=True):
            nll, greedy = alone(model, candidate)
            assert result.nll == pytest.approx(nll, rel=1e-9)
            assert result.greedy == greedy


def test_what_is_shared_is_read_once() -> None:
    model = MODELS["top_k"]
    begin = list(range(10))
    scored = score_candidates(model, [[Candidate([*begin, 11, 12], 2), Candidate([*begin, 13, 14, 15], 3)]])
    assert scored.tokens == 10 + 1 + 2
    assert scored.units == pytest.approx(sum(_units(model, begin, [11], [13, 14])), rel=0)
    yes_or_no = score_candidates(model, [[Candidate([*begin, 1], 1), Candidate([*begin, 2], 1)]])
    assert yes_or_no.tokens == 10


def _units(model: Transformer, begin: list[int], *branches: list[int]) -> list[float]:
    widths, total = model.config.moe.expert_widths, []  # type: ignore[union-attr]
    with torch.no_grad():
        for branch in branches:
            _, routings = model(torch.tensor([[*begin, *branch]]))
            per_token = sum(routing.width_T(widths) for routing in routings)
            total.append(float(per_token[len(begin) :].sum()))  # type: ignore[index]
        total.append(float(per_token[: len(begin)].sum()))  # type: ignore[index]
    return total


def test_experts_that_choose_score_nothing() -> None:
    model = build_transformer(config(moe={"widths": [5, 9], "router": {"name": "expert_choice"}}), 0)
    with pytest.raises(ConfigError, match="nor score an answer"):
        score_candidates(model, [[Candidate([1, 2, 3], 1)]])
