"""A router and a loss from outside the package work wherever those of the package do.

These are recipes, plan, config, training, logs, export with code, import and generation.
"""

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import hmoe
from hmoe.cli.main import run_command_line
from hmoe.config import recipes
from hmoe.config.recipe_errors import list_recipe_keys
from hmoe.hub import HMoEConfig
from hmoe.model.losses import LOSS_FUNCTIONS
from hmoe.model.routers import METHODS
from hmoe.specs.fields import get_field_types
from hmoe.specs.losses import LOSSES
from hmoe.specs.model import MoESpec
from hmoe.specs.routers import ROUTERS

EXTENSION = '''
"""Every token goes to its best expert, and to all others whose probability is at least a share of the best one's."""

from dataclasses import dataclass
from typing import Annotated, Literal

from hmoe import RouterMethod, RouterSpec, register_loss, register_router
from hmoe.specs.fields import Real


@dataclass(frozen=True)
class Share(RouterSpec):
    """Experts near the best.

    Attributes:
        share: of the best probability that is enough.
    """

    share: Annotated[float, Real(1, zero=False)] = 0.5
    renormalize: bool = True
    name: Literal["share_of_best"] = "share_of_best"

    @property
    def title(self):
        return f"share of best {self.share}"

    def count_experts_per_token(self, num_experts, training=True):
        return 1, (1 + num_experts) / 2, num_experts


def choose(scores_TE, logits_TE, spec, state):
    return ~(scores_TE < spec.share * scores_TE.amax(1, keepdim=True))


def importance(statistics, moe):
    return (statistics.prob_E * len(moe.routed_widths) - 1).square().mean(-1)


register_router(Share, RouterMethod(choose))
register_loss("importance", importance, "squared coefficient of variation of the experts' probabilities")
'''
WORDS = [
    "model.moe.router={name: share_of_best, share: 0.7}",
    "model.moe.losses={importance: 0.5}",
    "train.steps=2",
    "train.sample_every=2",
]


@pytest.fixture
def extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module with a router and a loss, which the environment names."""
    (tmp_path / "share_router.py").write_text(EXTENSION)
    monkeypatch.setenv("HMOE_EXTENSIONS", str(tmp_path / "share_router.py"))
    yield str(tmp_path)
    sys.modules.pop("share_router", None)
    for table in (ROUTERS, METHODS):
        table.pop("share_of_best", None)  # type: ignore[attr-defined]
    for table in (LOSSES, LOSS_FUNCTIONS):
        table.pop("importance", None)  # type: ignore[attr-defined]


def test_an_own_router_and_loss_go_everywhere(
    extension: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "train.eval_sequences=2", "data.batch_tokens=512", "data.sequence_length=64"]
    assert run_command_line(["plan", "tiny", *words]) == 0
    assert "share of best 0.7, every expert equally likely" in capsys.readouterr().out
    assert run_command_line(["config", "tiny", *words]) == 0
    assert "share: 0.7" in capsys.readouterr().out
    assert "model.moe.router.share" in list_recipe_keys()
    reference = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "generate.py"))["config_page"]()
    assert "| `model.moe.router.share` | `0.5` | of the best probability that is enough. |" in reference
    folder, exported = tmp_path / "run", tmp_path / "exported"
    assert run_command_line(["train", "tiny", "--run", str(folder), *words]) == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["importance"] >= 0 for row in rows)
    assert 1 <= rows[-1]["experts_per_token"] <= 8
    assert run_command_line(["train", str(folder), "train.steps=3"]) == 0, "a run of an own router resumes"
    assert run_command_line(["export", str(folder), str(exported), "--with-code"]) == 0
    config = json.loads((exported / "config.json").read_text())
    assert (config["router_type"], config["router_options"], config["norm_topk_prob"]) == (
        "share_of_best",
        {"share": 0.7},
        True,
    )
    assert config["other_loss_coefs"] == {"importance": 0.5}
    capsys.readouterr()
    again = tmp_path / "again"
    assert run_command_line(["import", str(exported), str(again), "--recipe", "tiny"]) == 0
    ours, imported = (recipes.read_recipe(str(path / "config.yaml"))[1].model.moe for path in (folder, again))
    assert ours is not None
    assert imported == replace(ours, widths=ours.expert_widths)
    texts = []
    for path in (folder, exported):
        capsys.readouterr()
        assert (
            run_command_line(["generate", str(path), "She was", "--max-tokens", "5", "--temperature", "0"])
            == 0
        )
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    # In a process that has read no recipe the folder itself must lead to the extension.
    command = [
        sys.executable,
        "-m",
        "hmoe",
        "generate",
        str(exported),
        "She was",
        "--max-tokens",
        "5",
        "--temperature",
        "0",
    ]
    fresh = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (fresh.returncode, fresh.stdout) == (0, texts[0]), fresh.stderr
    loads = (
        "import sys; sys.modules['hmoe'] = None\n"
        "import torch\nfrom transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(exported)!r}, trust_remote_code=True)\n"
        "ids = torch.arange(8)[None]\n"
        "out = model(ids, labels=ids, output_router_logits=True)\n"
        "assert out.aux_loss > 0\nprint(model.generate(ids, max_new_tokens=3, do_sample=False).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", loads], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "[1, 11]" in done.stdout


def test_what_is_not_known_is_one_line() -> None:
    with pytest.raises(
        hmoe.ConfigError, match="must be one of top_k, top_p, expert_choice; one of your own is registered by"
    ):
        recipes.read_recipe("tiny", ["model.moe.router={name: share_of_best}"])
    with pytest.raises(hmoe.ConfigError, match=r"model\.moe\.losses\.importance: no such loss"):
        recipes.read_recipe("tiny", ["model.moe.losses={importance: 0.5}"])


def test_every_router_and_loss_has_both_halves() -> None:
    assert METHODS.keys() == ROUTERS.keys()
    assert LOSS_FUNCTIONS.keys() == LOSSES.keys()
    fields = get_field_types(MoESpec)
    built_in = [loss for loss in LOSSES.values() if loss.built_in]
    assert {key for loss in built_in for key in (loss.name, loss.option) if key} <= fields.keys()
    assert {loss.hf_key for loss in built_in} <= set(HMoEConfig.__annotations__)


def test_a_taken_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(hmoe.RouterSpec):
        name = "top_k"

    for spec_class, message in ((Other, "is taken by"), (int, "must be a subclass of hmoe.RouterSpec")):
        with pytest.raises(hmoe.ConfigError, match=message):
            hmoe.register_router(spec_class, METHODS["top_k"])

    class Unfinished(hmoe.RouterSpec):
        name = "unfinished"

    with pytest.raises(hmoe.ConfigError, match="Unfinished must define count_experts_per_token"):
        hmoe.register_router(Unfinished, METHODS["top_k"])
    assert "unfinished" not in ROUTERS
    with pytest.raises(hmoe.ConfigError, match=r"must be a hmoe\.RouterMethod"):
        hmoe.register_router(hmoe.TopK, print)
    for name in ("router_z", "loss", "step"):
        with pytest.raises(hmoe.ConfigError, match="is taken"):
            hmoe.register_loss(name, print)
    for name in ("class", "a b"):
        with pytest.raises(hmoe.ConfigError, match="must be letters"):
            hmoe.register_loss(name, print)
    monkeypatch.setenv("HMOE_EXTENSIONS", "no_such_module")
    with pytest.raises(hmoe.ConfigError, match="HMOE_EXTENSIONS: no_such_module cannot be imported"):
        recipes.read_recipe("tiny")


def test_a_loss_may_be_registered_again_but_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(statistics: object, moe: object) -> None: ...

    monkeypatch.setattr("hmoe.model.losses.LOSS_FUNCTIONS", {})
    monkeypatch.setattr("hmoe.specs.losses.LOSSES", dict(LOSSES))
    hmoe.register_loss("mine", measure)
    hmoe.register_loss("mine", measure)
    with pytest.raises(hmoe.ConfigError, match="name = 'mine' is taken"):
        hmoe.register_loss("mine", print)
