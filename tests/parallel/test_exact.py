"""In exact mode weights, moments and records have the same bits with any number of processes, one included."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from hmoe.data.batches import cut_batch
from hmoe.model.transformer import Transformer, build_transformer, set_check_finite
from hmoe.parallel.begin import build_sharded_transformer
from hmoe.parallel.exact import ExactRanks
from hmoe.parallel.ranks import gather_whole
from hmoe.train.optimizer import build_optimizer
from hmoe.train.processes import OneExactProcess, Processes
from hmoe.train.step import train_step
from tests.parallel.test_sharded_step import BIASED, CASES, load

BATCHED = "model.moe.statistics=batch"
EXACT_CASES = CASES | {
    "primes": ("tiny", ["model.vocab=307", "model.moe.widths=[5, 29, 11, 7, 2, 3]", BATCHED]),
    "top-p": ("tiny-topp", ["model.moe.load_balance=0.01", "train.activation_checkpointing=true", BATCHED]),
    "bias, capacity, noise": ("tiny", [BIASED, "optim.decay_all=true"]),
    "bfloat16": ("tiny", ["train.precision=bfloat16"]),
    "float64": ("tiny", ["train.precision=float64"]),
}
SHARDINGS: dict[str, dict[str, Any]] = {
    "zero3": {"shard": "zero3"},
    "zero2": {"shard": "zero2"},
    "both": {"shard": "zero2", "experts": "zero3"},
}
STEPS = 4
EVERY = tuple((case, sharding) for case in EXACT_CASES for sharding in SHARDINGS)
FEW = (("primes", "zero3"), ("top-p", "both"), ("bias, capacity, noise", "zero2"))


def train_steps(name: str, num_parts: int, model: Transformer, processes: Processes) -> str:
    """SHA-256 of records, weights and moments after a few steps on random tokens."""
    config = load(name, EXACT_CASES, f"data.micro_batches={num_parts}", f"data.batch_tokens={32 * num_parts}")
    set_check_finite(model, False)
    model.activation_checkpointing = config.train.recomputes_blocks
    optimizer = build_optimizer(model, config.optim, exact=True)
    generator, digest = torch.Generator().manual_seed(1), hashlib.sha256()
    for step in range(STEPS):
        batch = torch.randint(0, config.model.vocab, (2, num_parts, 32), generator=generator)
        parts = cut_batch(*batch.unbind(0), num_parts)[processes.rank :: processes.size]
        digest.update(repr(train_step(model, optimizer, parts, config, step, processes)).encode())
    for parameter in model.parameters():
        for tensor in (parameter, *optimizer.state[parameter].values()):
            digest.update(gather_whole(tensor.detach()).contiguous().numpy().tobytes())
    return digest.hexdigest()


def build_shared(name: str, sharding: str, num_parts: int) -> tuple[Transformer, ExactRanks]:
    config, mesh = load(name, EXACT_CASES), init_device_mesh("cpu", (dist.get_world_size(),))
    dtype = torch.float64 if config.train.precision == "float64" else torch.float32
    options = {"gradients": "sum", **SHARDINGS[sharding]}
    model = build_sharded_transformer(config.model, config.seed, mesh, dtype, **options)
    ranks = ExactRanks(mesh)
    ranks.adopt(model, num_parts, model.blocks if sharding == "zero2" else ())
    return model, ranks


def check_alignment(model: Transformer) -> None:
    """Gathered weights begin where those of one process do: the last bit of a product may depend on that."""
    misplaced: list[int] = []
    handles = [
        module.register_forward_pre_hook(
            lambda module, *_: misplaced.extend(p.data_ptr() % 64 for p in module.parameters(recurse=False))
        )
        for module in model.modules()
    ]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 4, dtype=torch.int64))
    model.train()
    assert len(misplaced) > len(model.blocks)
    assert not any(misplaced)
    for handle in handles:  # layers with hooks take other ways, which round otherwise
        handle.remove()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def run_rank(
    rank: int, folder: str, size: int, cases: tuple[tuple[str, str], ...], numbers: tuple[int, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{size}", rank=rank, world_size=size)
    results = {}
    for case in cases:
        for num_parts in numbers:
            model, ranks = build_shared(*case, num_parts)
            check_alignment(model)
            results[case, num_parts] = train_steps(case[0], num_parts, model, ranks)
    if rank == 0:
        torch.save(results, f"{folder}/{size}.pt")
    dist.destroy_process_group()


def train_alone(name: str, num_parts: int) -> str:
    config = load(name, EXACT_CASES)
    dtype = torch.float64 if config.train.precision == "float64" else torch.float32
    model = build_transformer(config.model, config.seed, dtype)
    return train_steps(name, num_parts, model, OneExactProcess())


@pytest.mark.parametrize(
    ("cases", "sizes", "numbers"),
    [
        pytest.param(FEW, (2,), (6,), id="two processes"),
        pytest.param(EVERY, (2, 4), (4, 12), id="every case", marks=pytest.mark.slow),
        pytest.param(EVERY, (3, 6), (6,), id="no powers of two", marks=pytest.mark.slow),
    ],
)
def test_bits_do_not_depend_on_the_number_of_processes(
    cases: tuple[tuple[str, str], ...], sizes: tuple[int, ...], numbers: tuple[int, ...], tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = {(name, n): train_alone(name, n) for name in {case for case, _ in cases} for n in numbers}
    finally:
        torch.set_num_threads(threads)
    for size in sizes:
        torch.multiprocessing.spawn(run_rank, (str(tmp_path), size, cases, numbers), nprocs=size)  # type: ignore[attr-defined, no-untyped-call]
        results = torch.load(tmp_path / f"{size}.pt", weights_only=False)
        different = [key for key, value in results.items() if value != expected[key[0][0], key[1]]]
        assert not different
