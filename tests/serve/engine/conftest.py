"""An engine that a test asks."""

from collections.abc import Iterator

import pytest

from hmoe.serve.engine.engine import Engine
from tests.serve.helpers import engine


@pytest.fixture
def running() -> Iterator[Engine]:
    with engine() as started:
        yield started
