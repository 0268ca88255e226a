"""An inspection as `hmoe inspect` writes it, made up: every table, with empty values where there may be none."""

import json
import random
from pathlib import Path
from typing import Any

WORDS = ["\n", " the", "She", '"', " said", "ing", "42", "</script>", " Lily", "é", ", ", " <b>"]
CLASSES = ["digits", "punctuation", "begins a word", "inside a word"]
FEATURES = ["nll", "frequency", "bytes", "word_position"]
Tables = dict[str, list[dict[str, Any]]]


def make_inspection(widths: list[int], num_layers: int, step: int, seed: int = 0) -> dict[str, Any]:
    rng = random.Random(seed)
    return {
        "format": 1,
        "model": {
            "name": "tiny",
            "folder": "runs/tiny",
            "step": step,
            "widths": widths,
            "blocks": list(range(num_layers)),
            "dim": 32,
            "vocab": 300,
            "context": 128,
            "router": "top_k",
            "causal": True,
        },
        "text": {
            "source": "held-out documents",
            "documents": 40,
            "tokens": 12345,
            "window": 128,
            "domains": {"prose": 9000, "code <i>": 3345},
            "folds": 20,
            "first_tokens": 97,
            "separators": 40,
            "long_documents": 0,
        },
        "options": {"window": 128},
        "notes": [
            "intervals (95%) leave out documents, in 20 groups",
            "a note with <script>alert(1)</script>",
        ],
        "tables": {
            **make_activation(widths, num_layers, rng),
            **make_pairs(widths, num_layers, rng),
            **make_tokens(widths, num_layers, rng),
            **make_summaries(widths, num_layers, rng),
        },
    }


def make_activation(widths: list[int], num_layers: int, rng: random.Random) -> Tables:
    experts, total = len(widths), sum(widths)
    ratios = [[rng.uniform(0.05, 0.5) for _ in widths] for _ in range(num_layers)]
    ratios[0][-1] = 0.0
    return {
        "experts": [
            {
                "layer": layer,
                "block": layer,
                "expert": expert,
                "width": widths[expert],
                "tokens": round(12345 * ratio),
                "ratio": ratio,
                "ratio_low": ratio * 0.9,
                "ratio_high": ratio * 1.1,
                "ratio_null": 2 / experts,
                "compute_share": ratio * widths[expert] / total,
                "probability": ratio / 2,
                "compute_share_low": 0.09,
                "compute_share_high": 0.11,
                "compute_share_null": widths[expert] / total,
                "state": "unseen" if (layer, expert) == (1, 0) else "" if ratio else "dead",
            }
            for layer in range(num_layers)
            for expert, ratio in enumerate(ratios[layer])
        ],
        "widths": [
            {"width": width, "num_experts": 1, "ratio": 0.3, "ratio_low": 0.28, "ratio_high": 0.33,
             "ratio_null": 0.25, "token_share": 1 / experts, "compute_share": width / total,
             "token_share_low": 0.2, "token_share_high": 0.3, "token_share_null": 0.25, "compute_share_low": 0.09,
             "compute_share_high": 0.11, "compute_share_null": 0.12}
            for width in sorted(set(widths))
        ],
        "layers": [
            {"layer": layer, "block": layer, "activated_ratio": 0.2 + 0.02 * layer, "low": 0.19, "high": 0.25,
             "null": 0.25, "experts_per_token": 2.0}
            for layer in range(num_layers)
        ],
        "experts_per_token": [
            {"layer": layer, "experts": 2, "tokens": 12345, "share": 1.0} for layer in range(num_layers)
        ],
        "domains": [
            {"domain": "prose", "tokens": 9000, "documents": 30, "activated_ratio": 0.21, "low": 0.2, "high": 0.22,
             "null": 0.25},
            {"domain": "code <i>", "tokens": 3345, "documents": 10, "activated_ratio": 0.24, "low": None, "high": None,
             "null": 0.25},
        ],
    }  # fmt: skip


def make_pairs(widths: list[int], num_layers: int, rng: random.Random) -> Tables:
    experts = len(widths)
    pairs = [
        (layer, a, b) for layer in range(num_layers) for a in range(experts) for b in range(a + 1, experts)
    ]
    merges = [(layer, step) for layer in range(num_layers) for step in range(experts - 1)]
    return {
        "similarity": [
            {"layer": layer, "expert_a": a, "expert_b": b, "width_a": widths[a], "width_b": widths[b],
             "rank": abs(a - b) / experts + rng.random() / 10, "embedding": rng.random(), "token_id": rng.random() * 80,
             "null_rank": 0.02, "null_embedding": 0.03}
            for layer, a, b in pairs
        ],
        "clusters": [
            {"layer": layer, "distance": "rank", "step": step, "left": 0 if not step else experts + step - 1,
             "right": step + 1, "height": 0.1 * (step + 1), "size": step + 2}
            for layer, step in merges
        ],
        "size_tests": [
            {"layer": layer, "distance": "rank", "correlation": 0.61, "p": 0.004, "num_orders": 9999}
            for layer in [*range(num_layers), None]
        ],
        "redundancy": [
            {"layer": layer, "expert_a": a, "expert_b": b, "width_a": widths[a], "width_b": widths[b],
             "cka": rng.random(), "cka_null": 0.1, "output_cosine": 0.2, "output_distance": 1.3, "weight_cosine": 0.1,
             "weight_cosine_null": 0.1, "is_redundant": layer == 0 and a == 0 and b == 1}
            for layer, a, b in pairs
        ],
    }  # fmt: skip


def make_tokens(widths: list[int], num_layers: int, rng: random.Random) -> Tables:
    cells = [(layer, expert) for layer in range(num_layers) for expert in range(len(widths))]
    return {
        "top_tokens": [
            {"layer": layer, "expert": expert, "width": widths[expert], "place": place, "token": 10 * expert + place,
             "text": rng.choice(WORDS), "count": 50, "lift": 4.0 - place / 4, "lift_low": 3.0 - place / 4,
             "lift_high": 5.0, "lift_null": 1.3, "q": 0.001}
            for layer, expert in cells if expert
            for place in range(5)
        ],
        "profiles": [
            {"layer": layer, "expert": expert, "width": widths[expert], "label": "kind of token", "class": name,
             "share": 0.25, "lift": rng.uniform(0.2, 4), "low": 0.2, "high": 5.0}
            for layer, expert in cells
            for name in CLASSES
        ],
        "specialisation": [
            {"layer": layer, "label": label, "bits": 0.05, "low": 0.04, "high": 0.06, "null_mean": 0.0,
             "null_high": 0.01, "p": 0.005}
            for layer in range(num_layers) for label in ("domain", "kind of token")
        ],
        "chosen_tokens": [
            {"token": 7, "text": " the", "count": 400, "layer": None, "expert": None, "width": None, "share": None,
             "activated_ratio": 0.2, "nll": 1.3},
            *({"token": 7, "text": " the", "count": 400, "layer": layer, "expert": expert, "width": widths[expert],
               "share": 1 / len(widths), "activated_ratio": None, "nll": None} for layer, expert in cells),
        ],
    }  # fmt: skip


def make_summaries(widths: list[int], num_layers: int, rng: random.Random) -> Tables:
    return {
        "difficulty": [
            {"layer": layer, "over": over, "feature": feature, "given": None, "correlation": rng.uniform(-0.4, 0.4),
             "low": None, "high": None, "null_low": -0.05, "null_high": 0.05, "count": 120}
            for layer in [*range(num_layers), None] for over in ("types", "tokens") for feature in FEATURES
        ],
        "difficulty_curves": [
            {"feature": feature, "bin": place, "x": float(place), "activated_ratio": 0.2 + place / 100,
             "low": 0.19 + place / 100, "high": 0.21 + place / 100, "count": 300}
            for feature in FEATURES for place in range(8)
        ],
        "type_variance": [{"layer": layer, "within_share": 0.6} for layer in range(num_layers)],
        "worth": [
            {"layer": layer, "expert": expert, "width": width, "difference": rng.uniform(-0.01, 0.1), "low": -0.02,
             "high": 0.12, "p": 0.03, "parameter_share": 0.05, "compute_share": 0.05, "per_parameter_share": 0.4,
             "per_compute_share": 0.4}
            for layer in range(num_layers) for expert, width in enumerate(widths)
        ],
        "tasks": [
            {"task": task, "questions": 100, "tokens": 4000, "activated_ratio": 0.2, "low": 0.19, "high": 0.21,
             "experts_per_token": 2.0}
            for task in ("arc_easy", "arc_challenge")
        ],
        "task_differences": [
            {"task": "arc_challenge", "other": "arc_easy", "difference": 0.01, "low": -0.01, "high": 0.03, "p": 0.3}
        ],
    }  # fmt: skip


def make_positions(widths: list[int], num_layers: int) -> list[dict[str, Any]]:
    return [
        {"layer": layer, "expert": expert, "document": 1, "place": 17, "left": "Once upon a <time>", "text": "\n",
         "right": ' there was "a" & b', "gate": 0.6, "nll": None, "units": 100.0}
        for layer in range(num_layers) for expert in range(len(widths)) for _ in range(3)
    ]  # fmt: skip


def write_inspection(run: Path, widths: list[int], num_layers: int, step: int) -> Path:
    """Write both files into a run folder, and return the folder that holds them."""
    folder = run / "inspect"
    folder.mkdir()
    (folder / "inspection.json").write_text(json.dumps(make_inspection(widths, num_layers, step)))
    (folder / "positions.json").write_text(json.dumps({"positions": make_positions(widths, num_layers)}))
    return folder
