"""A training step of shared weights, of every sharing and every kind of model, is that of one process.

Gradients differ by rounding, because the ranks' parts are added up in another order.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.distributed.tensor import DTensor, Shard

import hmoe
from hmoe.config import recipes
from hmoe.config.run import RunConfig
from hmoe.data.batches import cut_batch
from hmoe.model.transformer import Transformer, build_transformer, set_check_finite
from hmoe.parallel.begin import build_sharded_transformer
from hmoe.parallel.ranks import Ranks, gather_whole
from hmoe.parallel.sharding import MESH_AXES, parallelize
from hmoe.train.optimizer import build_optimizer
from hmoe.train.processes import ONE_PROCESS, Processes
from hmoe.train.step import StepRecord, train_step
from tests.conftest import tiny

BIASED = "model.moe.router={name: top_k, k: 2, bias_rate: 0.01, capacity_factor: 1.0, jitter: 0.1}"
CASES = {
    "tiny": ("tiny", []),
    "top-p": ("tiny-topp", ["model.moe.load_balance=0.01", "train.activation_checkpointing=true"]),
    "bias, capacity, noise": ("tiny", [BIASED]),
    "HyperExperts": ("tiny-hyper", []),
    "tied embeddings": ("tiny", ["model.tied=true"]),
    "shared and zero experts": ("tiny-moepp", ["model.moe.shared=24"]),
    "primes": ("tiny", ["model.vocab=307", "model.moe.widths=[5, 29, 11, 7, 2, 3]", "model.layers=1"]),
    "dense": ("tiny-dense", []),
}
SHARDINGS: dict[str, dict[str, Any]] = {
    "zero3": {"shard": "zero3"},
    "zero2": {"shard": "zero2"},
    "ddp": {"shard": "ddp"},
    "experts apart": {"shard": "ddp", "experts": "zero3"},
    "experts whole": {"shard": "zero3", "experts": "ddp"},
}
FEW = (
    ("primes", "zero3"),
    ("top-p", "zero3"),
    ("bias, capacity, noise", "zero2"),
    ("HyperExperts", "ddp"),
    ("tiny", "experts apart"),
)
EVERY = tuple((case, sharding) for case in CASES for sharding in SHARDINGS)
STEPS = 2


def load(name: str, cases: Mapping[str, tuple[str, list[str]]] = CASES, *more: str) -> RunConfig:
    recipe, overrides = cases[name]
    return recipes.read_recipe(
        recipe, [*tiny(recipe), "data.micro_batches=4", "train.precision=float32", *overrides, *more]
    )[1]


def steps(
    config: RunConfig, model: Transformer, indices: range, processes: Processes
) -> list[dict[str, Any]]:
    """Records and clipped gradients of steps on random tokens; this process computes the parts `indices`."""
    set_check_finite(model, False)
    model.activation_checkpointing = config.train.recomputes_blocks
    optimizer, generator, results = build_optimizer(model, config.optim), torch.Generator().manual_seed(1), []
    for step in range(STEPS):
        tokens_BL, targets_BL = torch.randint(0, config.model.vocab, (2, 4, 32), generator=generator).unbind(
            0
        )
        parts = [cut_batch(tokens_BL, targets_BL, config.data.num_micro_batches)[index] for index in indices]
        gradients: dict[str, torch.Tensor] = {}
        hook = optimizer.register_step_pre_hook(lambda *_, kept=gradients: keep_gradients(model, kept))
        record = train_step(model, optimizer, parts, config, step, processes)
        hook.remove()
        results.append({"record": record, "gradients": gradients})
    return results


def keep_gradients(model: Transformer, kept: dict[str, torch.Tensor]) -> None:
    kept |= {name: gather_whole(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}


def train_sharded(name: str, sharding: str, mesh: DeviceMesh) -> list[dict[str, Any]]:
    """Records, gradients and biases of a case whose micro-batches the ranks of a mesh share."""
    config = load(name)
    # The sum: each loss is divided by the micro-batches of all ranks already.
    options: dict[str, Any] = {"gradients": "sum", **SHARDINGS[sharding]}
    model = build_sharded_transformer(config.model, config.seed, mesh, **options)
    check_weights(model, build_transformer(config.model, config.seed), sharding)
    check_gathering(model, sharding)
    rank, parts = dist.get_rank(), config.data.num_micro_batches // mesh.size()
    results = steps(config, model, range(rank, parts * mesh.size(), mesh.size()), Ranks(mesh))
    biases = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert not any(isinstance(bias, DTensor) for bias in biases)
    return [*results, {"biases": biases}]


def check_weights(model: Transformer, plain: Transformer, sharding: str) -> None:
    """A model that was drawn rank by rank has the bits of one that was drawn whole, and each rank its rows alone."""
    expected = dict(plain.named_parameters())
    assert [name for name, _ in model.named_parameters()] == list(expected)
    for name, parameter in model.named_parameters():
        assert torch.equal(gather_whole(parameter), expected[name]), name
        if not parameter.requires_grad:
            assert not isinstance(parameter, DTensor)
            continue
        assert isinstance(parameter, DTensor), name
        kinds = SHARDINGS[sharding]
        in_experts = ".ffn." in name and plain.config.moe is not None
        kind = kinds.get("experts", kinds["shard"]) if in_experts else kinds["shard"]
        mesh = parameter.device_mesh
        if kind == "ddp":
            assert mesh.shape == (dist.get_world_size(), 1), name
            assert len(parameter.to_local()) == len(parameter), name
        else:
            assert parameter.placements[-1] == Shard(0), name
            parts = expected[name].chunk(mesh.size(mesh.ndim - 1))
            place = mesh.get_local_rank(mesh.ndim - 1)
            assert len(parameter.to_local()) == (len(parts[place]) if place < len(parts) else 0), name


def check_gathering(model: Transformer, sharding: str) -> None:
    """After a forward pass only `zero3` has given the weights of blocks back."""
    kinds = SHARDINGS[sharding]
    model.eval()  # routers without noise
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.int64))
    for name, parameter in model.blocks.named_parameters():
        if parameter.requires_grad:
            in_experts = ".ffn." in name and model.config.moe is not None
            kind = kinds.get("experts", kinds["shard"]) if in_experts else kinds["shard"]
            assert isinstance(parameter, DTensor) == (kind == "zero3"), name
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    model.train()


def check_prefetch(mesh: DeviceMesh) -> None:
    """When a block is computed the weights of so many after it were asked for, and no others."""
    config, asked = load("dense", CASES, "model.layers=4"), []
    gather = _fsdp_param_group.foreach_all_gather

    def count(*arguments: Any, **options: Any) -> Any:
        asked.append(1)
        return gather(*arguments, **options)

    with mock.patch.object(_fsdp_param_group, "foreach_all_gather", count):
        for prefetch in (0, 1, 2):
            model = build_sharded_transformer(
                config.model, config.seed, mesh, shard="zero3", prefetch=prefetch
            )
            seen: list[int] = []
            for block in model.blocks:
                block.attention.register_forward_hook(lambda *_, seen=seen: seen.append(len(asked)))
            asked.clear()
            model(torch.zeros(1, 4, dtype=torch.int64))
            # The first is of what lies outside of blocks.
            assert seen == [1 + min(place + 1 + prefetch, 4) for place in range(4)], (prefetch, seen)


def check_layer(rank: int, mesh: DeviceMesh) -> None:
    """A layer outside any model, whose weights were drawn before, has the mean of the ranks' gradients."""
    torch.manual_seed(0)
    layer, plain = (hmoe.MoE(32, (16, 48, 32, 16), hmoe.TopP(0.6)) for _ in range(2))
    plain.load_state_dict(layer.state_dict())
    x_TD = torch.randn(11 + 5 * rank, 32, generator=torch.Generator().manual_seed(rank))
    parallelize(layer, mesh)
    for module in (layer, plain):
        module(x_TD)[0].square().sum().backward()
    for sharded, parameter in zip(layer.parameters(), plain.parameters(), strict=True):
        assert isinstance(sharded.grad, DTensor)
        total = Ranks(mesh).add(parameter.grad)  # type: ignore[arg-type]
        torch.testing.assert_close(gather_whole(sharded.grad), total / mesh.size(), rtol=1e-5, atol=1e-6)


def run_rank(rank: int, folder: str, cases: tuple[tuple[str, str], ...], shape: tuple[int, ...]) -> None:
    """Train cases by the ranks of a mesh; the first rank writes what came of it."""
    torch.set_num_threads(1)
    size = math.prod(shape)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=MESH_AXES[-len(shape) :])
    if len(shape) == 1:
        check_layer(rank, mesh)
        if size > 1:  # one process gathers nothing
            check_prefetch(mesh)
    results = {case: train_sharded(*case, mesh) for case in cases}
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("cases", "shape"),
    [
        pytest.param(FEW, (2,), id="two ranks"),
        pytest.param(EVERY, (2,), id="every case", marks=pytest.mark.slow),
        pytest.param(EVERY, (1,), id="every case, one rank", marks=pytest.mark.slow),
        pytest.param(EVERY, (4,), id="every case, four ranks", marks=pytest.mark.slow),
        pytest.param(EVERY, (2, 2), id="every case, hybrid", marks=pytest.mark.slow),
    ],
)
def test_sharded_steps_are_the_plain_ones(
    cases: tuple[tuple[str, str], ...], shape: tuple[int, ...], tmp_path: Path
) -> None:
    arguments = (str(tmp_path), cases, shape)
    torch.multiprocessing.spawn(run_rank, arguments, nprocs=math.prod(shape))  # type: ignore[attr-defined, no-untyped-call]
    sharded = torch.load(tmp_path / "results.pt", weights_only=False)
    for name in dict.fromkeys(case for case, _ in cases):
        config = load(name)
        model = build_transformer(config.model, config.seed)
        plain = steps(config, model, range(4), ONE_PROCESS)
        for case in (case for case in cases if case[0] == name):
            compare_runs(", ".join(case), sharded[case], plain, model)


def compare_runs(
    case: str, sharded: list[dict[str, Any]], plain: list[dict[str, Any]], model: Transformer
) -> None:
    """Records, gradients by name and biases of routers are those of one process."""
    *results, last = sharded
    for step, (result, expected) in enumerate(zip(results, plain, strict=True)):
        compare(result["record"], expected["record"])
        assert result["gradients"].keys() == expected["gradients"].keys()
        largest = max(gradient.abs().max() for gradient in expected["gradients"].values())
        for key, gradient in expected["gradients"].items():
            error = (result["gradients"][key] - gradient).abs().max()
            assert error <= (1e-6 if step == 0 else 1e-4) * largest, (case, step, key)
    biases = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert all(torch.equal(bias, other) for bias, other in zip(biases, last["biases"], strict=True))
    assert len(biases) == (2 if case.startswith("bias") else 0)


def compare(record: StepRecord, expected: StepRecord) -> None:
    """Counts are equal, real numbers but for rounding."""
    assert record.applied
    assert record.terms == pytest.approx(expected.terms, rel=1e-5)
    assert record.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    for field in (
        "lr",
        "tokens",
        "flops",
        "num_pairs_ZE",
        "slots",
        "activated_parameters",
        "experts_per_token",
    ):
        assert getattr(record, field) == getattr(expected, field), field
