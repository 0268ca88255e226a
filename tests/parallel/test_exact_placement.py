"""In exact mode no bit depends on where experts live, nor on when they move: weights, moments and records."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from hmoe.checkpoint.pieces import TensorHash, add_hashes, digest_hashes, hash_pieces
from hmoe.checkpoint.state import capture_state, digest_shared_state
from hmoe.config.run import RunConfig
from hmoe.data.batches import cut_batch
from hmoe.model.transformer import Transformer, build_transformer, set_backend, set_check_finite
from hmoe.parallel.begin import build_sharded_transformer
from hmoe.parallel.exact import ExactRanks
from hmoe.parallel.expert_parallel import list_dispatched
from hmoe.parallel.pieces import cut_pieces
from hmoe.parallel.placement import place_experts
from hmoe.parallel.replacement import move_experts
from hmoe.specs.placement import Placement, place_contiguously
from hmoe.train.optimizer import build_optimizer
from hmoe.train.processes import OneExactProcess, Processes
from hmoe.train.step import StepRecord, train_step
from tests.parallel.test_exact import EXACT_CASES
from tests.parallel.test_sharded_step import load

STEPS = 4
PLACED_CASES = EXACT_CASES | {
    "rectify": ("tiny-rectify", []),
    "odd widths": ("tiny", ["model.dim=20", "model.heads=2", "model.moe.widths=[1, 30, 7, 3, 90]"]),
}
FEW = (("primes", "zero3"), ("top-p", "zero2"), ("rectify", "zero2"))
EVERY = tuple((case, shard) for case in PLACED_CASES if case != "dense" for shard in ("zero2", "zero3"))


def load_case(name: str, num_parts: int) -> RunConfig:
    sizes = (f"data.micro_batches={num_parts}", f"data.batch_tokens={32 * num_parts}")
    return load(name, PLACED_CASES, *sizes)


def prepare(model: Transformer, config: RunConfig) -> torch.optim.Optimizer:
    set_check_finite(model, False)
    set_backend(model, "exact")
    model.activation_checkpointing = config.train.recomputes_blocks
    return build_optimizer(model, config.optim, exact=True)


def take_step(
    step: int, config: RunConfig, model: Transformer, optimizer: torch.optim.Optimizer, processes: Processes
) -> StepRecord:
    generator = torch.Generator().manual_seed(step)
    num_parts = config.data.num_micro_batches
    batch = torch.randint(0, config.model.vocab, (2, num_parts, 32), generator=generator)
    parts = cut_batch(*batch.unbind(0), num_parts)[processes.rank :: processes.size]
    return train_step(model, optimizer, parts, config, step, processes)


def choose_type(config: RunConfig) -> torch.dtype:
    return torch.float64 if config.train.precision == "float64" else torch.float32


def train_alone(name: str, num_parts: int) -> str:
    """Digest of records, weights and moments of one process."""
    config, process = load_case(name, num_parts), OneExactProcess()
    model = build_transformer(config.model, config.seed, choose_type(config))
    optimizer = prepare(model, config)
    records = [repr(take_step(step, config, model, optimizer, process)) for step in range(STEPS)]
    return digest_shared_state(capture_state(0, model, optimizer, {"records": records}))


def make_placements(model_config: RunConfig, size: int, step: int) -> list[Placement]:
    """Another placement for each step: even, contiguous, by a load that nobody has."""
    moe = model_config.model.moe
    assert moe is not None
    widths = moe.expert_widths
    if step == 0:
        placement = place_experts(widths, size, replicas=[0])
    elif step == 1:
        placement = place_experts(widths, size, range(len(widths)), replicas=[0])
    else:
        plain = place_contiguously(widths, size)
        placement = Placement(widths, size, tuple(p for p in plain.parts if p.expert), (0,))
    return [placement] * len(model_config.model.moe_layers)


def train_placed(name: str, shard: str, num_parts: int, mesh: DeviceMesh) -> str:
    config, ranks = load_case(name, num_parts), ExactRanks(mesh)
    group = mesh.size(mesh.ndim - 1)
    options: dict[str, Any] = {"shard": shard, "gradients": "sum", "experts": "expert_parallel"}
    placement = make_placements(config, group, 0)
    model = build_sharded_transformer(
        config.model, config.seed, mesh, choose_type(config), placement=placement, **options
    )
    optimizer = prepare(model, config)
    ranks.adopt(model, num_parts, model.blocks if shard == "zero2" else ())
    records = []
    for step in range(STEPS):
        if step and mesh.ndim == 1:
            sent = move_experts(model, optimizer, make_placements(config, group, step), ranks.gather_values)
            assert (name, group, step) != ("primes", 2, 1) or sum(ranks.gather_values(sent)) > 0
            ranks.adopt(model, num_parts, model.blocks if shard == "zero2" else ())
            placements = [experts.placement for experts in list_dispatched(model)]
            assert placements == make_placements(config, group, step)
        records.append(repr(take_step(step, config, model, optimizer, ranks)))
    pieces = cut_pieces(model, optimizer)
    own = hash_pieces((f"{part}/{key}", piece) for part in pieces for key, piece in pieces[part].items())
    every = ranks.gather_values(own)
    hashes = add_hashes({key: TensorHash(*value) for key, value in each.items()} for each in every)
    return digest_hashes({"step": 0, "records": records}, hashes)


def run_rank(
    rank: int, folder: str, shape: tuple[int, ...], cases: tuple[tuple[str, str], ...], num_parts: int
) -> None:
    torch.set_num_threads(1)
    size = math.prod(shape)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{shape}", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "expert")[-len(shape) :])
    results = {case: train_placed(*case, num_parts, mesh) for case in cases}
    if rank == 0:
        torch.save(results, f"{folder}/{shape}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("cases", "shapes", "num_parts"),
    [
        pytest.param(FEW, ((2,),), 6, id="two processes"),
        pytest.param(FEW[:1], ((2, 2),), 4, id="two by two"),
        pytest.param(EVERY, ((2,), (4,), (2, 2)), 4, id="every case", marks=pytest.mark.slow),
        pytest.param(EVERY, ((3,), (6,), (3, 2)), 6, id="no powers of two", marks=pytest.mark.slow),
    ],
)
def test_bits_do_not_depend_on_where_experts_live(
    cases: tuple[tuple[str, str], ...], shapes: tuple[tuple[int, ...], ...], num_parts: int, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = {name: train_alone(name, num_parts) for name in {case for case, _ in cases}}
    finally:
        torch.set_num_threads(threads)
    for shape in shapes:
        arguments = (str(tmp_path), shape, cases, num_parts)
        torch.multiprocessing.spawn(run_rank, arguments, nprocs=math.prod(shape))  # type: ignore[attr-defined, no-untyped-call]
        results = torch.load(tmp_path / f"{shape}.pt", weights_only=False)
        different = [(shape, case) for case, digest in results.items() if digest != expected[case[0]]]
        assert not different
