"""A model of any folder + a recipe that says what its experts become -> the recipe of the new run."""

from collections.abc import Sequence
from typing import Any

from hmoe.config import recipes
from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.runs.open import Opened
from hmoe.specs.model import ModelSpec
from hmoe.specs.plain import to_plain


def recipe_of(opened: Opened, recipe: str, overrides: Sequence[str], widths: Sequence[int] | None = None) -> RunConfig:
    """The recipe with the folder's model in it, but for `model.moe`, which is the recipe's.

    A run trained on data goes on with them; a Hugging Face folder reads data/<its name> unless the recipe says otherwise.

    Args:
        opened: the folder.
        recipe: its sections data, optim, train and model.moe count.
        overrides: of these.
        widths: in place of the recipe's.

    Raises:
        ConfigError: naming what does not fit.
    """
    changes = [word for word in overrides if word.lstrip("-").startswith("model.moe")]
    moe = recipes.resolve(recipe, changes)["model"].get("moe")
    if moe is None:
        raise ConfigError(f"{recipe}: its model is dense (model.moe: null); name a recipe with experts")
    given = opened.model.config
    if widths is not None:
        moe = {**moe, "widths": list(widths)}
    tree = to_plain(given) | {"moe": moe, "ffn": given.ffn if moe.get("dense_layers") else None}
    model = recipes.check_model(tree)
    path = opened.run.data.path if opened.run else f"data/{opened.name}"
    elsewhere = any(word.lstrip("-").startswith("data.path") for word in overrides)
    own = opened.run is not None and path == "corpus" and not elsewhere
    tokenizer = [f"data.tokenizer={opened.run.corpus_tokenizer}"] if own and opened.run else []
    config = recipes.with_model(recipe, model, [*tokenizer, *overrides], path)
    if _rest(config.model) != _rest(model):
        raise ConfigError(f"model: comes from {opened.name}; only model.moe, data, optim and train can be overridden")
    return config if widths is None else config.model_copy(update={"model": model})


def _rest(model: ModelSpec) -> dict[str, Any]:
    return {name: value for name, value in to_plain(model).items() if name not in ("moe", "ffn")}
