"""A run whose experts move at a checkpoint: its model is built anew, with what was saved.

So it is where several processes share the same experts by FSDP2: its engine knows only the modules that it began with.
"""

import gc
from typing import Any, cast

from hmoe.errors import CheckpointError
from hmoe.train.kept_state import load_restart, make_saver, restore_run
from hmoe.train.optimizer import build_optimizer
from hmoe.train.run_model import build_run_model
from hmoe.train.session import Session, make_mover


def move_at_checkpoint(session: Session) -> str | None:
    """Let experts move if that was found to pay, after a checkpoint of this step was saved; return a line on it.

    Raises:
        CheckpointError: if what was saved cannot be read.
    """
    better = None if session.mover is None else session.mover.pending
    if better is None:
        return None
    config, processes, step = session.config, session.processes, session.counts.step
    session.saver.finish()
    nothing = cast(Any, None)
    # All that knows the model lets go of it, so that there are never two.
    session.model = session.optimizer = session.mover = nothing
    session.saver = make_saver(session.path, config.train.keep, nothing, nothing, processes)
    gc.collect()
    session.model = build_run_model(config, session.device, processes, better.placements)
    session.optimizer = build_optimizer(session.model, config.optim, processes.exact)
    restored = load_restart(session.path, processes, lambda text: None)
    if restored is None or restored.step != step:
        raise CheckpointError(
            f"{session.path}: the checkpoint of step {step} cannot be read, from which experts move"
        )
    restore_run(restored, session.model, session.optimizer, processes)
    session.saver = make_saver(session.path, config.train.keep, session.model, session.optimizer, processes)
    session.mover = make_mover(config, session.path, session.model, session.optimizer, processes)
    assert session.mover is not None
    session.mover.write_move(step, better, 0)
    return better.describe(step)
