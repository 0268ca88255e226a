"""Routings with known structure: what each look inside must find, and noise in which it must find nothing.

Token types are words, continuations, digits and punctuation with Zipf's frequencies; their mix varies from document to
document and from domain to domain. Likelihoods fall with frequency, but not by it alone. A token's experts are the best
one to three by logits + Gumbel noise, so that each structure is a table of logits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hmoe.analyze.traced_text import Floats, Ints, TokenPlaces, TracedText
from hmoe.errors import ConfigError
from hmoe.model.trace import RoutingTrace

STRUCTURES = ("noise", "digits", "twins", "difficulty", "sizes", "domains")
WINDOW = 64  # tokens that are read together
_WORD, _CONTINUATION, _DIGIT, _MARK = range(4)
_CERTAIN = 1e4  # a logit that no noise overcomes
_NUM_EXPERTS = (0.3, 0.4, 0.3)  # probabilities of one, two and three experts for a token
_Generator = np.random.Generator


@dataclass(frozen=True)
class PlantedText:
    """A routing, and what was planted in it.

    Attributes:
        text: all documents; the last token of each is a separator, and windows of WINDOW tokens run across them.
        labels: labellings of token types by name: "kind" (word, continuation, digit, punctuation), "digits",
            "part of word" (0 begins one, 1 continues it), "capitals"; -1 for the separator.
        texts: of the token types.
        truth: what was planted: "structure", "layers" in which it is, and by structure "expert" (digits),
            "experts" (twins), "slope" (difficulty), "places" of experts on the scale of ranks (sizes), "preferences"
            of domains x experts (domains).
        separator: its token id.
        domains: names of the domains.
    """

    text: TracedText
    labels: dict[str, Ints]
    texts: list[str]
    truth: dict[str, Any]
    separator: int
    domains: list[str]


def plant_routing(  # noqa: PLR0913 - each is a size of the text or of the effect
    structure: str,
    seed: int,
    *,
    widths: Sequence[int] = (32, 64, 96, 128, 160, 192, 224, 256),
    num_layers: int = 2,
    num_documents: int = 40,
    tokens_per_document: int = 200,
    vocab: int = 120,
    num_domains: int = 2,
    document_effect: float = 0.0,
    slope: float = 1.0,
) -> PlantedText:
    """Make a text whose routing has a known structure.

    Args:
        structure: "noise": experts do not depend on the token. "digits": in the last layer one expert serves all
            digits and nothing else. "twins": experts have preferences for token types, and two have the same ones.
            "difficulty": the logit of an expert is slope x standardised nll x standardised width.
            "sizes": experts read frequency ranks around a place on their scale that is given by their size.
            "domains": experts prefer domains, whatever the token.
        seed: of all random numbers.
        widths: hidden units of each expert.
        num_layers: MoE layers.
        num_documents, tokens_per_document: separators included.
        vocab: token types, the last of which is the separator.
        num_domains: each has its share of the documents, one after the other.
        document_effect: deviation of the experts' logits from document to document, independent of tokens.
        slope: of "difficulty".

    Raises:
        ConfigError: for a structure that there is not.
    """
    if structure not in STRUCTURES:
        raise ConfigError(f"structure = {structure!r}, must be one of {', '.join(STRUCTURES)}")
    draw = np.random.default_rng([STRUCTURES.index(structure), seed])
    kind_V, texts = _name_types(vocab, draw)
    rank_V = np.append(draw.permutation(vocab - 1), vocab - 1)
    places, tokens_T = _write_documents(
        rank_V, kind_V, (num_documents, tokens_per_document, num_domains), draw
    )
    nll_T = _draw_nll(tokens_T, places, rank_V, draw)
    plant = _Plant(widths, tokens_T, nll_T, places.domain_T, kind_V, rank_V / max(1, vocab - 2), slope)
    truth: dict[str, Any] = {"structure": structure, "layers": list(range(num_layers))}
    logits_ZTE = np.stack([_plant_layer(structure, plant, truth, draw) for _ in range(num_layers)])
    if structure == "digits":
        truth["layers"] = [num_layers - 1]
        logits_ZTE[:-1] = draw.normal(0, 0.3, (num_layers, 1, len(widths)))[:-1]
    shape = (num_layers, num_documents, len(widths))
    logits_ZTE += draw.normal(0, 1, shape)[:, places.document_T] * document_effect
    text = TracedText(_route(tokens_T, nll_T, tuple(widths), logits_ZTE, draw), places)
    domains = [f"domain {i}" for i in range(num_domains)]
    return PlantedText(text, _label_types(kind_V, texts), texts, truth, vocab - 1, domains)


def iterate_parts(planted: PlantedText, tokens: int) -> Iterator[TracedText]:
    """Cut a text into parts of whole windows, as it would be read in several passes of about so many tokens."""
    trace, places = planted.text.trace, planted.text.places
    size = max(1, tokens // WINDOW) * WINDOW
    for start in range(0, len(trace.tokens_T), size):
        part = slice(start, start + size)
        own_N = (trace.token_N >= start) & (trace.token_N < start + size)
        part_trace = RoutingTrace(
            tokens_T=trace.tokens_T[part],
            blocks=trace.blocks,
            widths=trace.widths,
            layer_N=trace.layer_N[own_N],
            token_N=trace.token_N[own_N] - start,
            expert_N=trace.expert_N[own_N],
            gate_N=trace.gate_N[own_N],
            probs_ZTE=trace.probs_ZTE[:, part],
            nll_T=trace.nll_T[part],
            width_ZT=trace.width_ZT[:, part],
        )
        yield TracedText(
            part_trace, TokenPlaces(**{name: value[part] for name, value in vars(places).items()})
        )


@dataclass(frozen=True)
class _Plant:
    """What logits are made from; `scale_V` has frequency ranks scaled to [0, 1]."""

    widths: Sequence[int]
    tokens_T: Ints
    nll_T: Floats
    domain_T: Ints
    kind_V: Ints
    scale_V: Floats
    slope: float


def _plant_layer(structure: str, plant: _Plant, truth: dict[str, Any], draw: _Generator) -> Floats:
    """Return the logits (T, E) of a layer, and note in `truth` what is in them."""
    num_experts = len(plant.widths)
    logits_E = draw.normal(0, 0.3, num_experts)
    logits_TE = np.tile(logits_E, (len(plant.tokens_T), 1))
    if structure == "digits":
        expert = truth.setdefault("expert", int(draw.integers(num_experts)))
        is_digit_T = plant.kind_V[plant.tokens_T] == _DIGIT
        logits_TE[:, expert] = np.where(is_digit_T, _CERTAIN, -_CERTAIN)
    elif structure == "twins":
        first, second = truth.setdefault("experts", sorted(map(int, draw.permutation(num_experts)[:2])))
        logits_VE = draw.normal(0, 1.5, (len(plant.kind_V), num_experts)) + logits_E
        logits_VE[:, second] = logits_VE[:, first]
        logits_TE = logits_VE[plant.tokens_T]
    elif structure == "difficulty":
        truth["slope"] = plant.slope
        units_E = _standardise(np.asarray(plant.widths, float))
        logits_TE += plant.slope * _standardise(plant.nll_T)[:, None] * units_E
    elif structure == "sizes":
        units_E = np.asarray(plant.widths, float)
        place_E = (units_E - units_E.min()) / max(1.0, float(np.ptp(units_E)))
        truth["places"] = place_E.tolist()
        logits_TE = -np.square((plant.scale_V[plant.tokens_T][:, None] - place_E) / 0.25) / 2
    elif structure == "domains":
        num_domains = int(plant.domain_T.max()) + 1
        preferences = draw.permuted(np.tile(np.linspace(-1, 1, num_experts), (num_domains, 1)), axis=1)
        truth.setdefault("preferences", []).append(preferences.tolist())
        logits_TE += preferences[plant.domain_T]
    return logits_TE


def _route(
    tokens_T: Ints, nll_T: Floats, widths: tuple[int, ...], logits_ZTE: Floats, draw: _Generator
) -> RoutingTrace:
    """Return a trace of the best one to three experts by logits and noise."""
    num_layers, num_tokens, num_experts = logits_ZTE.shape
    most = min(len(_NUM_EXPERTS), num_experts)
    noisy_ZTE = logits_ZTE + draw.gumbel(size=logits_ZTE.shape)
    shares = np.array(_NUM_EXPERTS[:most]) / sum(_NUM_EXPERTS[:most])
    count_ZT = 1 + draw.choice(most, (num_layers, num_tokens), p=shares)
    order_ZTE = np.argsort(np.argsort(-noisy_ZTE, axis=2), axis=2)
    # What is impossible does not serve as second or third either.
    chosen_ZTE = (order_ZTE < count_ZT[:, :, None]) & (noisy_ZTE > -_CERTAIN / 2)
    layer_N, expert_N, token_N = np.nonzero(chosen_ZTE.transpose(0, 2, 1))
    probs_ZTE = torch.softmax(torch.from_numpy(noisy_ZTE), 2).float()
    sums_ZT = (probs_ZTE * torch.from_numpy(chosen_ZTE)).sum(2)
    width_ZT = (chosen_ZTE * np.asarray(widths, float)).sum(2)
    first_nll_T = np.where(np.arange(num_tokens) % WINDOW == 0, np.nan, nll_T)
    return RoutingTrace(
        tokens_T=torch.from_numpy(tokens_T),
        blocks=tuple(range(1, num_layers + 1)),
        widths=widths,
        layer_N=torch.from_numpy(layer_N),
        token_N=torch.from_numpy(token_N),
        expert_N=torch.from_numpy(expert_N),
        gate_N=probs_ZTE[layer_N, token_N, expert_N] / sums_ZT[layer_N, token_N],
        probs_ZTE=probs_ZTE,
        nll_T=torch.from_numpy(first_nll_T),
        width_ZT=torch.from_numpy(width_ZT),
    )


def _name_types(vocab: int, draw: _Generator) -> tuple[Ints, list[str]]:
    """Return the kind of each token type, -1 for the separator, and its text."""
    num_digits, num_marks = max(2, vocab // 12), max(1, vocab // 20)
    num_continuations = (vocab - 1 - num_digits - num_marks) // 3
    num_words = vocab - 1 - num_digits - num_marks - num_continuations
    if num_words < 1:
        raise ConfigError(f"vocab = {vocab}, must be at least 6")
    sizes = (num_words, num_continuations, num_digits, num_marks)
    kind_V = np.append(draw.permutation(np.repeat(range(4), sizes)), -1).astype(np.int64)
    seen = [0, 0, 0, 0]
    texts = []
    for kind in kind_V[:-1]:
        texts.append(_spell(int(kind), seen[kind]))
        seen[kind] += 1
    return kind_V, [*texts, "<end>"]


def _spell(kind: int, place: int) -> str:
    """Return a text of this kind, another one for each place."""
    if kind == _DIGIT:
        return str(place)
    if kind == _MARK:
        marks = ".,;:!?-()'\""
        return marks[place % len(marks)] * (1 + place // len(marks))
    syllables = [a + b for a in "klmnprst" for b in "aeiou"]
    text = syllables[place % 40] + syllables[(7 * place + 3) % 40] * (1 + place // 40)
    if kind == _CONTINUATION:
        return text
    return " " + (text.capitalize() if place % 5 == 0 else text)


def _label_types(kind_V: Ints, texts: Sequence[str]) -> dict[str, Ints]:
    is_type_V = kind_V >= 0
    capital_V = np.array([text.strip()[:1].isupper() for text in texts])
    classes = {
        "digits": kind_V == _DIGIT,
        "part of word": kind_V == _CONTINUATION,
        "capitals": capital_V,
    }
    return {"kind": kind_V} | {
        name: np.where(is_type_V, class_V, -1).astype(np.int64) for name, class_V in classes.items()
    }


def _write_documents(
    rank_V: Ints, kind_V: Ints, sizes: tuple[int, int, int], draw: _Generator
) -> tuple[TokenPlaces, Ints]:
    """Return the tokens of documents, each with a mix of its own, and their places."""
    num_documents, length, num_domains = sizes
    vocab = len(rank_V)
    log_V = -np.log1p(rank_V[:-1].astype(float))
    by_domain = draw.normal(0, 0.7, (num_domains, vocab - 1))
    domains = np.arange(num_documents) * num_domains // num_documents
    tokens = np.full((num_documents, length), vocab - 1)
    for document, domain in enumerate(domains):
        mix_V = np.exp(log_V + by_domain[domain] + draw.normal(0, 0.5, vocab - 1))
        tokens[document, :-1] = draw.choice(vocab - 1, length - 1, p=mix_V / mix_V.sum())
    tokens_T = tokens.reshape(-1).astype(np.int64)
    place_T = np.zeros(len(tokens_T), np.int64)
    for token in range(1, len(tokens_T)):
        follows = kind_V[tokens_T[token]] == _CONTINUATION and kind_V[tokens_T[token - 1]] in (0, 1)
        place_T[token] = place_T[token - 1] + 1 if follows else 0
    document_T = np.repeat(np.arange(num_documents), length)
    is_first_T = np.arange(len(tokens_T)) % WINDOW == 0
    domain_T = domains[document_T].astype(np.int64)
    return TokenPlaces(document_T, domain_T, is_first_T, tokens_T == vocab - 1, place_T), tokens_T


def _draw_nll(tokens_T: Ints, places: TokenPlaces, rank_V: Ints, draw: _Generator) -> Floats:
    """Return likelihoods that fall with rank, and differ between types, documents and tokens besides."""
    mean_V = 1.0 + 0.8 * np.log1p(rank_V) + draw.normal(0, 0.6, len(rank_V))
    by_document = draw.normal(0, 0.2, int(places.document_T.max()) + 1)
    noise_T = draw.normal(0, 0.8, len(tokens_T))
    return np.maximum(0.01, mean_V[tokens_T] + by_document[places.document_T] + noise_T)


def _standardise(values: Floats) -> Floats:
    deviation = float(values.std())
    centred: Floats = values - values.mean()
    return centred / deviation if deviation > 0 else centred
