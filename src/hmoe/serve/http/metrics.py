"""Counts and times of a server, in the text format that Prometheus reads."""

from collections import Counter
from collections.abc import Iterable

from hmoe.parallel.offload import ExpertOffload
from hmoe.serve.engine.engine import Engine

_BUCKETS_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Histogram:
    """Counts how many values were at most each bound."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self._counts, self._sum = [0] * (len(_BUCKETS_SECONDS) + 1), 0.0

    def observe(self, seconds: float) -> None:
        """Count one value in the bucket that it belongs to."""
        bucket = sum(seconds > bound for bound in _BUCKETS_SECONDS)
        self._counts[bucket] += 1
        self._sum += seconds

    def lines(self) -> Iterable[str]:
        """Yield the histogram's lines of the text format."""
        yield f"# HELP {self._name} {self._text}"
        yield f"# TYPE {self._name} histogram"
        total = 0
        for bound, count in zip((*_BUCKETS_SECONDS, "+Inf"), self._counts, strict=True):
            total += count  # buckets are cumulative: each holds those of the smaller bounds too
            yield f'{self._name}_bucket{{le="{bound}"}} {total}'
        yield f"{self._name}_sum {self._sum:.6f}"
        yield f"{self._name}_count {total}"


class Metrics:
    """Counts requests and their times, next to the counts of the engine; used from one thread."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._request_seconds = Histogram(
            "hmoe_request_seconds", "From the request's header to its last byte."
        )
        self.first_token_seconds = Histogram(
            "hmoe_first_text_seconds", "From the request's header to its first text."
        )

    def count_request(self, label: str, status: int, seconds: float) -> None:
        """Count a request that has ended.

        Args:
            label: of its route.
            status: of HTTP.
            seconds: from its header to its last byte.
        """
        self._requests[label, status] += 1
        self._request_seconds.observe(seconds)

    def page(self, engine: Engine, connections: int, offload: ExpertOffload | None = None) -> str:
        """Return everything as one text, what experts that lie elsewhere did, too."""
        load, total = engine.load(), engine.total
        lines = ["# HELP hmoe_requests_total Requests answered.", "# TYPE hmoe_requests_total counter"]
        for (route, status), count in sorted(self._requests.items()):
            lines.append(f'hmoe_requests_total{{route="{route}",status="{status}"}} {count}')
        values = {
            ("hmoe_open_requests", "gauge", "Requests in the engine."): load["open"],
            ("hmoe_waiting_sequences", "gauge", "Sequences that wait for a slot."): load["waiting"],
            ("hmoe_running_sequences", "gauge", "Sequences in the batch."): load["running"],
            ("hmoe_open_connections", "gauge", "TCP connections."): connections,
            ("hmoe_prompt_tokens_total", "counter", "Prompt tokens of ended sequences."): total.prompt_tokens,
            ("hmoe_generated_tokens_total", "counter", "Tokens drawn by ended sequences."): total.new_tokens,
            ("hmoe_model_tokens_total", "counter", "Tokens that went through the model."): total.rows,
            ("hmoe_activated_units_total", "counter", "Hidden units activated, all MoE layers."): total.units,
            ("hmoe_activated_experts_total", "counter", "Experts activated, all MoE layers."): total.experts,
            ("hmoe_steps_total", "counter", "Passes of the model."): engine.steps,
            ("hmoe_failures_total", "counter", "Sequences the model failed on."): engine.failures,
        }
        if offload is not None:
            values |= _list_offload(offload)
        for (name, kind, text), value in values.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {value:.10g}"]
        lines += [*self._request_seconds.lines(), *self.first_token_seconds.lines()]
        return "\n".join(lines) + "\n"


def _list_offload(offload: ExpertOffload) -> dict[tuple[str, str, str], float]:
    """Return the counts of experts that lie elsewhere, by name, kind and text."""
    counts, guesses = offload.cache.counts, offload.next_experts
    values: dict[tuple[str, str, str], float] = {
        ("hmoe_expert_hits_total", "counter", "Uses of an expert that was in memory in time."): counts.hits,
        ("hmoe_expert_misses_total", "counter", "Uses of an expert that was waited for."): counts.misses,
        ("hmoe_expert_wait_seconds_total", "counter", "Waited for experts."): counts.wait_seconds,
        (
            "hmoe_expert_read_bytes_total",
            "counter",
            "Bytes of experts that were fetched.",
        ): offload.storage.moved.read_bytes,
    }
    if guesses is not None:
        values |= {
            (
                "hmoe_expert_guesses_total",
                "counter",
                "Experts that a layer early were expected.",
            ): guesses.num_guessed,
            (
                "hmoe_expert_right_guesses_total",
                "counter",
                "Of these, those that were needed.",
            ): guesses.num_right,
        }
    return values
