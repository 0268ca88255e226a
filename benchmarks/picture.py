"""The README's picture: what a run learned and which experts did the work. Needs matplotlib.

python benchmarks/picture.py runs/quickstart docs/images/quickstart.svg
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import yaml

from hmoe.config import recipes

matplotlib.use("svg")
matplotlib.rcParams.update(
    {"svg.hashsalt": "hmoe", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
)


def draw_loss(axes: Any, rows: list[dict[str, Any]], tokens: list[float]) -> None:
    axes.plot(tokens, [row["loss"] for row in rows], color="#b8c4d0", lw=1, label="training, nats per token")
    validated = [row for row in rows if "validation_bits_per_byte" in row]
    axes.plot(
        [row["tokens"] / 1e6 for row in validated],
        [row["validation_loss"] for row in validated],
        "o-",
        ms=3,
        color="#1f4e79",
        label="validation",
    )
    bits, place = validated[-1]["validation_bits_per_byte"], (tokens[-1], validated[-1]["validation_loss"])
    axes.annotate(f"{bits:.2f} bits per byte", place, (-90, 22), textcoords="offset points")
    axes.set(xlabel="million tokens", title="loss")
    axes.legend(frameon=False)


def draw_activated_width(
    axes: Any, rows: list[dict[str, Any]], tokens: list[float], widths: Sequence[int]
) -> None:
    uniform = 2 * sum(widths) / len(widths)
    last_ten = [rows[max(0, index - 9) : index + 1] for index in range(len(rows))]
    smooth = [statistics.mean(row["mean_activated_width"] for row in part) for part in last_ten]
    axes.plot(tokens, smooth, color="#1f4e79")
    axes.axhline(uniform, color="#999999", lw=1, ls="--")
    axes.annotate(
        "uniform routing",
        (tokens[-1], uniform),
        (-2, 4),
        textcoords="offset points",
        ha="right",
        color="#666666",
    )
    axes.set(
        xlabel="million tokens", title="hidden units a token activates", ylim=(0.8 * uniform, 1.1 * uniform)
    )


def draw_shares(axes: Any, rows: list[dict[str, Any]], widths: Sequence[int]) -> None:
    last_fifth = rows[-len(rows) // 5 :]
    share = [
        sum(layer[expert] for row in last_fifth for layer in row["expert_token_share"])
        for expert in range(len(widths))
    ]
    axes.bar(
        [str(width) for width in widths],
        [100 * value / sum(share) for value in share],
        color=matplotlib.colormaps["viridis"]([0.15 + 0.09 * expert for expert in range(len(widths))]),
    )
    axes.axhline(100 / len(widths), color="#999999", lw=1, ls="--")
    axes.set(xlabel="expert, by width", title="share of token-expert pairs, %")


def main() -> None:
    import matplotlib.pyplot as plt

    run, out = Path(sys.argv[1]), Path(sys.argv[2])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = recipes.check_recipe(yaml.safe_load((run / "config.yaml").read_text()))
    assert config.model.moe is not None
    widths = config.model.moe.expert_widths
    tokens = [row["tokens"] / 1e6 for row in rows]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.9), constrained_layout=True)
    draw_loss(left, rows, tokens)
    draw_activated_width(middle, rows, tokens, widths)
    draw_shares(right, rows, widths)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()
