import math
from typing import Any

from hmoe.runs.validations import BestValidation, Validation


def row(step: int, loss: Any) -> dict[str, Any]:
    return {"step": step, "validation_loss": loss, "validation_bits_per_byte": loss}


def test_two_validations_above_the_best_warn_once() -> None:
    follower = BestValidation()
    losses = (3.0, 1.23, 1.3, 1.31, 1.4, 1.0, 1.1, 1.2)
    warnings = [follower.update(row(100 * step, loss)) for step, loss in enumerate(losses, 1)]
    assert [bool(warning) for warning in warnings] == [False, False, False, True, False, False, False, False]
    assert warnings[3] == (
        "validation loss rose from 1.2300 (best, step 200) to 1.3100 at step 400: it overfits, or optim.lr is too high"
    )
    assert follower.best == Validation(600, 1.0, 1.0)
    assert follower.newest == Validation(800, 1.2, 1.2)


def test_one_validation_above_the_best_or_an_equal_one_is_no_rise() -> None:
    assert not any(map(BestValidation().update, (row(step, 1 + step % 2) for step in range(2, 9))))
    assert not any(map(BestValidation().update, (row(step, 1.0) for step in range(9))))


def test_a_run_that_goes_on_knows_what_came_before() -> None:
    assert BestValidation([row(1, 1.0), {"step": 2}, row(3, 2.0)]).update(row(4, 1.5))
    assert not BestValidation([row(1, 1.0), row(2, 2.0), row(3, 2.0)]).update(row(4, 1.5))  # was said before


def test_rows_without_a_number_are_passed_over() -> None:
    follower = BestValidation(
        [row(1, "1"), row(2, None), row(3, math.nan), {"step": 4, "validation_loss": 1.0}]
    )
    assert follower.newest is follower.best is None
