"""How many examples per second does our lm-eval model score, against the harness's `hf` model of equal weights?

The `hf` model gets the batch size at which it is fastest, in each of two forms: the transformers class of
hmoe, and an ordinary Mixtral (`hmoe export --format mixtral`). Then rounds of ours and of the faster form
alternate; the ratio is the median over rounds. Requests are built before the clock starts; encoding, batching
and scoring are on it.

    python benchmarks/evaluate.py RUN BENCHMARKS [--task arc_easy --task hellaswag] [--limit 200] [--rounds 5]
"""

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

import hmoe.hub
from hmoe.bench.measure import describe_machine, save_result
from hmoe.evaluate.language_model import LanguageModel
from hmoe.evaluate.tasks import select_tasks, silence_harness
from hmoe.hub.export import ExportOptions, export_opened_model
from hmoe.runs.open_model import open_model

BATCHES = (1, 2, 4, 8, 16, 32, 64)
Answers = list[tuple[float, bool]]


def build_requests(name: str, benchmarks: Path, limit: int) -> list[Any]:
    with silence_harness():
        (task,) = select_tasks([name], benchmarks).load(name)["tasks"].values()
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests(limit=limit, rank=0, world_size=1)
    return list(task.instances)


def score_requests(model: Any, requests: list[Any]) -> tuple[float, Answers]:
    """Return examples per second and the answers."""
    start = time.perf_counter()
    answers = model.loglikelihood(requests, disable_tqdm=True)
    return len({request.doc_id for request in requests}) / (time.perf_counter() - start), answers


def find_fastest(
    models: dict[str, Any], tokenizers: dict[str, Any], length: int, requests: list[Any]
) -> tuple[str, int]:
    """Return form and batch size of the fastest `hf` model; each is measured warm."""
    rates: dict[tuple[str, int], float] = {}
    for name, model in models.items():
        for size in BATCHES:
            stock = HFLM(model, tokenizer=tokenizers[name], device="cpu", batch_size=size, max_length=length)
            score_requests(stock, requests[: 4 * size])
            rates[name, size] = score_requests(stock, requests)[0]
            print(f"  hf, {name}, batch size {size}: {rates[name, size]:.1f} examples/s", flush=True)
    return max(rates, key=lambda key: rates[key])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("benchmarks", type=Path)
    parser.add_argument("--task", action="append")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument(
        "--window", type=int, default=320, help="the hf model refuses answers longer than this"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    opened = open_model(args.run, print)
    models, tokenizers = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for form in ("hmoe", "mixtral"):
            try:
                export_opened_model(opened, args.run, Path(folder) / form, ExportOptions(form))
            except hmoe.ConfigError as error:  # a top-p model is no Mixtral
                print(f"without {form}: {error}")
                continue
            models[form] = AutoModelForCausalLM.from_pretrained(Path(folder) / form).eval()
            tokenizers[form] = AutoTokenizer.from_pretrained(Path(folder) / form)
    tasks = {}
    for name in args.task or ["arc_easy", "hellaswag", "piqa", "boolq", "social_iqa", "winogrande"]:
        requests = build_requests(name, args.benchmarks, args.limit)
        form, size = find_fastest(models, tokenizers, args.window, requests)
        stock = HFLM(
            models[form], tokenizer=tokenizers[form], device="cpu", batch_size=size, max_length=args.window
        )
        ours = LanguageModel(opened.model, opened.tokenizer, args.window, begin=opened.begin)
        rows = []
        for index in range(args.rounds + 1):  # the first is for warmth
            pair = {
                id(lm): score_requests(lm, requests) for lm in ((ours, stock) if index % 2 else (stock, ours))
            }
            if index:
                rows.append((pair[id(ours)][0], pair[id(stock)][0]))
        difference = max(abs(a[0] - b[0]) for a, b in zip(pair[id(ours)][1], pair[id(stock)][1], strict=True))
        tasks[name] = {
            "examples_per_second": median(mine for mine, _ in rows),
            "hf_examples_per_second": median(hf for _, hf in rows), "hf_form": form, "hf_batch_size": size,
            "ratio": median(mine / hf for mine, hf in rows), "largest_difference_nats": difference,
            "rounds_ours_hf": rows,
        }  # fmt: skip
        row = tasks[name]
        print(f"{name:12s} ours {row['examples_per_second']:.1f}, hf {row['hf_examples_per_second']:.1f} "
              f"({form}, {size}): ratio {row['ratio']:.2f}", flush=True)  # fmt: skip
    result = {
        "model": opened.name,
        "limit": args.limit,
        "window": args.window,
        "machine": describe_machine("cpu"),
        "tasks": tasks,
    }
    print(f"written to {save_result(args.out, f'evaluate-{opened.name}', result)}")


if __name__ == "__main__":
    main()
