"""What a sweep trains: groups of runs, each a recipe with overrides, times seeds. No torch."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from hmoe.config import recipes
from hmoe.config.recipe_file import read_tree
from hmoe.config.run import RunConfig
from hmoe.config.section import Section
from hmoe.errors import ConfigError
from hmoe.sweep.upcycled import check_upcycled_model

PLAN = "sweep.yaml"
Kind = Literal["grid", "ablation", "tuning", "isoflop"]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+=,-]{0,120}$")]
_Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
_Flops = Annotated[float, Field(gt=0, le=1e40)]


class SweepGroup(Section):
    """One row of the table: a recipe, trained with every seed.

    Attributes:
        name: of the row; its runs are called NAME-SEED.
        recipe: preset or YAML file; None where `control_of` says what is trained.
        overrides: of the recipe, as on a command line.
        family: groups of one family are one curve of an isoFLOP plot; None: the name.
        size: of the model among those of its family; "" where there is one.
        control_of: a group of unequal experts; of each of its finished runs the uniform control is trained.
        upcycled_from: a group; each run begins with experts that are made of its finished run of the same seed.
        measured_widths: the experts share the recipe's total width, below the source's, by the importance that the
            units of the source are measured to have, instead of by the recipe's rule.
        is_source: trained for others to begin with, and no row of the comparison.
    """

    name: _Name
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    family: _Name | None = None
    size: str = ""
    control_of: str | None = None
    upcycled_from: str | None = None
    measured_widths: bool = False
    is_source: bool = False

    @property
    def source(self) -> str | None:
        """The group whose run of the same seed must be finished before one of this group begins."""
        return self.control_of or self.upcycled_from

    @property
    def curve(self) -> str:
        """Name of the family."""
        return self.family or self.name

    @model_validator(mode="after")
    def _check(self) -> "SweepGroup":
        if (self.recipe is None) == (self.control_of is None):
            raise ValueError(f"group {self.name}: give either a recipe or control_of")
        if self.control_of is not None:
            self.no_effect("with control_of", "overrides", "upcycled_from", "measured_widths", "is_source")
        if self.upcycled_from is None:
            self.no_effect("without upcycled_from", "measured_widths")
        return self


class SweepPlan(Section):
    """Everything that a sweep trains, in the order in which it is trained.

    Attributes:
        kind: which question the rows answer at the end.
        groups: rows of the table.
        seeds: of every group.
        overrides: of every recipe, before the group's own.
        budgets: training FLOPs at which an isoFLOP run is measured; the largest ends it.
        baseline: group that the others are compared with.
    """

    kind: Kind = "grid"
    groups: Annotated[tuple[SweepGroup, ...], Field(min_length=1)]
    seeds: Annotated[tuple[_Seed, ...], Field(min_length=1)] = (0,)
    overrides: tuple[str, ...] = ()
    budgets: tuple[_Flops, ...] = ()
    baseline: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "SweepPlan":
        names = [group.name for group in self.groups]
        for what, values in (("groups", names), ("seeds", self.seeds), ("budgets", self.budgets)):
            twice = next((value for value in values if list(values).count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"{what}: {twice} is given twice")
        for i, group in enumerate(self.groups):
            if group.control_of in names[:i] and self.get_group(group.control_of).control_of is not None:
                raise ValueError(f"group {group.name}: {group.control_of} is a control itself")
            if group.source is not None and group.source not in names[:i]:
                raise ValueError(
                    f"group {group.name}: {group.source} must be a group before it{_near(group.source, names)}"
                )
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"baseline = {self.baseline}: must be a group{_near(self.baseline, names)}")
        if (self.kind == "isoflop") != bool(self.budgets):
            raise ValueError("budgets: an isoflop sweep needs them, and no other has a use for them")
        return self

    @property
    def common_overrides(self) -> tuple[str, ...]:
        """Overrides of every recipe, budgets included."""
        if not self.budgets:
            return self.overrides
        budgets = sorted(self.budgets)
        return (*self.overrides, *set_budget(budgets[-1]), f"train.eval_flops={budgets!r}")

    def get_group(self, name: str) -> SweepGroup:
        """Return the group of a name."""
        return next(group for group in self.groups if group.name == name)

    def read_recipe(self, group: SweepGroup, seed: int) -> RunConfig:
        """Return the recipe of a run that is not derived from another run.

        Raises:
            ConfigError: naming the group, for what is wrong with its recipe.
        """
        assert group.recipe is not None
        words = [*self.common_overrides, *group.overrides, f"seed={seed}"]
        try:
            return recipes.read_recipe(group.recipe, words)[1]
        except ConfigError as error:
            raise ConfigError(f"group {group.name}: {error}") from None


def set_budget(flops: float) -> tuple[str, ...]:
    """Return overrides that end a run at so many FLOPs, at a constant rate after warm-up.

    Schedules are told in steps, of which families take more or fewer for the same FLOPs: some would end before their
    decay, and a loss on the way to a larger budget would not be that of a smaller one.
    """
    limits = [f"train.{name}=null" for name in ("steps", "tokens", "seconds")]
    schedule = [f"optim.{name}=null" for name in ("schedule_steps", "decay_steps", "floor")]
    return (*limits, f"train.flops={flops!r}", "optim.schedule=constant", *schedule)


def _near(name: str, names: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, names, 1, 0)
    return f"; nearest is {nearest[0]}" if nearest else ""


def check_plan(tree: Any, where: str) -> SweepPlan:
    """Validate plain values as a plan, every recipe included; `where` names them in errors.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    try:
        plan = SweepPlan.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_describe_problem(error.errors(include_url=False)[0])}") from None
    for words in (plan.overrides, *(group.overrides for group in plan.groups)):
        _check_overrides(words, bool(plan.budgets), where)
    for group in plan.groups:
        if group.recipe is not None:
            _check_group(plan, group)
        elif not _is_unequal(plan.read_recipe(plan.get_group(str(group.control_of)), plan.seeds[0])):
            raise ConfigError(
                f"{where}: group {group.name}: {group.control_of} has no experts of different width"
            )
    return plan


def _is_unequal(config: RunConfig) -> bool:
    return config.model.moe is not None and len(set(config.model.moe.expert_widths)) > 1


def _check_overrides(words: Sequence[str], has_budgets: bool, where: str) -> None:
    """Raise ConfigError for keys that the sweep itself sets."""
    keys = [word.removeprefix("--").partition("=")[0] for word in words if not word.endswith("=null")]
    if "seed" in keys:
        raise ConfigError(f"{where}: seed: is set by the seeds of the sweep; remove the override")
    own = {word.partition("=")[0] for word in set_budget(1.0)} | {"train.eval_flops"}
    for key in keys if has_budgets else ():
        if key in own:
            raise ConfigError(
                f"{where}: {key}: is set by the budgets of an isoflop sweep; remove the override"
            )


def _check_group(plan: SweepPlan, group: SweepGroup) -> None:
    """Raise ConfigError for a recipe that is none, or that cannot begin with the weights of its source."""
    config = plan.read_recipe(group, plan.seeds[0])
    source = None if group.upcycled_from is None else plan.get_group(group.upcycled_from)
    if source is not None and source.recipe is not None:
        try:
            check_upcycled_model(
                config.model, plan.read_recipe(source, plan.seeds[0]).model, group.measured_widths
            )
        except ConfigError as error:
            raise ConfigError(f"group {group.name}: {error}, {source.name}") from None


def _describe_problem(problem: Any) -> str:
    key = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if problem["type"] == "extra_forbidden":
        fields = SweepGroup.model_fields if "groups" in problem["loc"] else SweepPlan.model_fields
        return f"{key}: unknown key{_near(str(problem['loc'][-1]), list(fields))}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    if problem["type"] == "value_error":
        return str(message)
    return f"{key} = {problem['input']!r}: {message}"[:400]


def read_plan(path: Path) -> SweepPlan:
    """Read a plan from a YAML file; recipes that are files lie relative to it.

    Raises:
        ConfigError: if it is none.
    """
    tree = read_tree(path)
    groups = tree.get("groups")
    for group in groups if isinstance(groups, list) else ():
        recipe = group.get("recipe") if isinstance(group, dict) else None
        if isinstance(recipe, str) and recipe.endswith((".yaml", ".yml")):
            group["recipe"] = os.path.normpath((path.parent / recipe).absolute())
    return check_plan(tree, str(path))


def dump_plan(plan: SweepPlan, folder: Path) -> str:
    """Return YAML that `read_plan` reads back to an equal plan from a file in a folder."""
    tree = plan.model_dump(mode="json", exclude_defaults=True)
    for group in tree["groups"]:
        if group.get("recipe", "").endswith((".yaml", ".yml")):
            group["recipe"] = os.path.relpath(group["recipe"], folder)
    text: str = yaml.safe_dump(tree, sort_keys=False, width=120)
    return text
