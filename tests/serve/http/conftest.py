"""A server that the tests of a module share."""

from collections.abc import Iterator

import pytest

from tests.serve.helpers import Live, model


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with Live(model(vocab=257)) as started:
        yield started
