"""How the processes of a run share its work: the keys of a recipe."""

import os
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hmoe.config.section import Section
from hmoe.specs.model import ModelSpec
from hmoe.specs.offload import count_fewest_bytes

_Sharding = Literal["ddp", "zero2", "zero3"]
EXPERT_KEYS = (
    "expert_ranks", "expert_placement", "expert_replicas", "cut_experts", "replace_every", "replace_gain",
)  # fmt: skip
OFFLOAD_KEYS = ("offload_bytes", "offload_folder")
_IN_ORDER = ("zero2", "zero3")  # whose sums of gradients can be had in a fixed order


class ParallelConfig(Section):
    """How several processes, as torchrun starts them, share the work. One process shares nothing."""

    shard: Annotated[
        Literal["none", "ddp", "zero2", "zero3"] | None,
        Field(
            description="what processes keep a part of; ddp: of nothing; zero2: of gradients and moments, and of "
            "weights between steps; zero3: of weights always; none: refuse several processes; null: zero2"
        ),
    ] = None
    experts: Annotated[
        Literal["ddp", "zero2", "zero3", "expert_parallel"] | None,
        Field(
            description="the same for layers with experts, if otherwise; expert_parallel: each process holds some of "
            "the experts, and tokens travel to them; null: as `shard`"
        ),
    ] = None
    expert_ranks: Annotated[
        int | None,
        Field(
            ge=1,
            le=2**16,
            description="with expert_parallel, processes among which all experts of a layer are placed; null: all",
        ),
    ] = None
    expert_placement: Annotated[
        Literal["even", "contiguous"],
        Field(
            description="with expert_parallel; even: such that memory and expected computing are even; contiguous: as "
            "many experts on each process, in their order"
        ),
    ] = "even"
    expert_replicas: Annotated[
        int,
        Field(
            ge=0,
            le=2**16,
            description="with expert_parallel, experts of a layer that every process has, those with most tokens per "
            "hidden unit",
        ),
    ] = 0
    replace_every: Annotated[
        int,
        Field(
            ge=0,
            le=10**9,
            description="with expert_parallel, steps between looks at the load, after which experts may move, those "
            "that several processes share at the next checkpoint; 0: never",
        ),
    ] = 0
    replace_gain: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            description="of a layer's busiest process, that a move must bring at least; 0.05: a twentieth",
        ),
    ] = 0.05
    cut_experts: Annotated[
        bool,
        Field(
            description="with expert_parallel, whether an expert may be cut between hidden units where whole ones "
            "cannot be even"
        ),
    ] = False
    replicas: Annotated[
        int,
        Field(ge=1, le=2**16, description="number of groups of processes that hold all weights between them"),
    ] = 1
    exact: Annotated[
        bool,
        Field(
            description="the same bits with any number of processes, one included; slower; "
            "data.micro_batches null: 8, or a divisor that the batch allows"
        ),
    ] = False
    offload: Annotated[
        Literal["none", "disk", "host"],
        Field(
            description="where experts lie, with gradients and moments, that are not being computed; disk: in a file; "
            "host: in the host's memory, of a run on a GPU; none: all are in the device's memory"
        ),
    ] = "none"
    offload_bytes: Annotated[
        int | None,
        Field(
            ge=1,
            le=2**60,
            description="with offload, of the device's memory for weights of experts, at least of the two widest; "
            "null: a quarter of all",
        ),
    ] = None
    offload_folder: Annotated[
        str | None,
        Field(
            max_length=4096,
            description="with offload = disk, absolute path of a folder for the file; null: the run folder",
        ),
    ] = None
    threads: Annotated[
        int | None,
        Field(ge=1, le=1024, description="threads of each process; null: 1 if exact, else PyTorch's choice"),
    ] = None

    @property
    def places_experts(self) -> bool:
        """Whether tokens travel to experts, if there are several processes."""
        return self.experts == "expert_parallel"

    @property
    def sharding(self) -> _Sharding:
        """What several processes keep a part of."""
        return "zero2" if self.shard in (None, "none") else self.shard  # type: ignore[return-value]

    @property
    def num_threads(self) -> int | None:
        """Threads of each process; None: as many as PyTorch chooses. Sums of some gradients depend on it."""
        return self.threads or (1 if self.exact else None)

    @model_validator(mode="after")
    def _check(self) -> "ParallelConfig":
        if self.shard == "none":
            self.no_effect("with shard = none", "experts", "replicas")
        if self.shard == "ddp" and self.experts in (None, "ddp"):
            self.no_effect("with shard = ddp: every process holds all weights", "replicas")
        if not self.places_experts:
            self.no_effect("unless experts = expert_parallel", *EXPERT_KEYS)
        elif self.replicas > 1:
            raise ValueError(
                f"replicas = {self.replicas}: with experts = expert_parallel must be 1; "
                "expert_ranks says how many processes hold all experts between them"
            )
        if self.expert_placement == "contiguous":
            self.no_effect(
                "with expert_placement = contiguous", "expert_replicas", "cut_experts", "replace_every"
            )
        self._check_offload()
        if not self.replace_every:
            self.no_effect("with replace_every = 0", "replace_gain")
        if self.exact:
            if self.cut_experts:
                raise ValueError(
                    "cut_experts = true: with exact = true must be false: the sum over an expert's hidden units would "
                    "be another one"
                )
            for name in ("shard", "experts"):
                if getattr(self, name) not in (None, "none", *_IN_ORDER, "expert_parallel"):
                    raise ValueError(
                        f"{name} = {getattr(self, name)}: with exact = true must be one of {', '.join(_IN_ORDER)}, "
                        "whose gradients can be added in a fixed order; nearest is zero2"
                    )
            if self.replicas > 1:
                raise ValueError(
                    f"replicas = {self.replicas}: with exact = true gradients are added over one group; nearest is 1"
                )
        return self

    def without_offload(self) -> "ParallelConfig":
        """Return the same with all experts in memory."""
        fields = type(self).model_fields
        return self.model_copy(update={key: fields[key].default for key in ("offload", *OFFLOAD_KEYS)})

    def _check_offload(self) -> None:
        if self.offload == "none":
            self.no_effect("with offload = none", *OFFLOAD_KEYS)
        if self.offload == "host":
            self.no_effect("with offload = host", "offload_folder")
        if self.offload_folder is not None and not os.path.isabs(self.offload_folder):
            nearest = os.path.abspath(self.offload_folder)
            raise ValueError(
                f"offload_folder = {self.offload_folder}: must be an absolute path; nearest is {nearest}"
            )

    def check_offload(self, model: ModelSpec, precision: str, compiles: bool) -> None:
        """Raise ValueError if the experts of a run are to be offloaded, and cannot be.

        Args:
            model: of the run.
            precision: in which it trains.
            compiles: whether its blocks are compiled.
        """
        if self.offload == "none":
            return
        asked = f"parallel.offload = {self.offload}"
        if model.moe is None:
            raise ValueError(f"{asked}: the model has no experts; nearest is none")
        if self.exact:
            raise ValueError(
                f"{asked}: with parallel.exact = true must be none, all gradients are added in memory"
            )
        if compiles:
            raise ValueError(
                f"train.compile = true: with {asked} must be false, experts come one after another"
            )
        if precision == "float64":
            raise ValueError(
                f"train.precision = float64: with {asked} must be float32 or bfloat16; nearest is float32"
            )
        fewest = count_fewest_bytes([model.moe.expert_widths] * len(model.moe_layers), model.dim, itemsize=4)
        if self.offload_bytes is not None and self.offload_bytes < fewest:
            raise ValueError(
                f"parallel.offload_bytes = {self.offload_bytes}: must hold the two widest experts; nearest is {fewest}"
            )
