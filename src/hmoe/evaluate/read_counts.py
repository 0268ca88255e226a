"""Counts of what a model read and activated while tasks were evaluated, together and by question."""

from dataclasses import dataclass, field

from hmoe.model.likelihood import GroupCost

Question = tuple[str, int]  # a document of a task, by its number there


@dataclass
class QuestionCounts:
    """Counts of what a model read for one document of a task: all its requests together.

    Attributes:
        tokens: tokens read by the model; a beginning that candidates share counts once.
        units: hidden units activated by them, summed over MoE layers.
        experts: experts that served them, summed over MoE layers.
    """

    tokens: int = 0
    units: float = 0.0
    experts: int = 0

    def add(self, cost: GroupCost) -> None:
        """Count what was read together for the document."""
        self.tokens += cost.tokens
        self.units += cost.units
        self.experts += cost.experts


@dataclass
class ReadCounts:
    """Counts of what a model read so far.

    Attributes:
        tokens: tokens read by the model; a beginning that candidates share counts once.
        units: hidden units activated by them, summed over MoE layers.
        truncated: requests that lost the beginning of their context.
        windowed: requests whose continuation alone is longer than what is read at once; windows read it.
        questions: counts of each document, by (task, number); of requests that name none nothing is kept here.
    """

    tokens: int = 0
    units: float = 0.0
    truncated: int = 0
    windowed: int = 0
    questions: dict[Question, QuestionCounts] = field(default_factory=dict)
