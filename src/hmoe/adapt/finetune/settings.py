"""How HyperMoE's scripts fine-tune: learning rate, epochs, lengths and generation, for each kind of task."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FinetuneSettings:
    """How a model is fine-tuned and scored.

    Attributes:
        lr: peak learning rate.
        weight_decay: of AdamW.
        epochs: passes over the training examples.
        batch: sequences per step.
        source_length, target_length: tokens that are read and generated at most.
        stride: tokens that windows of a long source share when it is answered; None: it is cut off, as in
            training.
        beams, min_length, no_repeat_ngram: of generation.
        eval_examples: validation examples that are scored after each epoch; None: all.
        seed: of everything that is random.
    """

    lr: float
    weight_decay: float = 0.0
    epochs: int = 10
    batch: int = 8
    source_length: int = 256
    target_length: int = 128
    stride: int | None = None
    beams: int = 1
    min_length: int = 0
    no_repeat_ngram: int = 0
    eval_examples: int | None = None
    seed: int = 42


GLUE = FinetuneSettings(lr=1e-5, weight_decay=0.1, target_length=8)
QA = FinetuneSettings(lr=3e-5, source_length=384, target_length=30, stride=128)
SUMMARY = FinetuneSettings(lr=3e-5, weight_decay=0.1, source_length=1024, target_length=60, beams=6, min_length=10,
                   no_repeat_ngram=3, eval_examples=1600)  # fmt: skip
LANGUAGE = FinetuneSettings(lr=1e-5, epochs=20, batch=4, source_length=1024)
