import pytest
import torch

from hmoe.config import recipes
from hmoe.config.counts import (
    count_activated_parameters,
    count_parameters,
    count_training_flops,
    estimate_flops_per_token,
)
from hmoe.config.plan import make_plan
from hmoe.model.transformer import Transformer


@pytest.mark.parametrize(
    ("preset", "total", "activated"),
    [
        ("dense-0.2b", 176.57e6, 176.57e6),
        ("dense-1b", 1323.9e6, 1323.9e6),
        ("moe-0.4b-topk", 417.30e6, 162.49e6),
        ("moe-3b-topk", 2582.4e6, 770.4e6),
        ("hmoe-0.4b-topk", 417.30e6, 162.49e6),
        ("hmoe-3b-topk", 2582.4e6, 770.4e6),
        ("hmoe-16b-topk", 16.91e9, 2.82e9),
    ],
)
def test_counts_of_the_paper(preset: str, total: float, activated: float) -> None:
    numbers = make_plan(recipes.read_recipe(preset)[1])
    assert numbers["total_parameters"] == pytest.approx(total, rel=4e-4)
    assert numbers["activated_parameters"] == pytest.approx(activated, rel=2e-3)


def test_back_solved_activated_parameters_of_the_paper() -> None:
    """Appendix: HMoE-0.4B top-k activates 153M, which is 2729 of 12288 hidden units."""
    model = recipes.read_recipe("hmoe-0.4b-topk")[1].model
    assert count_activated_parameters(model, 2729) == pytest.approx(153e6, rel=1e-3)


@pytest.mark.parametrize("preset", recipes.list_presets())
def test_counted_parameters_are_those_of_the_model(preset: str) -> None:
    """Every preset is planned, and built on the meta device."""
    model = recipes.read_recipe(preset)[1].model
    with torch.device("meta"):
        built = Transformer(model)
    parts = count_parameters(model)
    assert sum(parts.values()) == sum(p.numel() for p in built.parameters())
    layers = [built.blocks[i].ffn for i in model.moe_layers]
    experts = [m for ffn in layers for n, m in ffn.named_parameters() if n.startswith("w_")]
    assert parts["experts"] == sum(p.numel() for p in experts)


def test_flops_per_token_is_the_formula() -> None:
    model = recipes.read_recipe("moe-0.4b-topk")[1].model
    context, activated = 4096, make_plan(recipes.read_recipe("moe-0.4b-topk")[1])["activated_parameters"]
    expected = 6 * (activated - 32000 * 768) + 6 * 12 * context * 12 * 64
    assert estimate_flops_per_token(model, context) == expected
    assert count_training_flops(model, context, 10, 10 * 12 * 3072) == 10 * expected


def test_flops_agree_with_a_count_of_the_matrix_products() -> None:
    """Forward FLOPs counted by PyTorch on the parts it can count: 2 per parameter and token, without norms."""
    from torch.utils.flop_counter import FlopCounterMode

    from hmoe.model.transformer import build_transformer, set_check_finite

    config = recipes.read_recipe("tiny-dense")[1]
    model = build_transformer(config.model, 0)
    set_check_finite(model, False)
    tokens = torch.zeros(2, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    counts = counter.get_flop_counts()["Global"]
    scores = sum(count for op, count in counts.items() if "attention" in str(op))
    parts = count_parameters(config.model)
    products = sum(parts.values()) - parts["embedding"] - parts["norms"]
    assert sum(counts.values()) - scores == 2 * products * tokens.numel()


def test_what_stands_beside_the_experts_is_counted() -> None:
    """What is beside the experts is counted by differences to the plain model.

    These are of the parameters a token uses, the numbers kept for the backward pass, the HyperExperts made.
    """
    plain = make_plan(recipes.read_recipe("tiny")[1])
    layers, dim, tokens = 2, 128, 4096
    hyper = make_plan(
        recipes.read_recipe(
            "tiny", ["model.moe.hyper={dim: 16, embedding: 32, hidden: 24, layer_embedding: 3}"]
        )[1]
    )
    used = 2 * dim * 16 + dim + 16
    assert hyper["activated_parameters"] - plain["activated_parameters"] == layers * used
    made = (
        28 * layers * (32 * 24 + 24 * 24 + (24 + 3) * 24 + 24 * used)
    )  # 28 pairs of 8 experts, in each micro-batch
    assert hyper["flops_per_token"] - plain["flops_per_token"] == pytest.approx(
        6 * (layers * used + made / tokens), abs=1
    )
    kept = hyper["memory_by_part_bytes"]["activations"] - plain["memory_by_part_bytes"]["activations"]
    assert kept == layers * tokens * 4 * 2 * 16
    shared = make_plan(recipes.read_recipe("tiny", ["model.moe.shared=24"])[1])
    assert shared["activated_parameters"] - plain["activated_parameters"] == layers * 3 * dim * 24
    kept = shared["memory_by_part_bytes"]["activations"] - plain["memory_by_part_bytes"]["activations"]
    assert kept == layers * tokens * 4 * 4 * 24


def test_tied_embedding_is_counted_once() -> None:
    config = recipes.read_recipe("tiny", ["model.tied=true"])[1]
    untied = recipes.read_recipe("tiny")[1]
    saved = config.model.vocab * config.model.dim
    assert make_plan(untied)["total_parameters"] - make_plan(config)["total_parameters"] == saved
    assert make_plan(untied)["flops_per_token"] == make_plan(config)["flops_per_token"]


def test_range_and_assumption_of_top_p() -> None:
    numbers = make_plan(recipes.read_recipe("hmoe-0.4b-topp")[1])
    least, most = numbers["activated_parameters_range"]
    assert least < numbers["activated_parameters"] < most == numbers["total_parameters"]
    assert "5 experts" in numbers["activated_assumption"]


def test_budgets_become_tokens() -> None:
    numbers = make_plan(recipes.read_recipe("moe-0.4b-topk")[1])
    assert numbers["budget_tokens"] * numbers["flops_per_token"] == pytest.approx(7e19, rel=1e-6)
    assert make_plan(recipes.read_recipe("tiny", ["train.steps=7"])[1])["budget_tokens"] == 7 * 4096
    assert (
        make_plan(recipes.read_recipe("tiny", ["train.steps=null", "train.seconds=5"])[1])["budget_tokens"]
        is None
    )


def test_memory_falls_with_micro_batches_and_checkpointing() -> None:
    whole, parts, recomputed = (
        make_plan(recipes.read_recipe("hmoe-0.4b-topk", overrides)[1])
        for overrides in (
            ["data.micro_batches=1", "train.activation_checkpointing=false"],
            ["data.micro_batches=640", "train.activation_checkpointing=false"],
            ["data.micro_batches=640", "train.activation_checkpointing=true"],
        )
    )
    assert whole["memory_bytes"] > parts["memory_bytes"] > recomputed["memory_bytes"]
    assert whole["memory_bytes"] == sum(whole["memory_by_part_bytes"].values())
    assert isinstance(whole["memory_bytes"], int)
