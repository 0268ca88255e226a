"""GPT-2 with its MLPs duplicated into experts behind a noisy router: HyperMoE's starting point on WikiText-2.

model = duplicate_mlps(GPT2LMHeadModel.from_pretrained("gpt2"))
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2LMHeadModel

from hmoe.adapt.attach import load_attached_parts
from hmoe.errors import ConfigError
from hmoe.model.memory import align_memory
from hmoe.runs.weights import StoredTensors

_LEAST_NOISE = 1e-2  # standard deviation that is added to the learned one


class NoisyRouter(nn.Module):
    """Noisy top-k router (Shazeer et al. 2017) with HyperMoE's gates.

    Gates are a softmax over all experts, renormalised over the chosen ones. With k = 1, as in the paper, the
    gate is 1 and the text gives the router no gradient: the balance alone moves it.

    Attributes:
        k: experts of a token.
        weight, noise: (E, D), of the logits and of their standard deviation; 0 at first: noise alone chooses.
    """

    def __init__(self, dim: int, num_experts: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.weight = nn.Parameter(torch.zeros(num_experts, dim))
        self.noise = nn.Parameter(torch.zeros(num_experts, dim))

    def forward(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (load_TE, gate_TK, expert_TK), the experts from the best one on.

        In training, load is the probability that the expert is among the token's k if its noise were drawn
        again (eq 8-9), which has a gradient; in evaluation there is no noise, and it is 0 or 1.
        """
        clean_TE = F.linear(x_TD, self.weight)
        std_TE = F.softplus(F.linear(x_TD, self.noise)) + _LEAST_NOISE
        logits_TE = clean_TE + torch.randn_like(clean_TE) * std_TE if self.training else clean_TE
        best = logits_TE.topk(self.k + 1, dim=1)  # one more than chosen, as the threshold of those that are
        expert_TK = best.indices[:, : self.k]
        probs_TK = torch.softmax(logits_TE, dim=1).gather(1, expert_TK)
        chosen_TE = torch.zeros_like(logits_TE).scatter(1, expert_TK, 1.0)
        load_TE = chosen_TE
        if self.training:
            last_T1, next_T1 = best.values[:, self.k - 1 : self.k], best.values[:, self.k :]
            # The k-th largest logit without the expert's own: the next one for the chosen, else the last
            # chosen one.
            threshold_TE = torch.where(chosen_TE > 0, next_T1, last_T1)
            load_TE = torch.special.ndtr((clean_TE - threshold_TE) / std_TE)
        return load_TE, probs_TK / probs_TK.sum(1, keepdim=True), expert_TK


class DuplicatedMLP(nn.Module):
    """A mixture whose experts are copies of an MLP, behind a noisy router.

    Attributes:
        router: the `NoisyRouter`.
        experts: the copies.
    """

    def __init__(self, mlp: nn.Module, dim: int, num_experts: int, k: int) -> None:
        super().__init__()
        self.router = NoisyRouter(dim, num_experts, k)
        self.experts = nn.ModuleList(copy.deepcopy(mlp) for _ in range(num_experts))

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """Return the outputs of each token's experts, weighted by their gates and summed (B, L, D)."""
        x_TD = x_BLD.flatten(0, -2)
        _, gate_TK, expert_TK = self.router(x_TD)
        y_TD = torch.zeros_like(x_TD)
        for index, expert in enumerate(self.experts):
            token_M, choice_M = (expert_TK == index).nonzero(as_tuple=True)
            y_MD = expert(x_TD[token_M]) * gate_TK[token_M, choice_M, None]
            y_TD = y_TD.index_add(0, token_M, y_MD.to(y_TD.dtype))
        return y_TD.view(x_BLD.shape)


def duplicate_mlps(
    model: GPT2LMHeadModel, experts: int = 8, k: int = 1, folder: Path | str | None = None
) -> GPT2LMHeadModel:
    """Replace every MLP of a GPT-2 by copies of it behind a noisy router, in place, and return the model.

    Gates sum to 1, so the function is the same at first, whatever the router chooses.

    Args:
        model: a GPT-2 of transformers.
        experts: copies in each layer (paper: 8).
        k: experts of a token (paper: 1).
        folder: where such a model was saved; its experts and routers are loaded, as many as it has. None: the
            experts are copies.

    Raises:
        ConfigError: for another model, one that is duplicated already, or k not below experts.
        CheckpointError: if the folder does not hold them.
    """
    if not isinstance(model, GPT2LMHeadModel):
        raise ConfigError(f"{type(model).__name__}: only a GPT2LMHeadModel's MLPs can be duplicated")
    if not 1 <= k < experts:
        raise ConfigError(f"k = {k}, must be from 1 to below the number of experts, {experts}")
    blocks = model.transformer.h
    if any(isinstance(block.mlp, DuplicatedMLP) for block in blocks):
        raise ConfigError("this model's MLPs are duplicated already")
    saved = getattr(model.config, "duplicated_mlps", None)
    if saved is not None and folder is None:
        raise ConfigError("this model was saved with duplicated MLPs, which it lacks now; give the folder")
    experts, k = (saved["experts"], saved["k"]) if saved else (experts, k)
    stored = None if folder is None else StoredTensors(Path(folder))
    for block in blocks:
        weight = next(block.mlp.parameters())
        mixture = DuplicatedMLP(block.mlp, model.config.n_embd, experts, k).train(block.mlp.training)
        block.mlp = mixture.to(weight.device, weight.dtype)
    model.config.duplicated_mlps = {"experts": experts, "k": k}
    if stored is not None:
        load_attached_parts(model, stored, str(folder), (".mlp.router.", ".mlp.experts."))
    align_memory(model)
    return model


def compute_noisy_balance(
    load_TE: torch.Tensor, gate_TK: torch.Tensor, expert_TK: torch.Tensor
) -> torch.Tensor:
    """Return CV(importance)^2 + CV(load)^2 of one layer (Shazeer et al. 2017).

    CV is the coefficient of variation over experts, standard deviation / mean.

    Args:
        load_TE: of `NoisyRouter`, as are the others.
        gate_TK: an expert's importance is the sum of its gates.
        expert_TK: whose gates they are.
    """
    importance_E = torch.zeros_like(load_TE).scatter(1, expert_TK, gate_TK).sum(0)
    return _cv_squared(importance_E) + _cv_squared(load_TE.sum(0))


def _cv_squared(value_E: torch.Tensor) -> torch.Tensor:
    return value_E.float().var() / (value_E.float().mean() ** 2 + 1e-10)  # finite where no token came


@contextmanager
def record_noisy_routers(
    model: nn.Module,
) -> Iterator[Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Collect what the noisy routers of a model return while it runs inside the context.

    The list that the context gives has one element per call of a router, in the order of the calls.
    """
    outputs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    routers = [module for module in model.modules() if isinstance(module, NoisyRouter)]
    hooks = [
        router.register_forward_hook(lambda _, inputs, output: outputs.append(output)) for router in routers
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
