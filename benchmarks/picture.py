"""The README's picture: what a run learned and which experts did the work. Needs matplotlib.

python benchmarks/picture.py runs/quickstart docs/images/quickstart.svg
"""

import json
import sys
from pathlib import Path

import matplotlib
import yaml

from hmoe.config import recipes

matplotlib.use("svg")
matplotlib.rcParams.update(
    {"svg.hashsalt": "hmoe", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
)


def main() -> None:
    import matplotlib.pyplot as plt

    run, out = Path(sys.argv[1]), Path(sys.argv[2])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = recipes.check(yaml.safe_load((run / "config.yaml").read_text()))
    assert config.model.moe is not None
    widths = config.model.moe.expert_widths
    tokens = [row["tokens"] / 1e6 for row in rows]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.9), constrained_layout=True)

    left.plot(tokens, [row["loss"] for row in rows], color="#b8c4d0", lw=1, label="training, nats per token")
    validated = [row for row in rows if "validation_bits_per_byte" in row]
    left.plot(
        [r["tokens"] / 1e6 for r in validated],
        [r["validation_loss"] for r in validated],
        "o-",
        ms=3,
        color="#1f4e79",
        label="validation",
    )
    bits = validated[-1]["validation_bits_per_byte"]
    left.annotate(
        f"{bits:.2f} bits per byte",
        (tokens[-1], validated[-1]["validation_loss"]),
        (-90, 22),
        textcoords="offset points",
    )
    left.set(xlabel="million tokens", title="loss")
    left.legend(frameon=False)

    uniform = 2 * sum(widths) / len(widths)
    smooth = [
        sum(r["mean_activated_width"] for r in rows[max(0, i - 9) : i + 1]) / len(rows[max(0, i - 9) : i + 1])
        for i in range(len(rows))
    ]
    middle.plot(tokens, smooth, color="#1f4e79")
    middle.axhline(uniform, color="#999999", lw=1, ls="--")
    middle.annotate(
        "uniform routing", (tokens[-1], uniform), (-2, 4), textcoords="offset points", ha="right", color="#666666"
    )
    middle.set(xlabel="million tokens", title="hidden units a token activates", ylim=(0.8 * uniform, 1.1 * uniform))

    last = rows[-len(rows) // 5 :]
    share = [
        sum(row["expert_token_share"][layer][e] for row in last for layer in range(len(row["expert_token_share"])))
        for e in range(len(widths))
    ]
    right.bar(
        [str(w) for w in widths],
        [100 * s / sum(share) for s in share],
        color=plt.colormaps["viridis"]([0.15 + 0.09 * e for e in range(len(widths))]),
    )
    right.axhline(100 / len(widths), color="#999999", lw=1, ls="--")
    right.set(xlabel="expert, by width", title="share of token-expert pairs, %")
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()
