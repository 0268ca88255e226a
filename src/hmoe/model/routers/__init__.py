"""The mathematics of each kind of router, one file a kind, named as its spec in `hmoe.specs.routers`."""

from hmoe.errors import ConfigError
from hmoe.model.routers.base import RouterMethod
from hmoe.model.routers.expert_choice import EXPERT_CHOICE
from hmoe.model.routers.top_k import TOP_K
from hmoe.model.routers.top_p import TOP_P
from hmoe.specs.routers import add_router
from hmoe.specs.routers.base import RouterSpec

METHODS: dict[str, RouterMethod] = {"top_k": TOP_K, "top_p": TOP_P, "expert_choice": EXPERT_CHOICE}


def register_router(spec_class: type[RouterSpec], method: RouterMethod) -> None:
    """Add a kind of router.

    Recipes, plans, training, export with code and generation then know it by its name.

    Args:
        spec_class: a frozen dataclass derived from `hmoe.RouterSpec`, whose field `name` has the kind's name
            as its default.
        method: how it chooses and weighs experts.

    Raises:
        ConfigError: for a class that is no spec, a method that is none, or a name that is taken.
    """
    if not isinstance(method, RouterMethod):
        raise ConfigError(f"register_router: {method!r}, must be a hmoe.RouterMethod(choose, ...)")
    add_router(spec_class)
    METHODS[spec_class.name] = method
