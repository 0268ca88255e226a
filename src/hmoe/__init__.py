"""hmoe: language models whose experts differ in size.

Names resolve on first use (PEP 562), so `import hmoe` needs nothing but Python and `hmoe.MoE` needs torch only.
"""

import importlib

TYPE_CHECKING = False  # as typing has it, whose import alone takes as long as Python's start

if TYPE_CHECKING:  # for type checkers and editors, which do not see lazy names
    from typing import Any

    from hmoe.analyze.show import show_text as show
    from hmoe.errors import CheckpointError, ConfigError, DataError, HMoEError, NonFiniteError, RunBusyError
    from hmoe.hub.save import save_model as save
    from hmoe.model.losses import load_balance, parameter_penalty, register_loss, router_entropy, router_z
    from hmoe.model.moe import MoE
    from hmoe.model.routers import register_router
    from hmoe.model.routers.base import RouterMethod
    from hmoe.model.routing import Routing
    from hmoe.model.trace import RoutingTrace, trace
    from hmoe.parallel.sharding import parallelize
    from hmoe.runs.open_model import open_model_and_tokenizer as open
    from hmoe.specs.experts import Hyper, ZeroExperts
    from hmoe.specs.routers.base import RouterSpec
    from hmoe.specs.routers.expert_choice import ExpertChoice
    from hmoe.specs.routers.top_k import TopK
    from hmoe.specs.routers.top_p import TopP
    from hmoe.specs.widths import arithmetic, equal, geometric, hybrid

__version__ = "0.1.0"

_HOME = {
    "CheckpointError": "hmoe.errors",
    "ConfigError": "hmoe.errors",
    "DataError": "hmoe.errors",
    "ExpertChoice": "hmoe.specs.routers.expert_choice",
    "HMoEError": "hmoe.errors",
    "Hyper": "hmoe.specs.experts",
    "MoE": "hmoe.model.moe",
    "NonFiniteError": "hmoe.errors",
    "RouterMethod": "hmoe.model.routers.base",
    "RouterSpec": "hmoe.specs.routers.base",
    "Routing": "hmoe.model.routing",
    "RoutingTrace": "hmoe.model.trace",
    "RunBusyError": "hmoe.errors",
    "TopK": "hmoe.specs.routers.top_k",
    "TopP": "hmoe.specs.routers.top_p",
    "ZeroExperts": "hmoe.specs.experts",
    "arithmetic": "hmoe.specs.widths",
    "equal": "hmoe.specs.widths",
    "geometric": "hmoe.specs.widths",
    "hybrid": "hmoe.specs.widths",
    "load_balance": "hmoe.model.losses",
    "open": "hmoe.runs.open_model:open_model_and_tokenizer",  # no module of the package hides Python's own `open`
    "parameter_penalty": "hmoe.model.losses",
    "parallelize": "hmoe.parallel.sharding",
    "register_loss": "hmoe.model.losses",
    "register_router": "hmoe.model.routers",
    "router_entropy": "hmoe.model.losses",
    "router_z": "hmoe.model.losses",
    "save": "hmoe.hub.save:save_model",
    "show": "hmoe.analyze.show:show_text",
    "trace": "hmoe.model.trace",
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ExpertChoice",
    "HMoEError",
    "Hyper",
    "MoE",
    "NonFiniteError",
    "RouterMethod",
    "RouterSpec",
    "Routing",
    "RoutingTrace",
    "RunBusyError",
    "TopK",
    "TopP",
    "ZeroExperts",
    "arithmetic",
    "equal",
    "geometric",
    "hybrid",
    "load_balance",
    "open",
    "parallelize",
    "parameter_penalty",
    "register_loss",
    "register_router",
    "router_entropy",
    "router_z",
    "save",
    "show",
    "trace",
]


def __getattr__(name: str) -> "Any":
    if name not in _HOME:
        raise AttributeError(f"module 'hmoe' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
