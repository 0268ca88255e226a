"""The words of the page, each in a sentence."""

from hmoe.report.pieces import PageColumn, PagePart, PageSection, PageTable

_WORDS = {
    "token-expert pair": "one token served by one expert in one layer; a token with two experts is two pairs",
    "activated units": "hidden units of the experts that serve a token, as a share of all of a MoE layer",
    "work": "pairs times hidden units of the expert",
    "layer": "MoE layers, counted from 0",
    "chance, random routing": "the same numbers of experts, chosen without regard to the token (or, for tests, experts "
    "permuted among tokens)",
    "gate": "weight of an expert's output in the sum for a token",
    "nll, loss": "minus the natural logarithm of the probability that the model gave to the token, in nats",
    "bytes": "length of a token in UTF-8",
    "times as often (lift)": "share of a token or kind among an expert's pairs, by its share among all pairs",
    "false discovery rate": "share of the listed discoveries that may be there by chance",
    "Wasserstein distance": "how far one distribution must be moved to become another; here of frequency ranks",
    "Mantel correlation": "correlation of two tables of distances; its p is from orders of the experts",
    "CKA": "likeness of two sets of outputs, from 0 to 1, whatever their rotation and scale",
    "load-balancing loss": "is least where all experts get the same share of the tokens",
    "entropy of the router": "of its probabilities, as it was logged: high where it is undecided",
    "Holm": "corrects p for many tests: with p up to 0.05, at most 5% risk that any of them is chance",
}


def explain_words() -> PageSection:
    """Return the section that says what words mean."""
    rows = [{"word": word, "meaning": meaning} for word, meaning in _WORDS.items()]
    columns = [PageColumn("word", "Word", is_text=True), PageColumn("meaning", "Meaning", is_text=True)]
    return PageSection(
        "words", "Words", "", [PagePart(tables=[PageTable("words", "What words mean here.", columns, rows)])]
    )
