import json

import pytest

from tests.golden.write import CASES, FOLDER, losses


@pytest.mark.parametrize("name", CASES)
def test_losses_of_fifty_steps_are_unchanged(name: str) -> None:
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    assert len(golden) == 50
    assert losses(name) == pytest.approx(golden, rel=1e-9)
