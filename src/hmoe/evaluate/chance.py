"""What guessing would score in a task: beside an accuracy, what it has to be compared with."""

from collections import Counter
from typing import Any


def measure_chance(task: Any) -> dict[str, float | None]:
    """Return the accuracy of guessing and, where all documents offer the same choices, of the commonest."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return {"chance": None, "majority_class": None}
    # A document has a request per choice.
    documents = list({request.doc_id: request.doc for request in task.instances}.values())
    choices = [tuple(task.doc_to_choice(doc)) for doc in documents]
    majority = None
    if len(set(choices)) == 1 < len(documents):
        majority = max(Counter(map(str, map(task.doc_to_target, documents))).values()) / len(documents)
    return {"chance": sum(1 / len(names) for names in choices) / len(documents), "majority_class": majority}


def measure_group_chance(tasks: dict[str, Any]) -> dict[str, float | None]:
    """Return a group's accuracy of guessing, weighted by documents; None unless every task has one."""
    counts = {name: len({request.doc_id for request in task.instances}) for name, task in tasks.items()}
    chances = {name: measure_chance(task)["chance"] for name, task in tasks.items()}
    known = {name: chance for name, chance in chances.items() if chance is not None}
    if not known or len(known) < len(tasks):
        return {"chance": None, "majority_class": None}
    return {
        "chance": sum(known[name] * counts[name] for name in known) / sum(counts.values()),
        "majority_class": None,
    }
