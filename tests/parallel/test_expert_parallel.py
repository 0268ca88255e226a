"""Layers whose experts are placed give what a layer gives that has them all: outputs, gradients by name, and the rest.

In float64, so that a wrong row shows; each process has its own number of tokens, none among them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.checkpoint import checkpoint

import hmoe
from hmoe.model.balance import update_router_biases
from hmoe.model.decisions import Decisions
from hmoe.model.router import RouterLayer
from hmoe.parallel import trip
from hmoe.parallel.exact import ExactRanks
from hmoe.parallel.expert_parallel import list_dispatched
from hmoe.parallel.kept_rows import gather_weights, list_kept_rows
from hmoe.parallel.placement import place_experts
from hmoe.parallel.ranks import Ranks
from hmoe.parallel.replacement import move_experts
from hmoe.specs.placement import ExpertPart, Placement, place_contiguously

WIDTHS = (5, 29, 11, 7, 2, 3)
DIM = 12
HEAT = (6, 1, 2, 3, 4, 5)
TOKENS = (7, 1, 0, 11)  # of each process
MINE = "rectify"  # cases whose router asks for ranks
ROUTERS: dict[str, Any] = {
    "top-2": hmoe.TopK(k=2),
    "top-1": hmoe.TopK(k=1, renormalize=False),
    "top-p": hmoe.TopP(p=0.6),
    "all": hmoe.TopP(p=1.0),
    "capacity": hmoe.TopK(k=2, capacity_factor=1.0),
    "rectify": hmoe.TopK(k=2, capacity_factor=0.5, rectify="fr+ir"),
    "expert choice": hmoe.ExpertChoice(),
    "bias": hmoe.TopK(k=2, bias_rate=0.01),
}
PLACEMENTS: dict[str, dict[str, Any]] = {
    "even": {},
    "cut": {"cut": True},
    "replicas": {"replicas": 2},
    "cut, replica": {"cut": True, "replicas": 1},
}
FEW = (
    ("top-2", "even"),
    ("top-p", "cut, replica"),
    ("all", "cut"),
    ("rectify", "replicas"),
    ("expert choice", "contiguous"),
    ("bias", "one process has all"),
)
EVERY = tuple((router, placement) for router in ROUTERS for placement in (*PLACEMENTS, "one process has all"))


class Model(nn.Module):
    """Two layers with all that can stand beside experts."""

    def __init__(self, router: Any) -> None:
        super().__init__()
        extras: dict[str, Any] = {"shared": 4, "zero": hmoe.ZeroExperts(null=1, copy=1, constant=1)}
        if router.name == "expert_choice":
            extras.pop("zero")
        self.blocks = nn.ModuleList(hmoe.MoE(DIM, WIDTHS, router, **extras) for _ in range(2))
        if isinstance(router, hmoe.TopP):
            self.blocks[1] = hmoe.MoE(DIM, WIDTHS, router, hyper=hmoe.Hyper(dim=4))

    recomputes = False

    def forward(self, x: torch.Tensor, **ranks: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
        routings = []
        for block in self.blocks:
            decisions = Decisions()

            def run(x: torch.Tensor, block: Any = block, decisions: Decisions = decisions) -> Any:
                decisions.begin()
                return block(x, decisions=decisions, **ranks)

            y, routing = checkpoint(run, x, use_reentrant=False) if self.recomputes else run(x)
            x, routings = x + y, [*routings, routing]
        return x, routings


def make_model(router: str) -> Model:
    """The same model everywhere; experts of very different importance."""
    torch.manual_seed(0)
    model = Model(ROUTERS[router]).double()
    for block in model.blocks:
        block.router.weight.data.mul_(20)
    return model


def make_placement(name: str, size: int) -> Placement:
    if name == "contiguous":
        return place_contiguously(WIDTHS, size)
    if name == "one process has all":
        return Placement(WIDTHS, size, tuple(ExpertPart(i, 0, h, size - 1) for i, h in enumerate(WIDTHS)))
    return place_experts(WIDTHS, size, HEAT, **PLACEMENTS[name])


def draw_tokens(size: int) -> list[torch.Tensor]:
    """Tokens of each process, every second row of a larger table: not contiguous."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2 * n, DIM, generator=generator, dtype=torch.float64)[::2] for n in TOKENS[:size]]


def lose(y: torch.Tensor, routings: Sequence[Any]) -> torch.Tensor:
    """A loss that reaches outputs, gates and probabilities."""
    return y.sin().sum() + sum(hmoe.load_balance(r) + (r.gate_N**2).sum() for r in routings)


def compute_alone(
    router: str, placement: Placement, size: int, group: int
) -> tuple[Model, list[tuple[torch.Tensor, torch.Tensor | None]]]:
    """One process: (y, d x) of each process's tokens, and the sum of all gradients in the model."""
    model, results = make_model(router), []
    for rank, tokens in enumerate(draw_tokens(size)):
        x, ranks = tokens.clone().requires_grad_(), {}
        if MINE in router:
            ranks = simulate_ranks(placement, rank % group, len(x), model)
        y, routings = model(x, **ranks)
        lose(y, routings).backward()
        results.append((y.detach(), x.grad))
    return model, results


def simulate_ranks(placement: Placement, rank: int, num_tokens: int, model: Model) -> dict[str, torch.Tensor]:
    """The maps with which a process alone does what the process of this number does."""
    whole = placement.list_whole_ranks()
    homes = [rank if i in placement.everywhere else -1 if r is None else r for i, r in enumerate(whole)]
    homes += [-1] * (len(model.blocks[0].routed_widths) - len(WIDTHS))  # type: ignore[arg-type]
    return {"token_rank_T": torch.full((num_tokens,), rank), "expert_rank_E": torch.tensor(homes)}


def check_case(router: str, name: str, mesh: DeviceMesh) -> None:
    size, group = mesh.size(), mesh.size(mesh.ndim - 1)
    rank, placement = dist.get_rank(), make_placement(name, mesh.size(mesh.ndim - 1))
    plain, results = compute_alone(router, placement, size, group)
    model = make_model(router)
    options: dict[str, Any] = {"experts": "expert_parallel", "placement": placement, "shard": "zero2"}
    hmoe.parallelize(model, mesh, gradients="sum", **options)
    ranks = Ranks(mesh)
    ranks.adopt(model, size)
    x = draw_tokens(size)[rank].clone().requires_grad_()
    y, routings = model(x)
    lose(y, routings).backward()
    torch.testing.assert_close(y, results[rank][0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(x.grad, results[rank][1], rtol=1e-10, atol=1e-10)
    weights = dict(plain.named_parameters())
    for kept in (kept for kept in list_kept_rows(model) if kept.parameter.requires_grad):
        assert kept.parameter.grad is not None, kept.name
        gradient, whole = kept.parameter.grad.to_local(), weights[kept.name].grad  # type: ignore[attr-defined]
        assert whole is not None
        own = torch.cat([whole[:0], *(whole[rows.start : rows.stop] for rows in kept.list_own())])
        torch.testing.assert_close(
            gradient, own, rtol=1e-10, atol=1e-10, msg=lambda m, k=kept: f"{k.name}: {m}"
        )
    parameters = [p for p in model.parameters() if p.requires_grad]
    norm = ranks.norm([p.grad for p in parameters])  # type: ignore[misc]
    expected = nn.utils.get_total_norm([p.grad for p in plain.parameters() if p.grad is not None])
    torch.testing.assert_close(norm, expected)
    check_views(model, plain, placement, group, is_shared=size > group)
    if router == "bias":
        for each, counts in (
            (model, ranks.add(routings[0].load_E)),
            (plain, torch.zeros(9, dtype=torch.int64)),
        ):
            update_router_biases(each, torch.stack([counts, counts]))


def check_views(model: Model, plain: Model, placement: Placement, group: int, is_shared: bool) -> None:
    """A process shows the experts that it has, and says of the others where they are."""
    layer, own = model.blocks[0], dist.get_rank() % group
    whole = [i for i, rank in enumerate(placement.list_whole_ranks()) if rank == own]
    assert sorted(layer.local_experts) == sorted({*whole, *placement.everywhere})  # type: ignore[arg-type]
    assert "6 experts" not in repr(layer)
    assert "5" in repr(layer)
    for i in whole if not is_shared else []:
        for view, expected in zip(layer.expert(i), plain.blocks[0].expert(i), strict=True):  # type: ignore[operator]
            assert torch.equal(view, expected)
        for view, expected in zip(layer.expert_grad(i), plain.blocks[0].expert_grad(i), strict=True):  # type: ignore[operator]
            torch.testing.assert_close(view, expected)
    for i in set(range(len(WIDTHS))) - set(layer.local_experts):  # type: ignore[arg-type]
        with pytest.raises(
            hmoe.ConfigError, match=f"expert {i}: its weights are on process .* of the group, this is"
        ):
            layer.expert(i)  # type: ignore[operator]
    with pytest.raises(IndexError):
        layer.expert(6)  # type: ignore[operator]


def check_checkpointing(mesh: DeviceMesh) -> None:
    """Blocks computed again in the backward pass send the same tokens again, and gradients are the same."""
    gradients = []
    for recomputes in (False, True):
        model = make_model("top-p")
        hmoe.parallelize(model, mesh, experts="expert_parallel", gradients="sum")
        model.recomputes = recomputes
        x = draw_tokens(mesh.size())[dist.get_rank()].clone().requires_grad_()
        y, _ = model(x)
        y.square().sum().backward()
        gradients.append([x.grad, *(kept.parameter.grad.to_local() for kept in list_kept_rows(model))])  # type: ignore[union-attr]
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)


def check_waits(mesh: DeviceMesh) -> None:
    """The host asks for sizes once a layer, and for nothing else."""
    model = make_model("top-p")
    hmoe.parallelize(
        model, mesh, experts="expert_parallel", placement=make_placement("cut, replica", mesh.size())
    )
    asked: list[int] = []
    read = trip.read_sizes

    def count(*tensors: torch.Tensor) -> list[list[int]]:
        asked.append(1)
        return read(*tensors)

    with mock.patch.object(trip, "read_sizes", count):
        y, _ = model(draw_tokens(mesh.size())[dist.get_rank()])
        y.sum().backward()
    assert len(asked) == len(model.blocks)


def check_padding(mesh: DeviceMesh) -> None:
    """Pairs beyond the counts, which a router appends on a GPU, are nobody's: nothing travels for them."""
    model = make_model("top-p")
    hmoe.parallelize(model, mesh, experts="expert_parallel", placement=make_placement("cut", mesh.size()))
    model(draw_tokens(mesh.size())[dist.get_rank()])  # lets the engine begin
    layer, x = model.blocks[0], draw_tokens(mesh.size())[dist.get_rank()]
    routing = RouterLayer(DIM, (*WIDTHS, 0, 0, 0), hmoe.TopP(p=0.6)).double()(x)
    more = {
        name: nn.functional.pad(getattr(routing, name), (0, 5)) for name in ("token_N", "expert_N", "gate_N")
    }
    outputs, sent = [], []
    for each in (routing, replace(routing, **more)):
        outputs.append(layer.experts(x, each)[0])
        table = layer.experts.table
        sent.append(trip.plan_trip(each, table, layer.experts.group, len(x), by_pair=False).rows)
    assert torch.equal(*outputs)
    assert sent[0] == sent[1]


def check_low_precision(mesh: DeviceMesh) -> None:
    """Under autocast tokens travel in bfloat16; the error is at most twice that of one process."""
    rank, truth = dist.get_rank(), make_model("top-2")
    outputs = []
    for is_placed in (False, True):
        model = make_model("top-2").float()
        if is_placed:
            hmoe.parallelize(model, mesh, experts="expert_parallel")
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(model(draw_tokens(mesh.size())[rank].float())[0].double())
    expected = truth(draw_tokens(mesh.size())[rank])[0]
    errors = [(y - expected).abs().max() for y in outputs]
    assert errors[1] <= 2 * errors[0] + 1e-6, errors
    assert errors[1] > 0


def check_mean(mesh: DeviceMesh) -> None:
    """With gradients="mean", the default, those of placed experts are a mean over processes, too."""
    gradients = []
    for kind in ("sum", "mean"):
        model = make_model("top-2")
        hmoe.parallelize(model, mesh, experts="expert_parallel", gradients=kind)  # type: ignore[arg-type]
        model(draw_tokens(mesh.size())[dist.get_rank()])[0].sum().backward()
        gradients.append([kept.parameter.grad.to_local() for kept in list_kept_rows(model)])  # type: ignore[union-attr]
    for total, mean in zip(*gradients, strict=True):
        torch.testing.assert_close(mean * mesh.size(), total)


def check_gathering(mesh: DeviceMesh) -> None:
    """Whole weights come back by the names of a model that one process holds; a part of them is not given as all."""
    plain, model = make_model("top-2"), make_model("top-2")
    group = mesh.size(mesh.ndim - 1)
    placement = place_experts(WIDTHS, group, HEAT, cut=True, replicas=1)
    hmoe.parallelize(model, mesh, experts="expert_parallel", placement=placement)
    weights = gather_weights(model)
    expected = dict(plain.named_parameters())
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    with pytest.raises(
        hmoe.ConfigError,
        match=r"state_dict: experts are placed, .* hmoe\.parallel\.kept_rows\.gather_weights",
    ):
        model.state_dict()
    with pytest.raises(hmoe.ConfigError, match=r"draw their weights before hmoe\.parallelize"):
        model.blocks[0].reset_parameters()  # type: ignore[operator]


def check_moving(mesh: DeviceMesh) -> None:
    """Experts move with both moments; what cannot move is refused while all is as it was."""
    group = mesh.size(mesh.ndim - 1)
    before, after = (place_experts(WIDTHS, group, heat) for heat in (HEAT, HEAT[::-1]))
    model = make_model("top-2")
    model.blocks[0].w_down.requires_grad_(False)
    hmoe.parallelize(model, mesh, experts="expert_parallel", placement=before, gradients="sum")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    ranks = Ranks(mesh)
    model(draw_tokens(mesh.size())[dist.get_rank()])[0].square().sum().backward()
    with pytest.raises(hmoe.ConfigError, match=r"there are gradients|cannot move"):
        move_experts(model, optimizer, [after] * 2, ranks.gather_values)
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(hmoe.ConfigError, match="of other layers, processes or replicas"):
        move_experts(model, optimizer, [place_experts(WIDTHS, group, replicas=1)] * 2, ranks.gather_values)
    if mesh.ndim == 2:
        with pytest.raises(hmoe.ConfigError, match="share by FSDP2 cannot move"):
            move_experts(model, optimizer, [after] * 2, ranks.gather_values)
        return
    weights, moments = gather_weights(model), gather_moments(model, optimizer)
    sent = sum(ranks.gather_values(move_experts(model, optimizer, [after] * 2, ranks.gather_values)))
    assert sent > 0
    assert [e.placement for e in list_dispatched(model)] == [after, after]
    assert not next(iter(list_dispatched(model))).local.w_down.requires_grad
    moved, moved_moments = gather_weights(model), gather_moments(model, optimizer)
    assert all(torch.equal(moved[name], weights[name]) for name in weights)
    assert moments.keys() == moved_moments.keys()
    assert all(torch.equal(moved_moments[key], moments[key]) for key in moments)
    model(draw_tokens(mesh.size())[dist.get_rank()])[0].square().sum().backward()
    optimizer.step()


def check_order(mesh: DeviceMesh) -> None:
    """All processes ask in one order, also where some have no expert and blocks are not gathered ahead."""
    placement = make_placement("one process has all", mesh.size(1))
    for prefetch in (0, 2):
        model = make_model("top-2")
        options: dict[str, Any] = {"shard": "zero3", "prefetch": prefetch, "placement": placement}
        hmoe.parallelize(model, mesh, experts="expert_parallel", gradients="sum", **options)
        for _ in range(2):
            model(draw_tokens(mesh.size())[dist.get_rank()])[0].sum().backward()


def gather_moments(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """First moments of placed experts whole, gathered by who holds which rows, and the numbers of steps."""
    moments: dict[str, torch.Tensor] = {}
    for kept in list_kept_rows(model):
        state = optimizer.state.get(kept.parameter, {})
        if kept.rows is None or not state:
            continue
        whole = torch.zeros(kept.shape, dtype=torch.float64)
        rows = [row for each in kept.list_own() for row in each]
        whole[rows] = state["exp_avg"].to_local()
        dist.all_reduce(whole)
        moments |= {kept.name: whole, f"{kept.name}.step": state["step"].clone()}
    return moments


def check_refusals(mesh: DeviceMesh) -> None:
    for options, said in (
        (
            {"placement": make_placement("even", mesh.size() + 1)},
            "is placed on 3 processes, the group has 2",
        ),
        ({"placement": place_experts((4, 4), mesh.size())}, "has experts of .* units, the placement is of"),
        ({"placement": [make_placement("even", mesh.size())]}, "1 are given for 2 layers with experts"),
        ({"blocks": [nn.Linear(2, 2)]}, "blocks: one is no part of the model"),
    ):
        model = make_model("top-2")
        with pytest.raises(hmoe.ConfigError, match=said):
            hmoe.parallelize(model, mesh, experts="expert_parallel", **options)  # type: ignore[arg-type]
        assert model.blocks[0].w_gate is not None  # nothing is lost
    with pytest.raises(hmoe.ConfigError, match="placement has no effect with experts = None"):
        hmoe.parallelize(make_model("top-2"), mesh, placement=make_placement("even", mesh.size()))
    with pytest.raises(hmoe.ConfigError, match=r"the model has no layer of hmoe\.MoE"):
        hmoe.parallelize(nn.Linear(2, 2), mesh, experts="expert_parallel")
    own = place_contiguously(WIDTHS, 2) if dist.get_rank() else place_experts(WIDTHS, 2, HEAT)
    with pytest.raises(hmoe.ConfigError, match="process 1 was given another one than process 0"):
        hmoe.parallelize(make_model("top-2"), mesh, experts="expert_parallel", placement=own)
    model = hmoe.parallelize(make_model("top-2"), mesh, experts="expert_parallel", gradients="sum")
    model(draw_tokens(mesh.size())[dist.get_rank()])[0].sum().backward()
    with pytest.raises(hmoe.ConfigError, match=r"call Ranks\.adopt\(model, num_parts\) first"):
        Ranks(mesh).norm([p.grad for p in model.parameters()])  # type: ignore[misc]
    cut = hmoe.parallelize(
        make_model("top-2"), mesh, experts="expert_parallel", placement=make_placement("cut", mesh.size())
    )
    with pytest.raises(hmoe.ConfigError, match="an expert is cut; exact results need whole ones"):
        ExactRanks(mesh).adopt(cut, mesh.size())


def run_rank(rank: int, folder: str, cases: tuple[tuple[str, str], ...], shape: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    size = math.prod(shape)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "expert")[-len(shape) :])
    for case in cases:
        check_case(*case, mesh)
    if shape == (2,):
        for check in (
            check_checkpointing,
            check_waits,
            check_padding,
            check_low_precision,
            check_mean,
            check_refusals,
        ):
            check(mesh)
    if size > 1:
        check_gathering(mesh)
        check_moving(mesh)
    if len(shape) == 2:
        check_order(mesh)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("cases", "shape"),
    [
        pytest.param(FEW, (2,), id="two processes"),
        pytest.param(FEW[:2], (2, 2), id="two by two"),
        pytest.param(EVERY, (2,), id="every case", marks=pytest.mark.slow),
        pytest.param(EVERY, (3,), id="every case, three processes", marks=pytest.mark.slow),
        pytest.param(EVERY, (4,), id="every case, four processes", marks=pytest.mark.slow),
        pytest.param(EVERY, (2, 2), id="every case, two by two", marks=pytest.mark.slow),
        pytest.param(EVERY, (4, 1), id="every case, groups of one", marks=pytest.mark.slow),
    ],
)
def test_placed_experts_are_those_of_one_process(
    cases: tuple[tuple[str, str], ...], shape: tuple[int, ...], tmp_path: Path
) -> None:
    arguments = (str(tmp_path), cases, shape)
    torch.multiprocessing.spawn(run_rank, arguments, nprocs=math.prod(shape))  # type: ignore[attr-defined, no-untyped-call]
