"""Nonsense recipes: each is a sound config, which trains or is planned, or is refused in one line."""

import copy
import functools
import random
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from hmoe import ConfigError, DataError, HMoEError, NonFiniteError
from hmoe.config import recipes
from hmoe.config.counts import count_parameters
from hmoe.config.recipe_errors import list_recipe_keys
from hmoe.config.run import RunConfig
from hmoe.runs.run_folder import RunFolder
from hmoe.train.console import Console
from hmoe.train.loop import train_run
from tests.conftest import tiny
from tests.faults.campaign import Case, FaultTest, check
from tests.faults.mutations import (
    NONSENSE,
    check_command_line,
    check_user_error,
    draw_like,
    limit_memory,
    mutate_bytes,
    show_input,
)

_PRESETS = (
    "tiny",
    "tiny-topp",
    "tiny-dense",
    "tiny-deepseek",
    "tiny-hyper",
    "tiny-expert-choice",
    "quickstart",
)
_INPUTS = 50
_ONE_STEP = [
    "train.steps=1",
    "train.tokens=null",
    "train.flops=null",
    "train.seconds=null",
    "train.eval_every=0",
]
_MOST_PARAMETERS = 1_000_000  # of a model that trains for a step here


@functools.cache
def _get_tree(preset: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(recipes.dump_recipe(recipes.read_recipe(preset)[1]))
    return tree


def _change_tree(rng: random.Random, preset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a recipe with one to three keys changed, and the changes."""
    tree, changes = copy.deepcopy(_get_tree(preset)), {}
    for key in rng.choices(
        [*list_recipe_keys(), "model.nope", "modle.dim", "\n"], k=rng.choice((1, 1, 2, 3))
    ):
        node: Any = tree
        *parents, last = key.split(".")
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[last] = changes[key] = draw_like(rng, node.get(last))
    return tree, changes


def _check_tree(rng: random.Random, folder: Path) -> tuple[RunConfig | None, str]:
    tree, changes = _change_tree(rng, rng.choice(_PRESETS))
    return _read_config(lambda: recipes.check_recipe(tree), show_input(changes))


def _draw_word(rng: random.Random) -> str:
    key = rng.choice(list_recipe_keys())
    value = rng.choice(NONSENSE)
    text = rng.choice(
        (
            "".join(rng.choices(string.printable, k=rng.randrange(1, 30))),
            str(value) if not (isinstance(value, int) and abs(value) > 10**100) else "0x" + "f" * 4000,
            rng.choice(
                (
                    "[",
                    "&a [*a]",
                    "!!python/name:os.system",
                    "{a: 1, a: 2}",
                    "? x",
                    "- - -",
                    "1_0",
                    "0o7",
                    "1:30",
                    "=",
                    "<<",
                )
            ),
            str(rng.randrange(-3, 300)),
            "[" * 3000,
        )
    )
    return rng.choice(
        (f"{key}={text}", f"--{key}={text}", f"{key}{text}", text, f"{key}.x={text}", f"--{key}")
    )


def _check_words(rng: random.Random, folder: Path) -> tuple[RunConfig | None, str]:
    words = [_draw_word(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    preset = rng.choice((*_PRESETS, "tinny", "a\0b", "", "../x.yaml"))
    return _read_config(lambda: recipes.read_recipe(preset, words)[1], show_input([preset, *words]))


def _draw_bomb(rng: random.Random) -> bytes:
    """Return text that is YAML of a kind that programs fall over."""
    depth = rng.choice((50, 500, 5000, 100_000))
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, rng.randint(2, 12)))
    kind = rng.randrange(8)
    texts = (
        f"base: tiny\na0: &a0 [x]\n{levels}",
        f"base: tiny\nmodel: &m {{moe: *m}}\nseed: {rng.randrange(9)}",
        "base: tiny\nseed: " + "[" * depth + "]" * rng.choice((0, depth)),
        "base: tiny\nmodel: " + "{a: " * depth,
        f"base: tiny\nseed: !!python/object/apply:os.system ['touch {rng.randrange(9)}']",
        "!!python/object/new:os.system [touch x]",
        f"base: tiny\nseed: {'9' * depth}\n",
        "base: tiny\n" + "".join(f"k{i}: {i}\n" for i in range(min(depth, 5000))),
    )
    return texts[kind].encode()


def _draw_file(rng: random.Random) -> bytes:
    tree, _ = _change_tree(rng, rng.choice(_PRESETS))
    good = rng.choice(
        (b"base: tiny\nseed: 3\n", recipes.dump_recipe(recipes.read_recipe(rng.choice(_PRESETS))[1]).encode())
    )
    kind = rng.randrange(8)
    if kind < 4:
        return mutate_bytes(rng, good)
    if kind == 4:
        return _draw_bomb(rng)
    if kind == 5:
        encoding = rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "utf-7", "cp037"))
        return (good.decode() + "# größe\n").encode(encoding)
    if kind == 6:
        return rng.choice(
            (
                b"",
                b"\0",
                b"\n" * 5000,
                b"- a\n" * 20_000,
                good * 2,
                rng.randbytes(300),
                b"base: r.yaml",
                b"---\n---\n",
            )
        )
    return _dump_yaml(tree).encode(errors="surrogatepass")


def _dump_yaml(tree: Any) -> str:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        text: str = yaml.safe_dump(tree, allow_unicode=True)
    finally:
        sys.set_int_max_str_digits(before)
    return text


def _check_file(rng: random.Random, folder: Path) -> tuple[RunConfig | None, str]:
    file = folder / "r.yaml"
    file.write_bytes(_draw_file(rng))
    return _read_config(lambda: recipes.read_recipe(str(file))[1], show_input(file.read_bytes()))


def _read_config(read: Callable[[], RunConfig], what: str) -> tuple[RunConfig | None, str]:
    """Read a config that must be sound or refused; None if it was refused."""
    try:
        config = read()
    except Exception as error:
        check_user_error(error, what)
        check(isinstance(error, ConfigError), f"{type(error).__name__} is no ConfigError for {what}")
        return None, what
    check(isinstance(config, RunConfig), f"{type(config).__name__} is read for {what}")
    again = recipes.check_recipe(yaml.safe_load(recipes.dump_recipe(config)))
    check(again == config, f"written and read it is another config for {what}")
    return config, what


def _train_one_step(folder: Path, config: RunConfig, what: str) -> bool:
    """Train a sound recipe, shrunk, for a step; False if it does not shrink to one that is quick."""
    file = folder / "small.yaml"
    file.write_text(recipes.dump_recipe(config))
    try:
        small = recipes.read_recipe(str(file), [*tiny(str(file)), *_ONE_STEP])[1]
    except ConfigError as error:
        check_user_error(error, what)
        return False
    if (
        sum(count_parameters(small.model).values()) > _MOST_PARAMETERS
        or small.train.sample_tokens > 64
        or small.train.compile
    ):
        return False
    try:
        with RunFolder(folder / "run", small) as opened:
            train_run(small, opened, Console())
    except HMoEError as error:
        check_user_error(error, what)
        # Weights of domains are the data's matter; a learning rate of 100 may end in NaN.
        check(isinstance(error, ConfigError | DataError | NonFiniteError), f"{error} for {what}")
    return True


def try_recipes(case: Case) -> int:
    """Try fifty recipes; of the sound ones some are planned, and one trains."""
    rng = case.draw()
    limit_memory()
    is_trained = False
    for number in range(_INPUTS):
        kind = rng.choice((_check_tree, _check_tree, _check_tree, _check_words, _check_file))
        config, what = kind(rng, case.folder)
        if number % 10 == 0:
            file = case.folder / "planned.yaml"
            file.write_bytes(_draw_file(rng) if config is None else recipes.dump_recipe(config).encode())
            words = [] if rng.random() < 0.5 else [_draw_word(rng)]
            check_command_line(
                ["plan", str(file), *words], {0, 2}, f"{show_input(file.read_bytes())} {words} ({what})"
            )
        if config is not None and not is_trained:
            is_trained = _train_one_step(case.folder, config, what)
    return _INPUTS


def prepare_corpus(base: Path) -> None:
    """Train once, so that the embedded corpus is prepared for all cases."""
    config = recipes.read_recipe("tiny", [*tiny("tiny"), *_ONE_STEP])[1]
    with RunFolder(base / "run", config) as opened:
        train_run(config, opened, Console())


TESTS = (
    FaultTest(
        name="R12",
        fault="nonsense recipes: types, ranges, unknown keys, huge numbers, damaged YAML, bombs, encodings, words",
        promise="each is refused in one line (exit code 2), or is sound; some are planned or trained",
        unit="recipes",
        run=try_recipes,
        cases=100,
        prepare=prepare_corpus,
    ),
)
