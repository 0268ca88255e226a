"""How the processes of a run share its work: the keys of a recipe."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hmoe.config.section import Section

_Sharding = Literal["ddp", "zero2", "zero3"]
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
        _Sharding | None,
        Field(description="the same for layers with experts, if otherwise; null: as `shard`"),
    ] = None
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
    threads: Annotated[
        int | None,
        Field(ge=1, le=1024, description="threads of each process; null: 1 if exact, else PyTorch's choice"),
    ] = None

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
        if self.exact:
            for name in ("shard", "experts"):
                if getattr(self, name) not in (None, "none", *_IN_ORDER):
                    raise ValueError(
                        f"{name} = {getattr(self, name)}: with exact = true must be one of {', '.join(_IN_ORDER)}, "
                        "whose gradients can be added in a fixed order; nearest is zero2"
                    )
            if self.replicas > 1:
                raise ValueError(
                    f"replicas = {self.replicas}: with exact = true gradients are added over one group; nearest is 1"
                )
        return self
