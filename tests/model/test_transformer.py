import pytest
import torch

from hmoe.config import recipes
from hmoe.config.recipes import check_model
from hmoe.model.attention import Sequences
from hmoe.model.layers import Projection
from hmoe.model.moe import MoE
from hmoe.model.transformer import Transformer, build_transformer
from hmoe.specs.model import ModelSpec
from tests import oracles


def config(**changes: object) -> ModelSpec:
    base = {
        "dim": 16,
        "layers": 2,
        "heads": 4,
        "vocab": 29,
        "moe": {"widths": [5, 9, 4], "router": {"name": "top_k", "k": 2}},
    }
    return check_model({**base, **changes})


def oracle_logits(model: Transformer, tokens: list[int]) -> torch.Tensor:
    """One sequence through the whole decoder, written out."""
    c = model.config
    x = torch.stack([model.embed.weight[t] for t in tokens])
    for block in model.blocks:
        weights = {name: getattr(block.attention, f"{name}_proj").weight for name in "qkvo"}
        if c.qk_norm:
            weights |= {name: getattr(block.attention, name).weight for name in ("q_norm", "k_norm")}
        normed = torch.stack([oracles.rms_norm(row, block.attention_norm.weight, c.norm_eps) for row in x])
        x = x + oracles.attention(normed, weights, c.heads, c.num_kv_heads, c.rope_theta, c.norm_eps)
        normed = torch.stack([oracles.rms_norm(row, block.ffn_norm.weight, c.norm_eps) for row in x])
        if isinstance(block.ffn, MoE):
            experts = [block.ffn.expert(i) for i in range(len(block.ffn.widths))]
            x = (
                x
                + oracles.moe(
                    normed, block.ffn.router.weight, experts, k=2, renormalize=c.moe.router.renormalize
                )[0]
            )
        else:
            weight = (block.ffn.w_gate, block.ffn.w_up, block.ffn.w_down.T)
            x = x + torch.stack([oracles.expert(row, weight) for row in normed])
    x = torch.stack([oracles.rms_norm(row, model.norm.weight, c.norm_eps) for row in x])
    return x @ model.head_weight.T


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kv_heads": 2},
        {"kv_heads": 1, "tied": True},
        {"moe": None, "ffn": 11},
        {"head_dim": 6, "kv_heads": 2},
        {"qk_norm": "head", "kv_heads": 2, "head_dim": 8},
        {"qk_norm": "width", "kv_heads": 2},
        {"moe": {"widths": [5, 9, 4], "router": {"name": "top_k", "k": 2, "renormalize": False}}},
        {"ffn": 7, "moe": {"widths": [5, 9], "router": {"name": "top_k", "k": 2}, "dense_layers": [0]}},
    ],
)
def test_logits_are_the_oracle(changes: dict[str, object]) -> None:
    model = build_transformer(config(**changes), 0, torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        tokens = [3, 1, 28, 0, 5, 5]
        logits, routings = model(torch.tensor([tokens, tokens[::-1]]))
        torch.testing.assert_close(logits[0], oracle_logits(model, tokens), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(logits[1], oracle_logits(model, tokens[::-1]), rtol=1e-10, atol=1e-10)
    assert len(routings) == len(model.config.moe_layers)


@pytest.mark.parametrize("tied", [False, True])
def test_with_targets_forward_gives_the_loss_of_its_logits(tied: bool) -> None:
    model = build_transformer(config(tied=tied), 0, torch.float64)
    tokens, targets = torch.randint(0, 29, (2, 3, 7)).unbind(0)
    logits, routings = model(tokens)
    loss, again = model(tokens, targets)
    expected = oracles.cross_entropy(logits.flatten(0, 1), targets.flatten().tolist())
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(a.expert_N, b.expert_N) for a, b in zip(routings, again, strict=True))
    parameters = list(model.parameters())
    gradients = (torch.autograd.grad(value, parameters) for value in (loss, expected))
    for gradient, truth in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-10, atol=1e-12)


def test_future_tokens_do_not_matter() -> None:
    model = build_transformer(config(), 0, torch.float64)
    a, b = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 9, 9]])
    torch.testing.assert_close(model(a)[0][:, :2], model(b)[0][:, :2], rtol=1e-13, atol=1e-13)


def gradients(model: Transformer, tokens: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    x, _ = model.hidden(tokens)
    x.square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_activation_checkpointing_changes_no_bit() -> None:
    model = build_transformer(config(), 0)
    tokens = torch.randint(0, 29, (2, 8))
    plain = gradients(model, tokens)
    model.activation_checkpointing = True
    for a, b in zip(plain, gradients(model, tokens), strict=True):
        assert torch.equal(a, b)


def test_weights_depend_on_the_seed_and_the_name_only() -> None:
    a, b, c = (
        build_transformer(config(), 1),
        build_transformer(config(layers=3), 1),
        build_transformer(config(), 2),
    )
    assert torch.equal(a.blocks[1].attention.q_proj.weight, b.blocks[1].attention.q_proj.weight)
    assert not torch.equal(a.blocks[1].attention.q_proj.weight, c.blocks[1].attention.q_proj.weight)
    assert not torch.equal(a.blocks[0].attention.q_proj.weight, a.blocks[1].attention.q_proj.weight)
    assert torch.isfinite(torch.cat([p.flatten() for p in a.parameters()])).all()


@pytest.mark.parametrize("preset", ["tiny", "tiny-dense"])
def test_the_first_loss_is_that_of_knowing_nothing(preset: str) -> None:
    model_config = recipes.read_recipe(preset)[1].model
    model = build_transformer(model_config, 0)
    logits, _ = model(torch.randint(0, model_config.vocab, (2, 64)))
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.randint(0, model_config.vocab, (128,))
    )
    uniform = torch.tensor(float(model_config.vocab)).log()
    assert abs(loss - uniform) < 1.0


def test_residual_stream_keeps_its_scale_with_depth() -> None:
    scales = []
    for layers in (2, 32):
        model = build_transformer(config(layers=layers, dim=64, moe={"widths": [64, 128]}), 0)
        x = model.embed(torch.randint(0, 29, (2, 32)))
        for block in model.blocks:
            x, _ = block(x, (torch.ones(1, 1, 32, 8), torch.zeros(1, 1, 32, 8)), Sequences())
        scales.append(x.std().item())
    assert scales[1] / scales[0] < 2


def test_autocast_logits_are_near_those_of_float32() -> None:
    model = build_transformer(config(dim=64), 0)
    tokens = torch.randint(0, 29, (2, 16))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = model(tokens)[0]
    with torch.no_grad():
        assert (low - model(tokens)[0]).abs().mean() < 0.05


def test_one_row_takes_the_matrix_vector_product() -> None:
    """The same numbers with and without gradients, in float32 and in bfloat16."""
    layer = Projection(48, 20)
    x = torch.randn(1, 1, 48)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        low = layer.to(dtype)
        expected = low(x.to(dtype))
        with torch.no_grad():
            row = low(x.to(dtype))
            rows = low(x.to(dtype).expand(3, 1, 48))
        assert row.shape == (1, 1, 20)
        torch.testing.assert_close(row, expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(rows[1:2], expected, rtol=tolerance, atol=tolerance)
