"""Keep how far a preparation came: `progress.json` in the folder that it writes, until that is complete."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hmoe.data.documents import START, InputPosition
from hmoe.data.losses import EncodingLosses
from hmoe.data.shards import LOSS_KINDS, Shard, check_kinds, check_shards
from hmoe.errors import DataError
from hmoe.storage import read_json, write_atomic

_FILE = "progress.json"
_RULE = 2  # how documents become shards; a preparation that was begun by another one is not continued


@dataclass(frozen=True)
class PrepareState:
    """How far a preparation came; of the files in its folder only the shards that are named here count.

    Attributes:
        threshold: hash below which documents are held out; None before it was chosen.
        position: where reading goes on.
        segment: index of the next segment.
        losses: what the tokenizer lost of the texts so far.
        shards: the shards that were published.
    """

    threshold: int | None = None
    position: InputPosition = START
    segment: int = 0
    losses: EncodingLosses = field(default_factory=EncodingLosses)
    shards: tuple[Shard, ...] = ()


def load_progress(out: Path, key: dict[str, Any]) -> PrepareState:
    """Read where an earlier call with the same key stopped; an empty folder is begun and marked as such.

    Raises:
        DataError: if the folder holds something else, or was begun with other inputs, options or rules.
    """
    file = out / _FILE
    if not file.exists():
        foreign = sorted(path.name for path in out.iterdir() if path.name not in (".lock", f".{_FILE}.tmp"))
        if foreign:
            raise DataError(
                f"out = {out}: is not empty (holds {foreign[0]}); choose another folder", argument="out"
            )
        save_progress(out, key, PrepareState())
    for litter in out.glob(".*.tmp"):  # of a segment that was not published
        litter.unlink()
    try:
        return _read_state(read_json(file), out, key)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{file}: damaged; delete {out} and prepare again") from None


def _read_state(tree: dict[str, Any], out: Path, key: dict[str, Any]) -> PrepareState:
    other_key = tree["key"]
    if tree.get("rule") != _RULE:  # first of all, as other versions may have had other fields
        raise DataError(
            f"{out}: was begun by another version, which cuts texts otherwise; delete it and prepare again"
        )
    if other_key != key:
        differing = describe_difference(key, other_key)
        raise DataError(
            f"out = {out}: was begun with other inputs or options ({differing}); choose another folder or delete it",
            argument="out",
        )
    check_kinds(
        tree, {"key": dict, "threshold": int | None, "position": list, "segment": int, "shards": list}
    )
    state = PrepareState(
        tree["threshold"],
        InputPosition(*tree["position"]),
        tree["segment"],
        EncodingLosses(**tree.get("losses", {})),  # not recorded by earlier versions
        tuple(Shard(**shard) for shard in tree["shards"]),
    )
    check_shards(state.shards)
    check_kinds(vars(state.losses), LOSS_KINDS)
    check_kinds(state.position._asdict(), dict.fromkeys(state.position._fields, int))
    return state


def save_progress(out: Path, key: dict[str, Any], state: PrepareState) -> None:
    """Write how far the preparation with this key came."""
    # `asdict` makes plain values of the shards and losses; a position becomes a list, as every tuple in JSON.
    write_atomic(out / _FILE, json.dumps({"rule": _RULE, "key": key, **asdict(state)}).encode())


def remove_progress(out: Path) -> None:
    """Remove the record of a preparation that is complete."""
    (out / _FILE).unlink(missing_ok=True)


def describe_difference(key: dict[str, Any], other: dict[str, Any]) -> str:
    """List the options in which two keys differ; `begin` is what the tokenizer puts before every document."""
    return ", ".join(sorted(name for name in key.keys() | other.keys() if key.get(name) != other.get(name)))
