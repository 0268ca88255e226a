"""Training, on one page: resume or begin, step until the budget is reached, evaluate, save, say so."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hmoe import checkpoint
from hmoe.config import RunConfig
from hmoe.count import memory_by_part
from hmoe.data.batches import Batches, bytes_per_token, validation
from hmoe.data.corpus import open_corpus
from hmoe.data.shards import Index, open_index
from hmoe.data.tokenizer import Tokenizer, load
from hmoe.errors import ConfigError, DataError, NonFiniteError
from hmoe.model.generate import Sampling, generate
from hmoe.model.likelihood import mean_nll
from hmoe.model.transformer import Transformer, build, set_check_finite
from hmoe.train.console import Console
from hmoe.train.optim import adamw
from hmoe.train.records import Records
from hmoe.train.run_folder import RunFolder
from hmoe.train.step import StepRecord, train_step
from hmoe.train.stop import STOP
from hmoe.train.watch import Watch

MAX_BAD_STEPS = 5  # non-finite steps in a row that end the run


@dataclass
class State:
    """Where a run stands: exact counts, all of it in every checkpoint."""

    step: int = 0
    tokens: int = 0
    flops: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0


def train(config: RunConfig, folder: RunFolder, console: Console) -> None:
    """Train until a budget is reached or a signal asks to stop; the folder then holds a checkpoint of the last step.

    Raises:
        NonFiniteError: after MAX_BAD_STEPS steps in a row whose loss or gradients were not finite.
        DataError, CheckpointError, ConfigError: naming what cannot be used.
    """
    index, tokenizer = _open_data(config, folder, console)
    device = _device(config)
    dtype = torch.float64 if config.train.precision == "float64" else torch.float32
    batches = Batches(index, config.data, config.seed)
    model = build(config.model, config.seed, dtype, device)
    model.activation_checkpointing = config.train.activation_checkpointing
    set_check_finite(model, False)  # train_step tests loss and gradients
    optimizer = adamw(model, config.optim)
    restored = checkpoint.latest(folder.path, quarantine=True, say=console.warn)
    state, watch = _begin(config, index, restored, console)
    if restored is not None:
        checkpoint.restore(restored, model, optimizer)
    records = Records(folder.path, state.step)
    if _finished(config, state, records.seconds):
        console.note(f"finished already: step {state.step}, {state.tokens} tokens; a larger budget continues it")
        return
    saved = state.step if restored is not None else -1
    console.start(config, device, state)
    while not (STOP or _finished(config, state, records.seconds)):
        record = train_step(model, optimizer, batches[state.step], config, state.step)
        warnings = _account(state, record, watch, config)
        records.tick(record.tokens)
        done = _finished(config, state, records.seconds)
        row = _row(state, record, warnings, config)
        if done or _due(state.step, config.train.eval_every):
            row |= _validate(model, index, config)
        if _due(state.step, config.train.sample_every):
            row["sample"] = _sample(model, tokenizer, config, state.step)
        if done or _due(state.step, config.train.log_every) or warnings or "validation_loss" in row or "sample" in row:
            records.write(row)
        console.row(row, records, _progress(config, state, records.seconds))
        if state.bad_in_a_row >= MAX_BAD_STEPS:
            raise NonFiniteError(
                f"step {state.step}: loss or gradients were NaN or infinite {MAX_BAD_STEPS} steps in a row; the weights of "
                f"step {state.step - MAX_BAD_STEPS} were kept; lower optim.lr (now {config.optim.lr}) or look at the data"
            )
        if done or _due(state.step, config.train.save_every):
            saved = _save(folder.path, model, optimizer, state, watch, index, config, records)
    if saved != state.step and state.bad_in_a_row == 0:
        _save(folder.path, model, optimizer, state, watch, index, config, records)
    console.end(state, folder.path, STOP.signal_name)


def _open_data(config: RunConfig, folder: RunFolder, console: Console) -> tuple[Index, Tokenizer]:
    if config.data.path == "corpus":
        name = config.data.tokenizer or f"bpe:{config.model.vocab}"
        console.note(f"data: the embedded corpus, tokenizer {name}")
        index = open_corpus(name)
    else:
        index = open_index(Path(config.data.path))
    if index.vocab_size > config.model.vocab:
        raise ConfigError(
            f"model.vocab = {config.model.vocab}: the data's tokenizer has {index.vocab_size} tokens; nearest is {index.vocab_size}"
        )
    if config.data.verify:
        index.verify()
    tokenizer = load(index.folder)
    if tokenizer.fingerprint != index.tokenizer_fingerprint:
        raise DataError(f"{index.folder / tokenizer.file_name}: is not the tokenizer that made the shards; prepare the data again")
    if tokenizer.file_name:
        folder.write(tokenizer.file_name, tokenizer.content)
    return index, tokenizer


def _device(config: RunConfig) -> str:
    wanted = config.train.device
    device = wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device = cuda: this PyTorch sees no CUDA device; use cpu or auto")
    needed = sum(memory_by_part(config).values())
    has = torch.cuda.mem_get_info()[1] if device == "cuda" else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > has:
        raise ConfigError(
            f"the run needs about {needed / 1e9:.1f} GB on {device}, which has {has / 1e9:.1f} GB; see `hmoe plan`, then lower "
            "model sizes, raise data.micro_batches or set train.activation_checkpointing"
        )
    return device


def _begin(
    config: RunConfig, index: Index, restored: checkpoint.Checkpoint | None, console: Console
) -> tuple[State, Watch]:
    moe = config.model.moe
    shape = (len(config.model.moe_layers), len(moe.expert_widths) if moe else 0)
    if restored is None:
        return State(), Watch(shape, config.train.dead_after)
    if restored.state["data"] != index.fingerprint:
        raise DataError(f"{index.folder}: the data changed since step {restored.step} was saved; choose another --run")
    for name, now in _environment().items():
        if restored.state["environment"][name] != now:
            console.warn(f"{name} was {restored.state['environment'][name]}, is {now}: bits may differ from one unbroken run")
    console.note(f"resuming from step {restored.step}")
    return State(**restored.state["counts"]), Watch(shape, config.train.dead_after, restored.state["watch"])


def _account(state: State, record: StepRecord, watch: Watch, config: RunConfig) -> list[str]:
    state.step += 1
    state.tokens += record.tokens
    state.flops += record.flops
    state.skipped += not record.applied
    state.bad_in_a_row = 0 if record.applied else state.bad_in_a_row + 1
    widths = config.model.moe.expert_widths if config.model.moe else ()
    warnings = watch.update(record.pairs_LE, record.tokens, widths)
    if not record.applied:
        warnings.append(f"step {state.step}: loss or gradients not finite, update skipped ({state.bad_in_a_row} in a row)")
    return warnings


def _row(state: State, record: StepRecord, warnings: list[str], config: RunConfig) -> dict[str, Any]:
    """One line of metrics.jsonl: deterministic values only."""
    row: dict[str, Any] = {"step": state.step, "tokens": state.tokens, "flops": state.flops}
    row |= {name: _finite(value) for name, value in record.terms.items()}
    row |= {"grad_norm": _finite(record.grad_norm), "lr": record.lr}
    row |= {"activated_parameters": record.activated_parameters, "mean_activated_width": record.mean_activated_width}
    row |= {"experts_per_token": record.experts_per_token, "skipped": state.skipped}
    if config.model.moe:
        widths = config.model.moe.expert_widths
        work = [[n * h for n, h in zip(layer, widths, strict=True)] for layer in record.pairs_LE]
        row |= {"expert_token_share": _shares(record.pairs_LE), "expert_compute_share": _shares(work)}
    return row | ({"warnings": warnings} if warnings else {})


def _shares(table: list[list[int]]) -> list[list[float]]:
    return [[round(value / max(sum(row), 1), 6) for value in row] for row in table]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _progress(config: RunConfig, state: State, seconds: float) -> float:
    """Share of the budget that is used up, of the one nearest to its end."""
    train = config.train
    pairs = [(state.step, train.steps), (state.tokens, train.tokens), (state.flops, train.flops), (seconds, train.seconds)]
    return max(used / limit for used, limit in pairs if limit)


def _finished(config: RunConfig, state: State, seconds: float) -> bool:
    return _progress(config, state, seconds) >= 1


def _autocast(model: Transformer, config: RunConfig) -> torch.autocast:
    device = model.embed.weight.device.type
    return torch.autocast(device, torch.bfloat16, enabled=config.train.precision == "bfloat16")


def _validate(model: Transformer, index: Index, config: RunConfig) -> dict[str, float]:
    """Validation loss in nats per token and bits per byte of text; {} without a validation split."""
    device = model.embed.weight.device
    total, tokens = 0.0, 0
    with _autocast(model, config):
        for inputs, targets in validation(index, config.data.sequence_length, config.train.eval_sequences):
            nll = mean_nll(model, torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device))
            total, tokens = total + nll * targets.size, tokens + targets.size
    if not tokens or not math.isfinite(total):
        return {}
    nats = total / tokens
    return {"validation_loss": nats, "validation_bits_per_byte": nats / math.log(2) / bytes_per_token(index, "valid")}


def _sample(model: Transformer, tokenizer: Tokenizer, config: RunConfig, step: int) -> str:
    prompt = tokenizer.encode([config.train.sample_prompt])[0] or [tokenizer.separator]
    how = Sampling(temperature=0.8, top_p=0.95)
    try:
        ids = list(generate(model, prompt, config.train.sample_tokens, how, config.seed + step, tokenizer.separator))
    except NonFiniteError:
        return ""
    return tokenizer.decode(prompt + ids)


def _environment() -> dict[str, Any]:
    """What else than the config the bits depend on."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


def _save(
    run: Path,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    state: State,
    watch: Watch,
    index: Index,
    config: RunConfig,
    records: Records,
) -> int:
    records.flush()
    extra = {"counts": vars(state), "watch": watch.state(), "data": index.fingerprint, "environment": _environment()}
    checkpoint.save(run, checkpoint.capture(state.step, model, optimizer, extra), config.train.keep)
    return state.step
