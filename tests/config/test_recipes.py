import copy
import functools
import random
import string
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hmoe import ConfigError, TopK, TopP
from hmoe.config import recipes
from hmoe.config.recipe_errors import list_recipe_keys
from hmoe.config.run import RESUMABLE, RunConfig

RECIPE = """
base: tiny
seed: 3
model:
  moe:
    widths: [16, 32, 48, 96]
    router: {name: top_p, p: 0.5}
    router_entropy: 3e-2
optim: {lr: 1e-3}
train: {flops: 1e12}
"""


def test_a_recipe_of_ten_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    name, config = recipes.read_recipe(
        str(path), ["model.layers=3", "--train.steps", "7", "--optim.clip=null"]
    )
    assert (name, config.seed, config.model.layers, config.train.steps) == ("mine", 3, 3, 7)
    assert config.model.moe is not None
    assert config.model.moe.router == TopP(0.5)
    assert config.model.moe.expert_widths == (16, 32, 48, 96)
    assert config.optim.lr == 1e-3  # a string in YAML 1.1
    assert config.optim.clip is None
    assert recipes.check_recipe(yaml.safe_load(recipes.dump_recipe(config))) == config


def test_base_may_be_a_file_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(RECIPE)
    (tmp_path / "sub.yaml").write_text("base: base.yaml\nseed: 9\n")
    assert recipes.read_recipe(str(tmp_path / "sub.yaml"))[1].seed == 9
    (tmp_path / "a.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        recipes.read_recipe(str(tmp_path / "a.yaml"))


def test_changing_the_kind_drops_keys_of_the_old_kind() -> None:
    config = recipes.read_recipe("hmoe-0.4b-topk", ["model.moe.router.name=top_p"])[1]
    assert config.model.moe is not None
    assert config.model.moe.router == TopP(0.6)
    config = recipes.read_recipe(
        "hmoe-0.4b-topk", ["model.moe.widths.ratio=2", "model.moe.widths.shape=hybrid"]
    )[1]
    assert config.model.moe is not None
    assert config.model.moe.expert_widths == (768,) * 4 + (1536,) * 2 + (3072,) * 2
    assert config.model.moe.router == TopK(2)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.dim=-3", "model.dim = -3, must be an integer from 2 to 65536"),
        ("model.dimm=3", "model.dimm: unknown key; nearest is model.dim"),
        ("modle.dim=3", "modle.dim: unknown key; nearest is model.dim"),
        ("model.dim=true", "model.dim = True: must not be true or false"),
        ("model.heads=5", "dim / heads must be an integer, or give head_dim"),
        ("model.kv_heads=3", "kv_heads = 3: must divide heads"),
        ("model.moe.router.name=top_z", "name must be one of top_k, top_p, expert_choice"),
        ("model.moe.router.p=0.3", "does not belong to this kind of router"),
        ("model.moe.router.k=9", "at most the number of experts, 8"),
        ("model.moe.router={name: top_p, p: 0}", r"router.p = 0.0?, must be in \(0, 1\]"),
        ("model.moe.router={name: top_p, p: 1.5}", "must be in"),
        ("model.moe.widths=[0, 8]", "model.moe.widths.0 = 0"),
        ("model.moe.widths.ratio=0.2", "must be from 1"),
        ("model.moe.penalty_norm=median", "penalty_norm = 'median': must be 'mean', 'max' or 'raw'"),
        ("model.moe.entropy_scale=one", "entropy_scale has no effect while router_entropy is 0"),
        ("model.ffn=64", "ffn has no effect"),
        ("model.moe.dense_layers=[0]", "ffn: missing"),
        ("model.moe.dense_layers=[5]", "distinct layers from 0 to 1"),
        ("model.moe.dense_layers=[0,1]", "names every layer"),
        ("data.batch_tokens=1000", "nearest is 1024"),
        ("data.micro_batches=7", "must divide the 32 sequences"),
        ("data.path=elsewhere data.tokenizer=bytes", "tokenizer has no effect"),
        ("data.weights={a: 0}", "must be at least 0, one of them above 0"),
        ("optim.lr=nan", "must be a finite number"),
        ("optim.betas=[0.9, 1.0]", "each must be in"),
        ("optim.schedule=cosine", "schedule_steps: missing"),
        ("optim.floor=0.1", "floor has no effect with a constant schedule"),
        ("optim.schedule=wsd optim.schedule_steps=100", "decay_steps = None"),
        ("optim.schedule=cosine optim.schedule_steps=10", "must be above warmup_steps"),
        ("optim.schedule=cosine optim.schedule_steps=50 optim.decay_steps=3", "decay_steps has no effect"),
        ("train.steps=null", "give at least one budget"),
        ("train.keep=1", "greater than or equal to 2"),
        ("train.precision=fp8", "must be 'float32', 'bfloat16' or 'float64'"),
        ("train.steps", "an override is key=value"),
        ("--train.steps", "an override is key=value"),
        ("train.steps=[", "not a YAML value"),
        ("model=3", "model = 3"),
        ("seed=-1", "seed = -1"),
        ("model.moe.widths=[true, 8]", "must not be true or false"),
        ("model.moe.router.k=true", "must not be true or false"),
        ("model.moe.widths=null", "must be a list of hidden units or a rule"),
        ("data.tokenizer=gpt", "must be bytes or bpe:SIZE"),
        ("model.vocab=100", "the tokenizer needs at least 257"),
        ("data.tokenizer=bpe:5000", "the tokenizer needs at least 5000"),
        ('data.path="a\\0b"', "NUL"),
        ("data.weights={a: 1e308}", "less than or equal to"),
        (f"seed=0x{'f' * 5000}", "thousands of digits"),
    ],
)
def test_errors_are_one_line_that_names_key_value_and_choice(override: str, said: str) -> None:
    words = override.split(" ") if "{" not in override and "[" not in override else [override]
    with pytest.raises(ConfigError, match=said) as caught:
        recipes.read_recipe("tiny", words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tinny", "", "a\0b"])
def test_unknown_preset_names_the_nearest(name: str) -> None:
    with pytest.raises(ConfigError, match=r"; nearest is \S+; see `hmoe presets`$"):
        recipes.read_recipe(name)


def test_what_is_no_preset_for_another_reason_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("base: tiny\n")
    for name, message in (
        ("../x", r"\.\./x: no such run folder or \.yaml file"),
        (
            "train.steps=3",
            "train.steps=3: is an override; a preset, a .yaml file or a run folder comes first",
        ),
        ("mine", "nearest is mine.yaml"),
    ):
        with pytest.raises(ConfigError, match=message):
            recipes.read_recipe(name)


@pytest.mark.parametrize(
    "content",
    [
        "[1, 2]",
        "a: [",
        "\xff",
        "3",
        "&a [*a]",
        "x: !!python/object:os.system {}",
        "{1: 2}",
        "seed: 1\nseed: 2",
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"r\.yaml"):
        recipes.read_recipe(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        recipes.read_recipe(str(tmp_path / "absent.yaml"))


def test_recipes_that_refer_to_themselves(tmp_path: Path) -> None:
    for name, base in (("a", "tiny"), ("b", "a.yaml")):
        (tmp_path / f"{name}.yaml").write_text(f"base: {base}\nmodel: &m {{moe: *m}}\n")
    with pytest.raises(ConfigError):
        recipes.read_recipe(str(tmp_path / "b.yaml"))


def test_every_documented_key_is_an_override() -> None:
    assert {"model.moe.router.p", "data.sequence_length", "train.save_every", "optim.lr", "seed"} <= set(
        list_recipe_keys()
    )
    assert set(list_recipe_keys()) >= RESUMABLE


def test_only_budgets_logging_and_saving_may_change_on_resume() -> None:
    old = recipes.read_recipe("tiny")[1]
    assert (
        recipes.list_changed_values(
            old, recipes.read_recipe("tiny", ["train.steps=9", "train.save_every=3"])[1]
        )
        == {}
    )
    assert recipes.list_changed_values(old, recipes.read_recipe("tiny", ["optim.lr=1"])[1]) == {
        "optim.lr": (old.optim.lr, 1.0)
    }
    assert "model.moe.widths" in str(
        recipes.list_changed_values(old, recipes.read_recipe("tiny", ["model.moe.widths=[8,8]"])[1])
    )


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(string.printable, max_size=8),
    st.sampled_from(["top_k", "top_p", "corpus", "cosine", "wsd", "bytes", "1e-3", ".inf", "equal"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@functools.cache
def tiny_tree() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(recipes.dump_recipe(recipes.read_recipe("tiny")[1]))
    return tree


@given(st.dictionaries(st.sampled_from([*list_recipe_keys(), "model.nope"]), VALUES, min_size=1, max_size=4))
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nonsense_is_a_clear_line_or_a_sound_config(changes: dict[str, object]) -> None:
    tree = copy.deepcopy(tiny_tree())
    for key, value in changes.items():
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[last] = value
    try:
        config = recipes.check_recipe(tree)
    except ConfigError as error:
        assert "\n" not in str(error)
        assert 0 < len(str(error)) < 500
    else:
        assert isinstance(config, RunConfig)
        assert recipes.check_recipe(yaml.safe_load(recipes.dump_recipe(config))) == config


@pytest.mark.parametrize("key", ["\n", "a\nb", "\x1b[31m", "x" * 10_000])
def test_a_key_of_any_characters_is_shown_in_one_line(key: str) -> None:
    tree = yaml.safe_load(recipes.dump_recipe(recipes.read_recipe("tiny")[1]))
    for place, value in ((tree["data"], {key: None}), (tree, None)):
        changed = tree | (
            {"data": tree["data"] | {"weights": value}} if place is tree["data"] else {key: value}
        )
        with pytest.raises(ConfigError) as error:
            recipes.check_recipe(changed)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 500


def test_a_bomb_of_aliases_is_refused_quickly(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(["base: tiny", *lines]))
    start = time.perf_counter()
    with pytest.raises(ConfigError, match="unknown key"):
        recipes.read_recipe(str(path))
    assert time.perf_counter() - start < 60  # a hang guard: expanded, it would be 10^11 values


def test_many_problems_are_counted_and_a_few_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("base: tiny\n" + "".join(f"unknown_{i}: 1\n" for i in range(3000)))
    with pytest.raises(ConfigError, match=r"unknown_0: unknown key.*\(and 2999 more\)"):
        recipes.read_recipe(str(tmp_path / "r.yaml"))


@pytest.mark.parametrize(
    "word", ["a\nb=1", "model.heads" + "[" * 3000, "x" * 9000 + "=1", "model.heads=" + "[" * 9000]
)
def test_an_override_of_any_characters_is_shown_in_one_short_line(word: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipes.read_recipe("tiny", [word])
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


def test_long_random_text_never_breaks_the_override_parser() -> None:
    rng = random.Random(0)
    for _ in range(200):
        word = "".join(rng.choices(string.printable, k=rng.randrange(1, 30)))
        try:
            recipes.read_recipe("tiny", [word])
        except ConfigError as error:
            assert len(str(error)) < 600


@pytest.mark.parametrize(
    ("words", "domain"),
    [
        (["data.weights.cc.2019=0.5"], "cc.2019"),
        (["--data.weights.cc.2019", "0.5"], "cc.2019"),
        (["--data.weights.a=b=0.5"], "a=b"),
        (["data.weights.null=0.5"], "null"),
        (['data.weights.it\'s "x" y=0.5'], 'it\'s "x" y'),
    ],
)
def test_a_domain_of_any_name_can_be_weighted(words: list[str], domain: str) -> None:
    assert recipes.read_recipe("tiny", words)[1].data.weights == {domain: 0.5}


def test_a_weight_of_no_domain_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.weights\.: unknown key"):
        recipes.read_recipe("tiny", ["data.weights.=0.5"])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_recipe_in_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes("base: tiny\n".encode(encoding))
    with pytest.raises(
        ConfigError, match=rf"r\.yaml: is {encoding[:6].upper()}.*, a recipe must be UTF-8; .*iconv"
    ):
        recipes.read_recipe(str(path))
    path.write_bytes("base: tiny\n".encode("utf-8-sig"))
    assert recipes.read_recipe(str(path))[1] == recipes.read_recipe("tiny")[1]


def test_a_domain_may_look_like_a_number_or_a_truth_value(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: tiny\ndata:\n  weights: {2019: 1, cc.2020: 2, no: 3, 2021-01-01: 4}\n")
    weights = recipes.read_recipe(str(recipe))[1].data.weights
    assert weights == {"2019": 1, "cc.2020": 2, "no": 3, "2021-01-01": 4}
    assert recipes.read_recipe("tiny", ["data.weights={2019: 1}"])[1].data.weights == {"2019": 1}


def test_a_recipe_in_latin_1_gets_a_hint(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes("base: tiny\n# größe\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"recipe.yaml:2: invalid UTF-8: byte 0xf6; .*iconv -f LATIN1"):
        recipes.read_recipe(str(recipe))
