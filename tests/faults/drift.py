"""Runs resumed with something changed: every recipe key, the environment, the files of the run, the data."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

import hmoe
from hmoe.cli.main import run_command_line
from hmoe.config.recipe_errors import list_recipe_keys
from hmoe.config.run import CHOSEN, RESUMABLE
from hmoe.data.prepare import PrepareRequest, prepare_data
from tests.conftest import sentences
from tests.faults.campaign import Case, FaultTest, check
from tests.faults.drift_keys import BASES, CHANGES
from tests.train.helpers import command

COMMON = ("train.save_every=1", "train.eval_every=0", "train.keep=9")
BEGUN, END = 2, 4  # steps of the runs that are resumed, and of those that were not interrupted
# Their values cannot be tried with one process and without a GPU; the refusal of a device of another kind is.
UNTRIED = {"train.device", "parallel.expert_ranks"}


def train(folder: Path, base: Path, name: str, *words: str, recipe: str | None = None) -> tuple[int, str]:
    """Resume or begin a run in this process; return its exit code and all it says."""
    said = io.StringIO()
    arguments = command(folder, *COMMON, *fill(BASES[name], base), *fill(words, base))[3:]
    if recipe is not None:
        arguments = ["train", recipe, *fill(words, base)]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run_command_line(arguments)
    check("Traceback" not in said.getvalue(), f"a traceback: {said.getvalue()[-300:]!r}")
    return code, said.getvalue()


def fill(words: tuple[str, ...], base: Path) -> list[str]:
    return [word.replace("DATA", str(base / "data")).replace("SPACE", str(Path.cwd())) for word in words]


def read_files(folder: Path) -> dict[str, bytes]:
    """Return what a run folder holds, but for its lock."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*"))
            if file.is_file() and file.name != ".lock"}  # fmt: skip


def read_weights(folder: Path) -> list[bytes]:
    """Return weights and moments at the end."""
    return [(folder / f"checkpoints/step-{END:08}" / name).read_bytes() for name in
            ("model.safetensors", "optimizer.safetensors")]  # fmt: skip


def prepare_runs(base: Path) -> int:
    """Train every base recipe to its end, and half the way; see that every key is changed in some case."""
    for seed, name in enumerate(("data", "data-other")):
        file = base / f"a{seed}.jsonl"
        rows = [
            {"text": sentences(seed * 100 + number, 8), "domain": "ab"[number % 2]} for number in range(40)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        prepare_data(PrepareRequest([str(file)], "bytes", validation=0.1), base / name)
    shutil.copytree(base / "data", base / "data2")
    for name in BASES:
        for steps in (BEGUN, END):
            code, said = train(base / f"{name}-{steps}", base, name, f"train.steps={steps}")
            check(code == 0, f"base {name} does not train: {said[-300:]}")
    keys = {key for key in list_recipe_keys() if not any(k.startswith(f"{key}.") for k in list_recipe_keys())}
    tried = {key for key, _, _ in CHANGES}
    missing = keys - tried - UNTRIED
    check(not missing, f"no case changes {sorted(missing)}")
    check(tried <= keys, f"no such keys: {sorted(tried - keys)}")
    return len(CHANGES) + len(OTHERS)


def run_drift(case: Case) -> int:
    if case.number >= len(CHANGES):
        OTHERS[case.number - len(CHANGES)](case)
        return 1
    key, name, words = CHANGES[case.number]
    os.chdir(case.folder)
    hmoe.register_loss("fault_loss", lambda statistics, _: statistics.prob_E.square().sum(-1))
    key = key.removesuffix(".DOMAIN")
    folder = case.folder / "run"
    shutil.copytree(case.base / f"{name}-{BEGUN}", folder)
    before = read_files(folder)
    resumed = (
        words if any(word.startswith("train.steps=") for word in words) else (f"train.steps={END}", *words)
    )
    code, said = train(folder, case.base, name, *resumed)
    told = f"{name} resumed with {' '.join(words)}: exit code {code}: {said[-300:]!r}"
    allowed = key in RESUMABLE or (key in CHOSEN and any(word.endswith("=null") for word in words))
    if allowed:
        check(code == 0, told)
        check(
            read_weights(folder) == read_weights(case.base / f"{name}-{END}"),
            f"other bits at the end: {told}",
        )
        return 1
    check(code == 2, told)
    check("differs from the checkpoint" in said and key in said, f"does not name {key}: {told}")
    check(sum("error:" in line for line in said.splitlines()) == 1, f"more than a line: {told}")
    check(read_files(folder) == before, f"the run folder changed: {told}")
    return 1


def resume_plain(
    case: Case, *expected: str, name: str = "plain", prepares: Callable[[Path], object] = str
) -> None:
    """Resume a run after something happened to it; it must say a line with the words, and end with the same bits."""
    folder = case.folder / "run"
    if not folder.exists():
        shutil.copytree(case.base / f"{name}-{BEGUN}", folder)
    prepares(folder)
    code, said = train(folder, case.base, name, f"train.steps={END}")
    check(code == 0, f"exit code {code}: {said[-300:]!r}")
    check(not expected or any(all(w in line for w in expected) for line in said.splitlines()),
          f"no line with {expected}: {said[-600:]!r}")  # fmt: skip
    check(read_weights(folder) == read_weights(case.base / f"{name}-{END}"), "other bits at the end")


def change_torch_version(case: Case) -> None:
    was = torch.__version__
    torch.__version__ = "9.9.9+fault"  # type: ignore[assignment]
    resume_plain(case, f"torch was {was}, is 9.9.9+fault", "bits may differ")


def change_cpu(case: Case) -> None:
    was = torch.backends.cpu.get_cpu_capability()
    torch.backends.cpu.get_cpu_capability = lambda: "FAULT"
    resume_plain(case, f"cpu was {was}, is FAULT", "bits may differ")


def change_bfloat16_support(case: Case) -> None:
    was = bool(torch.cpu._is_amx_tile_supported())
    torch.cpu._is_amx_tile_supported = lambda: not was
    resume_plain(case, f"cpu_amx was {was}, is {not was}", "bits may differ")


def change_threads(case: Case) -> None:
    """More threads may round otherwise, so only the line is asked for."""
    folder = case.folder / "run"
    shutil.copytree(case.base / f"plain-{BEGUN}", folder)
    torch.set_num_threads(2)
    code, said = train(folder, case.base, "plain", f"train.steps={END}")
    check(code == 0 and "threads was 1, is 2: bits may differ" in said, f"exit code {code}: {said[-400:]!r}")


def change_device(case: Case) -> None:
    """A checkpoint of another kind of device is refused, whatever the recipe names."""
    from hmoe.train import environment

    folder = case.folder / "run"
    shutil.copytree(case.base / f"plain-{BEGUN}", folder)
    environment.describe_environment = lambda *_: {"device": "fault"}
    code, said = train(folder, case.base, "plain", f"train.steps={END}")
    check(
        code == 2 and "train.device = cpu" in said and "another run folder" in said,
        f"{code}: {said[-300:]!r}",
    )


def lose_config(case: Case) -> None:
    resume_plain(case, "config.yaml is lost or damaged", prepares=lambda run: (run / "config.yaml").unlink())


def damage_config(case: Case) -> None:
    resume_plain(case, "config.yaml is lost or damaged",
                 prepares=lambda run: (run / "config.yaml").write_bytes(b"\xff: ["))  # fmt: skip


def edit_heads(run: Path) -> None:
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("heads: 2", "heads: 4", 1))


def edit_config(case: Case) -> None:
    resume_plain(case, "model.heads: differs", "written again", prepares=edit_heads)


def edit_config_that_is_the_recipe(case: Case) -> None:
    folder = case.folder / "run"
    shutil.copytree(case.base / f"plain-{BEGUN}", folder)
    edit_heads(folder)
    before = read_files(folder)
    code, said = train(folder, case.base, "plain", f"train.steps={END}", recipe=str(folder))
    check(code == 2 and "model.heads: differs" in said, f"exit code {code}: {said[-300:]!r}")
    check(read_files(folder) == before, "the run folder changed")


def lose_tokenizer(case: Case) -> None:
    resume_plain(case, "tokenizer.json: is lost or damaged, written again", name="bpe",
                 prepares=lambda run: (run / "tokenizer.json").unlink())  # fmt: skip


def damage_tokenizer(case: Case) -> None:
    resume_plain(case, "tokenizer.json: is lost or damaged, written again", name="bpe",
                 prepares=lambda run: (run / "tokenizer.json").write_text("{}"))  # fmt: skip


def resume_elsewhere(case: Case) -> None:
    """The run folder lies elsewhere, under another name."""
    shutil.copytree(case.base / f"prepared-{BEGUN}", case.folder / "moved" / "other name")
    folder = case.folder / "moved" / "other name"
    code, said = train(folder, case.base, "prepared", f"train.steps={END}", recipe=str(folder))
    check(code == 0, f"exit code {code}: {said[-300:]!r}")
    check(read_weights(folder) == read_weights(case.base / f"prepared-{END}"), "other bits at the end")


def refuse_data(case: Case, path: str, code: int, *words: str) -> None:
    folder = case.folder / "run"
    shutil.copytree(case.base / f"prepared-{BEGUN}", folder)
    before = read_files(folder)
    have, said = train(folder, case.base, "prepared", f"train.steps={END}", f"data.path={path}")
    check(have == code and all(w in said for w in words), f"exit code {have}: {said[-300:]!r}")
    check(read_files(folder) == before, "the run folder changed")


def take_other_data(case: Case) -> None:
    refuse_data(case, f"{case.base}/data-other", 3, "the data changed since the run was saved")


def lose_data(case: Case) -> None:
    refuse_data(case, f"{case.base}/nowhere", 3, "nowhere")


OTHERS: tuple[Callable[[Case], None], ...] = (
    change_torch_version, change_cpu, change_bfloat16_support, change_threads, change_device, lose_config,
    damage_config,
    edit_config, edit_config_that_is_the_recipe, lose_tokenizer, damage_tokenizer, resume_elsewhere, take_other_data,
    lose_data,
)  # fmt: skip
TESTS = (
    FaultTest(
        "R15",
        "a run resumed with another recipe key, torch, CPU, number of threads, device, config.yaml, tokenizer or data",
        "the same bits where docs allow it, else exit code 2 or 3 that names the key, or a line that tells",
        "differences",
        run_drift,
        prepare=prepare_runs,
        drawn=False,
    ),
)
