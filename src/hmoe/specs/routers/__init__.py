"""Kinds of routers as frozen values without torch, one file a kind.

`hmoe.model.routers` has a file of the same name for the mathematics.

| spec | who chooses | source |
|---|---|---|
| `TopK` | a token its k best experts; capacity, rectifying, sigmoid, groups, bias, noise | HMoE eq 8 |
| `TopP` | a token its best experts until their probabilities reach p | HMoE eq 9-11; Huang et al. 2024 |
| `ExpertChoice` | an expert its best tokens; not causal | Zhou et al. 2022 |

`hmoe.register_router` adds a kind from outside this package.
"""

from collections.abc import Mapping
from typing import Any

from hmoe.errors import ConfigError
from hmoe.specs.extensions import hint_extensions
from hmoe.specs.plain import from_plain
from hmoe.specs.routers.base import RouterSpec
from hmoe.specs.routers.expert_choice import ExpertChoice
from hmoe.specs.routers.top_k import TopK
from hmoe.specs.routers.top_p import TopP

ROUTERS: dict[str, type[RouterSpec]] = {kind.name: kind for kind in (TopK, TopP, ExpertChoice)}


def make_router(name: str, options: Mapping[str, Any], where: str = "router_options") -> RouterSpec:
    """Make the spec of a kind of router from its options.

    Raises:
        ConfigError: for an unknown kind, or options that do not fit.
    """
    if name not in ROUTERS:
        raise ConfigError(f"router_type = {name!r}, must be one of {', '.join(ROUTERS)}; {hint_extensions()}")
    return from_plain(ROUTERS[name], options, where)


def add_router(spec_class: type[RouterSpec]) -> None:
    """Make a kind of router known by its name, for recipes and exported folders.

    `hmoe.register_router` does so with its mathematics.

    Raises:
        ConfigError: for a class that is no router spec, or a name that is taken.
    """
    if not (
        isinstance(spec_class, type)
        and issubclass(spec_class, RouterSpec)
        and isinstance(getattr(spec_class, "name", None), str)
    ):
        raise ConfigError(
            f"register_router: {spec_class!r}, must be a subclass of hmoe.RouterSpec with a default for name"
        )
    taken = ROUTERS.get(spec_class.name)
    if taken is not None and (taken.__module__, taken.__qualname__) != (
        spec_class.__module__,
        spec_class.__qualname__,
    ):
        raise ConfigError(
            f"register_router: name = {spec_class.name!r} is taken by {taken.__module__}.{taken.__qualname__}"
        )
    if spec_class.count_experts_per_token is RouterSpec.count_experts_per_token:
        raise ConfigError(
            f"register_router: {spec_class.__name__} must define count_experts_per_token(num_experts, training), "
            "which plans, memory and the room for pairs are computed from"
        )
    ROUTERS[spec_class.name] = spec_class
