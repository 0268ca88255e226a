"""How many tokens' logits exist at one time: what the language-model loss computes with, and memory is counted by."""


def count_chunk_tokens(vocab: int, kind: str) -> int:
    """Return how many tokens' logits exist at one time in the training loss, on a kind of device (cpu, cuda).

    At least 512, which keeps the GEMMs efficient. On a CPU else about 2**21 numbers, which stay in its cache (64 MB of
    float32 with a vocabulary of 32,000); on a GPU 8,192 tokens, but no more than 2**28 numbers, a GB.
    """
    return max(512, 2**21 // vocab) if kind == "cpu" else min(8192, max(512, 2**28 // vocab))
