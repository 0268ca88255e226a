"""HyperMoE (Zhao et al. 2024): a small expert for each token, made from the experts that it did not select.

Its weights depend on the selection and the layer only, so they are generated once per distinct selection, and
tokens are grouped by it: with top-1 there are at most E of them, where the authors' code generates T.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from hmoe.model.routing import Routing
    from hmoe.specs.experts import Hyper


class HyperWeights(NamedTuple):
    """Weights of U HyperExperts: w_down (U, A, D), b_down (U, A), w_up (U, D, A), b_up (U, D)."""

    w_down: torch.Tensor
    b_down: torch.Tensor
    w_up: torch.Tensor
    b_up: torch.Tensor


class HyperNetwork(nn.Module):
    """Turns a selection's embedding and a layer into a HyperExpert's weights; a model's layers share one.

    Attributes:
        layer_embedding: one row for each of the Z MoE layers.
        trunk: the hidden layer.
        shapes: of the weights that are made, by name.
        heads: for each of them the map that makes it from the hidden layer.
    """

    def __init__(self, dim: int, layers: int, spec: "Hyper") -> None:
        super().__init__()
        self.dim, self.spec = dim, spec
        self.layer_embedding = nn.Embedding(layers, spec.layer_embedding)
        self.trunk = nn.Linear(spec.hidden + spec.layer_embedding, spec.hidden)
        shapes = {"w_down": (spec.dim, dim), "b_down": (spec.dim,), "w_up": (dim, spec.dim), "b_up": (dim,)}
        self.shapes: dict[str, tuple[int, ...]] = shapes
        self.heads = nn.ModuleDict(
            {name: nn.Linear(spec.hidden, math.prod(shape)) for name, shape in self.shapes.items()}
        )

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights, with which every HyperExpert gives nearly or, with `init="zero"`, exactly 0."""
        nn.init.normal_(self.layer_embedding.weight, generator=generator)
        _reset_linear(self.trunk, generator)
        self.reset_heads(generator)

    def reset_heads(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights of the heads alone; it is by them that a HyperExpert starts near 0.

        They are uniform within 1e-3 sqrt(3 / (hidden x fan-in of what they make)), as in the authors' code.
        """
        fan_in = {"w_down": self.dim, "b_down": 1, "w_up": self.spec.dim, "b_up": 1}
        for name, head in self.heads.items():
            assert isinstance(head, nn.Linear)
            bound = 1e-3 * math.sqrt(3 / (self.spec.hidden * fan_in[name]))
            # Zeros after the ReLU are enough, and they still learn, because what comes before it is not 0.
            if self.spec.init == "zero" and name in ("w_up", "b_up"):
                nn.init.zeros_(head.weight)
            else:
                nn.init.uniform_(head.weight, -bound, bound, generator=generator)
            nn.init.zeros_(head.bias)

    def forward(self, selections: torch.Tensor, layer: int) -> HyperWeights:
        """Return the weights of a layer's HyperExperts for embedded selections (U, hidden)."""
        # All layers share this network, so it is told for which one a selection was made.
        layers = self.layer_embedding.weight[layer].expand(len(selections), -1)
        hidden = F.relu(self.trunk(torch.cat([selections, layers.to(selections.dtype)], 1)))
        weights = {name: self.heads[name](hidden).view(-1, *shape) for name, shape in self.shapes.items()}
        return HyperWeights(**weights)


class HyperLayer(nn.Module):
    """One layer's part: it sums the embeddings of the experts that were not selected, and maps the sum.

    Attributes:
        layer: number of this MoE layer among those that share the hypernetwork.
        embedding: (E, width of an embedding).
        inner, outer: the two maps after the sum.
    """

    def __init__(self, num_experts: int, spec: "Hyper", layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.embedding = nn.Parameter(torch.empty(num_experts, spec.embedding))
        self.inner, self.outer = nn.Linear(spec.embedding, spec.hidden), nn.Linear(spec.hidden, spec.hidden)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights: normal embeddings, linear maps as PyTorch's."""
        nn.init.normal_(self.embedding, generator=generator)
        _reset_linear(self.inner, generator)
        _reset_linear(self.outer, generator)

    def forward(self, x_TD: torch.Tensor, selected_TE: torch.Tensor, network: HyperNetwork) -> torch.Tensor:
        """Return each token's HyperExpert of x (T, D), by the experts that it selected (boolean)."""
        # Once per distinct selection: a HyperExpert has 2 A D weights, too many to make for each token.
        selected_UE, selection_T = find_distinct_selections(selected_TE)
        unselected_UE = (~selected_UE).to(self.embedding.dtype)
        selections = self.outer(F.relu(self.inner(unselected_UE @ self.embedding)))
        return apply_hyper_experts(x_TD, selection_T, network(selections, self.layer))


def find_selected(routing: "Routing") -> torch.Tensor:
    """Return which experts serve each token, boolean (T, E)."""
    # Pairs beyond the counts are not real: they name token 0, which their expert may not serve.
    real_N = torch.arange(len(routing.token_N), device=routing.token_N.device) < routing.num_tokens_E.sum()
    selected_TE = torch.zeros_like(routing.probs_TE, dtype=torch.bool)
    selected_TE[routing.token_N[real_N], routing.expert_N[real_N]] = True
    return selected_TE


def find_distinct_selections(selected_TE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the distinct sets of selected experts (U, E), and which of them each token has (T)."""
    num_experts = selected_TE.shape[1]
    # A set is one integer where its experts fit into the bits: those are sorted faster than rows.
    if num_experts > 62:
        selected_UE, selection_T = torch.unique(selected_TE, dim=0, return_inverse=True)
        return selected_UE, selection_T
    bits_E = torch.arange(num_experts, device=selected_TE.device)
    code_U, selection_T = torch.unique((selected_TE.long() << bits_E).sum(1), return_inverse=True)
    return (code_U[:, None] >> bits_E) % 2 == 1, selection_T


def apply_hyper_experts(x_TD: torch.Tensor, selection_T: torch.Tensor, weights: HyperWeights) -> torch.Tensor:
    """Return W_up ReLU(W_down x + b_down) + b_up (T, D) with the weights of each token's selection."""
    # Tokens of one selection come together, so that each HyperExpert is two dense products.
    order_T = torch.argsort(selection_T, stable=True)
    counts = torch.bincount(selection_T, minlength=len(weights.b_up)).tolist()
    weights = HyperWeights(*(weight.to(x_TD.dtype) for weight in weights))
    rows = []
    for x_MD, w_down, b_down, w_up, b_up in zip(torch.split(x_TD[order_T], counts), *weights, strict=True):
        rows.append(F.linear(F.relu(F.linear(x_MD, w_down, b_down)), w_up, b_up))
    # Back into the order of the tokens. Without tokens there are no groups, but weights take part as elsewhere: engines
    # that share them wait for the gradients of all processes.
    y_TD = torch.cat(rows) if rows else x_TD + torch.stack([weight.sum() for weight in weights]).sum()
    return torch.empty_like(y_TD).index_copy(0, order_T, y_TD)


def _reset_linear(layer: nn.Linear, generator: torch.Generator | None) -> None:
    """Draw weights as nn.Linear does, which takes no generator."""
    bound = layer.in_features**-0.5
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
