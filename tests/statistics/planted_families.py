"""Families whose laws are known, with losses of our own making: noise of runs, part of it shared by seed."""

from collections.abc import Mapping, Sequence

import numpy as np

from hmoe.statistics.loss_law import LossLaw, LossPoint

LAW = LossLaw(E=1.7, A=1.2 * 5e5**0.35, B=1.0 * 3e6**0.4, alpha=0.35, beta=0.4)
SIZES, BUDGETS = (2e5, 4e5, 8e5, 1.6e6), (1e12, 3e12, 1e13, 3e13)


def shift_law(law: LossLaw, nats: float) -> LossLaw:
    """The same law with every loss higher by so many nats."""
    return LossLaw(law.E + nats, law.A, law.B, law.alpha, law.beta)


def scale_law(law: LossLaw, leverage: float) -> LossLaw:
    """A family whose leverage over the law's is this at every budget: as if N and D were sqrt(leverage) larger."""
    root = leverage**0.5
    return LossLaw(law.E, law.A * root**-law.alpha, law.B * root**-law.beta, law.alpha, law.beta)


def plant_points(
    laws: Mapping[str, LossLaw],
    generator: np.random.Generator | None = None,
    sizes: Sequence[float] = SIZES,
    *,
    num_seeds: int = 2,
    budgets: Sequence[float] = BUDGETS,
    run_noise: float = 0.01,
    shared: float = 0.7,
    point_noise: float = 0.003,
    is_nested: bool = True,
    drift: float = 0.0,
) -> list[LossPoint]:
    """Points of each family; without a generator, without noise.

    `shared` is the part of the variance between runs that families have in common by size and seed; a run's own noise
    moves on by steps of `drift` from budget to budget.
    """
    points, common = [], {}
    for family, law in laws.items():
        for index, size in enumerate(sizes):
            for seed in range(num_seeds):
                own = 0.0
                for place, budget in enumerate(budgets):
                    key = index, seed, 0 if is_nested else place
                    if generator is not None and (place == 0 or not is_nested):
                        if key not in common:
                            common[key] = generator.standard_normal()
                        own = shared**0.5 * common[key] + (1 - shared) ** 0.5 * generator.standard_normal()
                    noise = 0.0 if generator is None else point_noise * generator.standard_normal()
                    own += (
                        0.0
                        if generator is None or not drift
                        else drift / run_noise * generator.standard_normal()
                    )
                    tokens = budget / 6 / size
                    loss = float(law.predict(size, tokens)) + run_noise * own + noise
                    run = f"{family}-{index}-{seed}" + ("" if is_nested else f"-{place}")
                    points.append(LossPoint(family, f"s{index}", seed, budget, budget, tokens, loss, run))
    return points
