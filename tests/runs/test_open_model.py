"""`hmoe.open` gives the model and the tokenizer of a run folder and of a Hugging Face folder."""

import ast
import builtins
import inspect
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import hmoe
from hmoe.hub.export import ExportOptions, export_opened_model
from hmoe.runs.open_model import open_model
from tests.train.helpers import run

MINI = ["model.layers=1", "model.dim=16", "train.eval_every=0"]
SOURCE = Path(hmoe.__file__).parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder with two checkpoints, and its export."""
    folder = tmp_path_factory.mktemp("open")
    run(folder / "run", "train.steps=2", "train.save_every=1", *MINI)
    export_opened_model(
        open_model(folder / "run", print), folder / "run", folder / "exported", ExportOptions()
    )
    return {"run": folder / "run", "exported": folder / "exported"}


@pytest.mark.parametrize("kind", ["run", "exported"])
def test_a_folder_of_either_kind_is_opened(folders: dict[str, Path], kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, tokenizer = hmoe.open(str(folders[kind]))
    expected = open_model(folders["run"], print)
    assert not model.training
    assert isinstance(model, type(expected.model))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected.model.get_parameter(name))
    assert tokenizer.encode(["She was"]) == expected.tokenizer.encode(["She was"])
    logits_BLV, routings = model(torch.tensor(tokenizer.encode(["She was"])))
    assert logits_BLV.shape == (1, 7, 300)
    assert len(routings) == 1


def test_another_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(hmoe.ConfigError) as caught:
        hmoe.open(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: not a run folder (no config.yaml) and not a Hugging Face folder (no config.json); "
        "`hmoe train RECIPE` makes a run folder"
    )
    with pytest.raises(
        hmoe.ConfigError, match="none: no such folder; must be a run folder or a Hugging Face"
    ):
        hmoe.open(tmp_path / "none")


def test_faults_that_leave_a_model_are_warnings_at_the_callers_line(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["run"], tmp_path / "run"))
    (folder / "checkpoints" / "step-00000002" / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="step-00000002.*falling back") as caught:
        model, _ = hmoe.open(folder)
    assert [warning.filename for warning in caught] == [__file__]
    older = open_model(folder, print)
    assert older.step == 1
    assert all(map(torch.equal, model.parameters(), older.model.parameters()))
    shutil.rmtree(folder / "checkpoints" / "step-00000001")
    with pytest.raises(hmoe.CheckpointError, match="no checkpoint can be trusted"):
        hmoe.open(folder)


@pytest.mark.parametrize("kind", ["run", "exported"])
def test_transformers_is_not_needed(folders: dict[str, Path], kind: str) -> None:
    code = f"""
import sys
sys.modules["transformers"] = None
import hmoe
hmoe.open({str(folders[kind])!r})
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_builtin_is_not_hidden_within_the_package() -> None:
    assert hmoe.open is not builtins.open
    assert list(inspect.signature(hmoe.open).parameters) == ["path"]
    assert "open" not in vars(hmoe)
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ImportFrom)
                and file != SOURCE / "__init__.py"
            ):
                names = (
                    [a.asname or a.name for a in node.names]
                    if isinstance(node, ast.ImportFrom)
                    else [node.name]
                )
                assert "open" not in names, file
