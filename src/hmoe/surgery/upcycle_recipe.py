"""The recipe of an upcycled run: the model of a folder, with the experts that another recipe gives it."""

from collections.abc import Sequence
from typing import Any

from hmoe.config import recipes
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.runs.open_model import OpenedModel
from hmoe.specs.model import ModelSpec
from hmoe.specs.plain import to_plain


def build_upcycle_recipe(
    opened: OpenedModel, recipe: str, overrides: Sequence[str], widths: Sequence[int] | None = None
) -> RunConfig:
    """Return a recipe with the model of a folder in it, whose experts (`model.moe`) are those of the recipe.

    A run that was trained on data goes on with them; a Hugging Face folder reads data/<its name> unless the
    recipe names other data.

    Args:
        opened: the folder.
        recipe: a preset or a YAML file; its sections data, optim, train and model.moe count.
        overrides: words such as "train.steps=5" that change these sections.
        widths: of the experts, in place of the recipe's; None: the recipe's.

    Raises:
        ConfigError: naming what does not fit.
    """
    changes = [word for word in overrides if word.lstrip("-").startswith("model.moe")]
    moe = recipes.resolve_recipe(recipe, changes)["model"].get("moe")
    if moe is None:
        raise ConfigError(f"{recipe}: its model is dense (model.moe: null); name a recipe with experts")
    source = opened.model.config
    if widths is not None:
        moe = {**moe, "widths": list(widths)}
    tree = to_plain(source) | {"moe": moe, "ffn": source.ffn if moe.get("dense_layers") else None}
    model = recipes.check_model(tree)
    path = opened.run.data.path if opened.run else f"data/{opened.name}"
    path_is_overridden = any(word.lstrip("-").startswith("data.path") for word in overrides)
    tokenizer = []
    if opened.run is not None and path == "corpus" and not path_is_overridden:
        # Without it the recipe's own tokenizer would be trained on the corpus, whose tokens the model has not
        # seen.
        tokenizer = [f"data.tokenizer={opened.run.corpus_tokenizer}"]
    config = recipes.replace_model(recipe, model, [*tokenizer, *overrides], path)
    if _without_experts(config.model) != _without_experts(model):
        raise ConfigError(
            f"model: comes from {opened.name}; only model.moe, data, optim and train can be overridden"
        )
    # An override of model.moe.widths has been applied once more; a measured budget goes before it.
    return config if widths is None else config.model_copy(update={"model": model})


def _without_experts(model: ModelSpec) -> dict[str, Any]:
    return {name: value for name, value in to_plain(model).items() if name not in ("moe", "ffn")}
