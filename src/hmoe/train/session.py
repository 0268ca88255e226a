"""Everything a training run holds while it runs: opened, checked, resumed, and saved again."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from hmoe.config.run import RunConfig
from hmoe.data.batches import Batches
from hmoe.data.open import open_data
from hmoe.data.shards import PACKINGS, WITHIN, Index
from hmoe.data.tokenizer import Tokenizer
from hmoe.data.tokenizer_folder import load_data_tokenizer, write_tokenizer
from hmoe.errors import CheckpointError, ConfigError, DataError
from hmoe.model.transformer import Transformer
from hmoe.parallel.offload import ExpertOffload
from hmoe.runs.begin_tokens import read_recorded_begin
from hmoe.runs.config_binding import dump_bound_config
from hmoe.runs.run_folder import RunFolder
from hmoe.runs.side_files import TOKENIZER_SIDE, hash_side_files
from hmoe.storage import hash_file
from hmoe.train.alike import check_alike
from hmoe.train.console import Console
from hmoe.train.device_fit import find_device, fit_config
from hmoe.train.environment import compare_environment, describe_environment
from hmoe.train.expert_alarm import ExpertAlarm
from hmoe.train.kept_state import Restored, Saver, make_saver, restore_run
from hmoe.train.optimizer import build_optimizer
from hmoe.train.placements import find_placements
from hmoe.train.processes import ONE_PROCESS, Processes
from hmoe.train.records import NoRecords, Records
from hmoe.train.run_model import open_run_model
from hmoe.train.stop import StopRequest

if TYPE_CHECKING:
    from hmoe.train.expert_mover import ExpertMover


@dataclass
class RunCounts:
    """Where a run stands, in exact integers.

    Attributes:
        step: training steps taken, skipped ones included.
        tokens: trained on.
        flops: training FLOPs of the experts that were really activated.
        skipped: steps whose loss or gradients were not finite.
        bad_in_a_row: of these, the ones right before now.
    """

    step: int = 0
    tokens: int = 0
    flops: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0


@dataclass
class Session:
    """A run in memory.

    Attributes:
        config: with all that it left unset chosen.
        path: the run folder.
        device: its kind, cpu or cuda.
        index: of the data.
        side_files: SHA-256 of what lay next to the tokenizer when the run began.
        processes: that train it together; the first one alone writes logs and prints.
        saver: publishes checkpoints.
        mover: moves experts between processes; None where all live in every one.
        offload: of experts that lie outside of the device's memory; None where none do.
        seconds: training time on the clock of the first process, as all know it since the last `agree`.
        wants_checkpoint: whether any process was asked to save and go on.

    Weights, moments, `counts` and the state of `watch` are what a checkpoint holds.
    """

    config: RunConfig
    path: Path
    device: str
    index: Index
    tokenizer: Tokenizer
    batches: Batches
    model: Transformer
    optimizer: torch.optim.Optimizer
    counts: RunCounts
    watch: ExpertAlarm
    records: Records | NoRecords
    side_files: dict[str, str]
    processes: Processes
    saver: Saver
    mover: "ExpertMover | None"
    offload: ExpertOffload | None = None
    seconds: float = 0.0
    wants_checkpoint: bool = False

    def agree(self, stop: StopRequest) -> bool:
        """Return whether any process is to stop, or cannot write; all have the same answer, wish and clock."""
        stops, saves, self.seconds = self.processes.agree(
            bool(stop) or self.saver.failed, stop.take_checkpoint_wish(), self.records.seconds
        )
        self.wants_checkpoint |= saves
        return stops

    def save(self) -> int:
        """Publish a checkpoint of this step, and return the step."""
        self.wants_checkpoint = False
        # The logs first: a checkpoint promises all rows up to its step.
        with self.processes.together():
            self.records.flush(self.counts.step)
        state: dict[str, Any] = {
            "counts": vars(self.counts),
            "watch": self.watch.state(),
            "data": self.index.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "begin": list(self.index.begin),
            "environment": describe_environment(self.device, self.processes),
            "packing": self.batches.packing,
            "config": dump_bound_config(self.config),
            "side_files": self.side_files,
        }
        with self.look_at_all():
            self.saver.save(self.counts.step, state)
        return self.counts.step

    def look_at_all(self) -> AbstractContextManager[None]:
        """Return a context in which the parameters are those of this step, also of experts that lie elsewhere."""
        return nullcontext() if self.offload is None else self.offload.look_at_all()

    def progress(self) -> float:
        """Return the share of the budget that is used up; 1 ends the run."""
        return measure_progress(self.config, self.counts, self.seconds)


def measure_progress(config: RunConfig, counts: RunCounts, seconds: float) -> float:
    """Return the share of the budget that is used up, of several the largest; 1 ends the run."""
    return config.train.measure_progress(counts.step, counts.tokens, counts.flops, seconds)


def open_session(
    config: RunConfig,
    folder: RunFolder,
    restored: Restored | None,
    console: Console,
    processes: Processes = ONE_PROCESS,
) -> Session:
    """Open the data, build the model, and continue from the restored checkpoint if there is one.

    Raises:
        DataError, CheckpointError, ConfigError: naming what cannot be used.
    """
    state = None if restored is None else restored.state
    if config.parallel.num_threads:
        torch.set_num_threads(config.parallel.num_threads)
    with processes.together():
        place = find_device(config, processes)
        config, device = fit_config(config, place, console, processes), place.kind
        if state is not None:
            compare_environment(state, config, device, console.warn, processes)
        index, tokenizer = _open_data(config, state, console, processes)
        if state is not None and state["data"] is None:
            _check_begin(state, index, tokenizer)
        if processes.rank == 0:
            _keep_tokenizer(folder.path, tokenizer, state is not None, console)
        batches = Batches(index, config.data, config.seed, _packing(restored))
    check_alike(config, device, index.fingerprint, processes, console.warn)
    step = -1 if restored is None else restored.step
    placements, frequencies_ZE = find_placements(folder.path, step, config, processes)
    model, offload = open_run_model(config, folder.path, device, processes, placements, console)
    optimizer = build_optimizer(model, config.optim, processes.exact)
    counts, watch = RunCounts(), _make_watch(config, None)
    if restored is not None:
        restore_run(restored, model, optimizer, processes, offload)
        counts, watch = RunCounts(**restored.state["counts"]), _make_watch(config, restored.state["watch"])
        console.note(f"resuming from step {counts.step}")
    with processes.together():
        records = _open_records(folder.path, counts.step, config, console, processes)
        side_files = _side_files(folder.path) if state is None else state.get("side_files", {})
    saver = make_saver(folder.path, config.train.keep, model, optimizer, processes, copies=offload is None)
    mover = make_mover(config, folder.path, model, optimizer, processes)
    if mover is not None:
        mover.begin(counts.step, frequencies_ZE)
    return Session(config, folder.path, device, index, tokenizer, batches, model, optimizer, counts, watch, records,
                   side_files, processes, saver, mover, offload)  # fmt: skip


def make_mover(
    config: RunConfig,
    run: Path,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    processes: Processes,
) -> "ExpertMover | None":
    """Return what moves the experts of a run, None where all live in every process."""
    if processes.size == 1 or not config.parallel.places_experts:
        return None
    from hmoe.train.expert_mover import ExpertMover  # noqa: PLC0415 - the engine is slow to import

    return ExpertMover(config, run, model, optimizer, cast(Any, processes))


def _make_watch(config: RunConfig, state: dict[str, Any] | None) -> ExpertAlarm:
    moe = config.model.moe
    shape = (len(config.model.moe_layers), len(moe.routed_widths) if moe else 0)
    return ExpertAlarm(shape, config.train.dead_after, state)


def _open_records(
    run: Path, step: int, config: RunConfig, console: Console, processes: Processes
) -> Records | NoRecords:
    return Records(run, step, config.train.log_every, console.warn) if processes.rank == 0 else NoRecords()


def _open_data(
    config: RunConfig, state: dict[str, Any] | None, console: Console, processes: Processes
) -> tuple[Index, Tokenizer]:
    if config.data.path == "corpus":
        console.note(f"data: the embedded corpus, tokenizer {config.corpus_tokenizer}")
    index = open_data(config) if state is None else open_data(config, state["data"], state["tokenizer"])
    if index.vocab_size > config.model.vocab:
        raise ConfigError(
            f"model.vocab = {config.model.vocab}: the data's tokenizer has {index.vocab_size} tokens; "
            f"nearest is {index.vocab_size}"
        )
    if config.data.verify:
        index.verify((processes.rank, processes.size))
    return index, load_data_tokenizer(index)


def _keep_tokenizer(run: Path, tokenizer: Tokenizer, resumed: bool, console: Console) -> None:
    """Write the tokenizer into the run folder; say so where a run that goes on has lost its own."""
    file = run / tokenizer.file_name
    if resumed and tokenizer.file_name and not (file.is_file() and hash_file(file) == tokenizer.fingerprint):
        console.warn(f"{file}: is lost or damaged, written again from the data")
    write_tokenizer(run, tokenizer)


def _side_files(run: Path) -> dict[str, str]:
    """Return what binds a new run next to its tokenizer: the file that names its separator."""
    return {name: digest for name, digest in hash_side_files(run).items() if name == TOKENIZER_SIDE}


def _check_begin(state: dict[str, Any], index: Index, tokenizer: Tokenizer) -> None:
    """Raise DataError if documents begin otherwise than the texts of a model whose weights were given."""
    begin = read_recorded_begin(state, tokenizer)
    if begin != index.begin:
        raise DataError(
            f"{index.folder}: documents begin with {_names(index.begin, tokenizer)}, texts of the model with "
            f"{_names(begin, tokenizer)}; prepare again into another folder, with the run folder as tokenizer"
        )


def _names(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    texts = {token: text for text, token in tokenizer.specials.items()}
    return " ".join(texts.get(token, f"token {token}") for token in tokens) or "no token of their own"


def _packing(restored: Restored | None) -> str | None:
    """Return how a resumed run cuts its data into sequences; None: as new runs do."""
    if restored is None or restored.state["data"] is None:
        return None
    # Runs of earlier versions knew one way only, and record none.
    packing: str = restored.state.get("packing", WITHIN)
    if packing not in PACKINGS:
        raise CheckpointError(
            f"checkpoint of step {restored.step}: packing = {packing!r}, this version knows {', '.join(PACKINGS)}"
        )
    return packing
