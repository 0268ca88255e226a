"""Files need not outlast a power cut here."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _unflushed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmoe.storage.flush_to_disk", lambda path: None)
        yield
