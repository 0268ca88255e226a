"""Everything a training run holds while it runs: opened, checked, resumed, and saved again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hmoe.checkpoint.state import Checkpoint, capture_state, restore_state
from hmoe.checkpoint.store import save_checkpoint
from hmoe.config.memory import Device, choose_unset, count_memory, describe_choice, read_host
from hmoe.config.run import RunConfig
from hmoe.data.batches import Batches
from hmoe.data.open import open_data
from hmoe.data.shards import PACKINGS, WITHIN, Index
from hmoe.data.tokenizer import Tokenizer
from hmoe.data.tokenizer_folder import load_data_tokenizer, write_tokenizer
from hmoe.errors import CheckpointError, ConfigError, DataError
from hmoe.model.transformer import Transformer, build_transformer, set_check_finite
from hmoe.runs.begin_tokens import read_recorded_begin
from hmoe.runs.config_binding import dump_bound_config
from hmoe.runs.run_folder import RunFolder
from hmoe.runs.side_files import TOKENIZER_SIDE, hash_side_files
from hmoe.storage import hash_file
from hmoe.train.compiled import compile_blocks
from hmoe.train.console import Console
from hmoe.train.environment import compare_environment, describe_environment
from hmoe.train.expert_alarm import ExpertAlarm
from hmoe.train.optimizer import build_optimizer
from hmoe.train.records import Records
from hmoe.units import format_bytes


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
    records: Records
    side_files: dict[str, str]

    def save(self) -> int:
        """Publish a checkpoint of this step, and return the step."""
        # The logs first: a checkpoint promises all rows up to its step.
        self.records.flush(self.counts.step)
        state: dict[str, Any] = {
            "counts": vars(self.counts),
            "watch": self.watch.state(),
            "data": self.index.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "begin": list(self.index.begin),
            "environment": describe_environment(self.device),
            "packing": self.batches.packing,
            "config": dump_bound_config(self.config),
            "side_files": self.side_files,
        }
        captured = capture_state(self.counts.step, self.model, self.optimizer, state)
        save_checkpoint(self.path, captured, self.config.train.keep)
        return self.counts.step

    def progress(self) -> float:
        """Return the share of the budget that is used up; 1 ends the run."""
        return measure_progress(self.config, self.counts, self.records.seconds)


def measure_progress(config: RunConfig, counts: RunCounts, seconds: float) -> float:
    """Return the share of the budget that is used up, of several the largest; 1 ends the run."""
    return config.train.measure_progress(counts.step, counts.tokens, counts.flops, seconds)


def open_session(
    config: RunConfig, folder: RunFolder, restored: Checkpoint | None, console: Console
) -> Session:
    """Open the data, build the model, and continue from the restored checkpoint if there is one.

    Raises:
        DataError, CheckpointError, ConfigError: naming what cannot be used.
    """
    state = None if restored is None else restored.state
    place = _find_device(config)
    config, device = _fit_config(config, place, console), place.kind
    if state is not None:
        compare_environment(state, config, device, console.warn)
    index, tokenizer = _open_data(config, state, console)
    if state is not None and state["data"] is None:
        _check_begin(state, index, tokenizer)
    _keep_tokenizer(folder.path, tokenizer, state is not None, console)
    batches = Batches(index, config.data, config.seed, _packing(restored))
    dtype = torch.float64 if config.train.precision == "float64" else torch.float32
    model = build_transformer(config.model, config.seed, dtype, device)
    model.activation_checkpointing = config.train.recomputes_blocks
    if config.train.compile:
        compile_blocks(model)
    set_check_finite(model, False)  # train_step tests loss and gradients
    optimizer = build_optimizer(model, config.optim)
    counts, watch_state = RunCounts(), None
    if restored is not None:
        restore_state(restored, model, optimizer)
        counts, watch_state = RunCounts(**restored.state["counts"]), restored.state["watch"]
        console.note(f"resuming from step {counts.step}")
    moe = config.model.moe
    shape = (len(config.model.moe_layers), len(moe.routed_widths) if moe else 0)
    watch = ExpertAlarm(shape, config.train.dead_after, watch_state)
    records = Records(folder.path, counts.step, config.train.log_every, console.warn)
    side_files = _side_files(folder.path) if state is None else state.get("side_files", {})
    return Session(config, folder.path, device, index, tokenizer, batches, model, optimizer, counts, watch, records,
                   side_files)  # fmt: skip


def _open_data(config: RunConfig, state: dict[str, Any] | None, console: Console) -> tuple[Index, Tokenizer]:
    if config.data.path == "corpus":
        console.note(f"data: the embedded corpus, tokenizer {config.corpus_tokenizer}")
    index = open_data(config) if state is None else open_data(config, state["data"], state["tokenizer"])
    if index.vocab_size > config.model.vocab:
        raise ConfigError(
            f"model.vocab = {config.model.vocab}: the data's tokenizer has {index.vocab_size} tokens; "
            f"nearest is {index.vocab_size}"
        )
    if config.data.verify:
        index.verify()
    return index, load_data_tokenizer(index)


def _find_device(config: RunConfig) -> Device:
    wanted = config.train.device
    kind = wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device = cuda: this PyTorch sees no CUDA device; use cpu or auto")
    # All of its memory, not what is free now: equal devices choose equally.
    return Device(kind, torch.cuda.mem_get_info()[1]) if kind == "cuda" else read_host()


def _fit_config(config: RunConfig, device: Device, console: Console) -> RunConfig:
    """Return the config with what it leaves unset chosen for the device, and say what was chosen.

    Raises:
        ConfigError: if the device has too little memory.
    """
    chosen = choose_unset(config, device)
    needed = count_memory(chosen, device.kind)
    if needed > device.memory_bytes:
        ways = ["raise data.micro_batches"] * (
            config.data.micro_batches not in (None, config.data.batch_sequences)
        )
        ways += ["set train.activation_checkpointing"] * (config.train.activation_checkpointing is False)
        advice = " or ".join(
            [", ".join(["lower model sizes", *ways][:-1]), ways[-1]] if ways else ["lower model sizes"]
        )
        raise ConfigError(
            f"the run needs about {format_bytes(needed)} on {device.kind}, "
            f"which has {format_bytes(device.memory_bytes)}; see `hmoe plan`, then {advice}"
        )
    # On a CPU, one micro-batch without recomputation needs no word: it is what everybody expects.
    plain = (config.data.micro_batches or 1, bool(config.train.activation_checkpointing))
    usual = (
        device.kind == "cpu" and (chosen.data.micro_batches, chosen.train.activation_checkpointing) == plain
    )
    if chosen != config and not usual:
        console.note(describe_choice(chosen, device))
    return chosen


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


def _packing(restored: Checkpoint | None) -> str | None:
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
