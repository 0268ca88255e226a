"""HyperMoE: a small expert for each token, generated from the experts that the token did not select (Zhao et al. 2024).

Its weights depend on the selection and the layer only, so they are generated once per distinct selection, and tokens are
grouped by it: with top-1 there are at most E of them, where the authors' code generates T.
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
    """HyperExperts of U selections: w_down (U, A, D), b_down (U, A), w_up (U, D, A), b_up (U, D)."""

    w_down: torch.Tensor
    b_down: torch.Tensor
    w_up: torch.Tensor
    b_up: torch.Tensor


class HyperNetwork(nn.Module):
    """Selection embedding and layer -> the weights of a HyperExpert; one is shared by the layers of a model.

    Attributes:
        layer_embedding: (layers, 10).
        trunk: the hidden layer; heads by name: what each makes.
    """

    def __init__(self, dim: int, layers: int, spec: "Hyper") -> None:
        super().__init__()
        self.dim, self.spec = dim, spec
        self.layer_embedding = nn.Embedding(layers, spec.layer_embedding)
        self.trunk = nn.Linear(spec.hidden + spec.layer_embedding, spec.hidden)
        self.shapes = {"w_down": (spec.dim, dim), "b_down": (spec.dim,), "w_up": (dim, spec.dim), "b_up": (dim,)}
        self.heads = nn.ModuleDict(
            {name: nn.Linear(spec.hidden, math.prod(shape)) for name, shape in self.shapes.items()}
        )

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Heads uniform within 1e-3 sqrt(3 / (hidden x fan-in of what they make)), so a HyperExpert starts near 0 (authors'
        code); `init="zero"` makes the last of its weights exactly 0."""
        nn.init.normal_(self.layer_embedding.weight, generator=generator)
        _linear(self.trunk, generator)
        self.reset_heads(generator)

    def reset_heads(self, generator: torch.Generator | None = None) -> None:
        """The heads alone; a HyperExpert that starts near 0 does so by them."""
        fan_in = {"w_down": self.dim, "b_down": 1, "w_up": self.spec.dim, "b_up": 1}
        for name, head in self.heads.items():
            assert isinstance(head, nn.Linear)
            bound = 1e-3 * math.sqrt(3 / (self.spec.hidden * fan_in[name]))
            zero = self.spec.init == "zero" and name in ("w_up", "b_up")
            nn.init.zeros_(head.weight) if zero else nn.init.uniform_(head.weight, -bound, bound, generator=generator)
            nn.init.zeros_(head.bias)

    def forward(self, selection_UH: torch.Tensor, layer: int) -> HyperWeights:
        """Weights of each selection in a layer."""
        layer_UJ = self.layer_embedding.weight[layer].expand(len(selection_UH), -1)
        hidden_UH = F.relu(self.trunk(torch.cat([selection_UH, layer_UJ.to(selection_UH.dtype)], 1)))
        made = {name: self.heads[name](hidden_UH).view(-1, *shape) for name, shape in self.shapes.items()}
        return HyperWeights(**made)


class HyperLayer(nn.Module):
    """One layer's part: embeddings of its experts, summed over those that were not selected, and a map after the sum.

    Attributes:
        embedding: (E, 128).
    """

    def __init__(self, num_experts: int, spec: "Hyper", layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.embedding = nn.Parameter(torch.empty(num_experts, spec.embedding))
        self.inner, self.outer = nn.Linear(spec.embedding, spec.hidden), nn.Linear(spec.hidden, spec.hidden)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Normal embeddings, linear maps as PyTorch's."""
        nn.init.normal_(self.embedding, generator=generator)
        _linear(self.inner, generator)
        _linear(self.outer, generator)

    def forward(self, x_TD: torch.Tensor, selected_TE: torch.Tensor, network: HyperNetwork) -> torch.Tensor:
        """(T, D): each token's HyperExpert of x, by the experts that it selected (boolean)."""
        selected_UE, selection_T = distinct(selected_TE)
        unselected_UE = (~selected_UE).to(self.embedding.dtype)
        made = network(self.outer(F.relu(self.inner(unselected_UE @ self.embedding))), self.layer)
        return hyper_experts(x_TD, selection_T, made)


def selected(routing: "Routing") -> torch.Tensor:
    """Boolean (T, E): the experts that serve each token."""
    real_N = torch.arange(len(routing.token_N), device=routing.token_N.device) < routing.num_tokens_E.sum()
    selected_TE = torch.zeros_like(routing.probs_TE, dtype=torch.bool)
    selected_TE[routing.token_N[real_N], routing.expert_N[real_N]] = True
    return selected_TE


def distinct(selected_TE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct sets of selected experts (U, E), and which of them each token has (T)."""
    num_experts = selected_TE.shape[1]
    if num_experts > 62:  # no room in an integer
        selected_UE, selection_T = torch.unique(selected_TE, dim=0, return_inverse=True)
        return selected_UE, selection_T
    bits_E = torch.arange(num_experts, device=selected_TE.device)
    code_U, selection_T = torch.unique((selected_TE.long() << bits_E).sum(1), return_inverse=True)
    return (code_U[:, None] >> bits_E) % 2 == 1, selection_T


def hyper_experts(x_TD: torch.Tensor, selection_T: torch.Tensor, made: HyperWeights) -> torch.Tensor:
    """W_up ReLU(W_down x + b_down) + b_up with the weights of each token's selection."""
    order_T = torch.argsort(selection_T, stable=True)
    counts = torch.bincount(selection_T, minlength=len(made.b_up)).tolist()
    made = HyperWeights(*(weight.to(x_TD.dtype) for weight in made))
    groups = zip(torch.split(x_TD[order_T], counts), *made, strict=True)
    rows = [F.linear(F.relu(F.linear(x_MD, w_down, b_down)), w_up, b_up) for x_MD, w_down, b_down, w_up, b_up in groups]
    y_TD = torch.cat(rows) if rows else x_TD
    return torch.empty_like(y_TD).index_copy(0, order_T, y_TD)


def _linear(layer: nn.Linear, generator: torch.Generator | None) -> None:
    """As nn.Linear, with a generator."""
    bound = layer.in_features**-0.5
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
