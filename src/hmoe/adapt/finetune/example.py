"""One question of a fine-tuning task, whatever data it comes from."""

from typing import NamedTuple


class TaskExample(NamedTuple):
    """One question with its right answers.

    Attributes:
        source: text that the model reads.
        targets: any of these is right; a model is trained on each of them (ReCoRD) or on the first (SQuAD).
        group: name shared by questions that are scored together (MultiRC).
        head: text that the source begins with, and every window of a long source (SQuAD's question).
    """

    source: str
    targets: tuple[str, ...]
    group: str = ""
    head: str = ""
