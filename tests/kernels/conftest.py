"""The C++ library in both variants, built once per session into the tests' own cache."""

from collections.abc import Iterator

import pytest
import torch

from hmoe.errors import ConfigError
from hmoe.kernels import build, native
from tests.kernels import cases


@pytest.fixture(scope="session")
def native_libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Variant -> library; `why` holds the reason where one is missing."""
    found: dict[str, object] = {"why": "this processor lacks the instructions"}
    without_amx = ("-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8")
    for flags in ((), without_amx):
        patch = pytest.MonkeyPatch()
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("library")))
        try:
            build.build(flags)
            loaded = native.load(native.library_path())
            assert loaded is not None
            found[loaded.hmoe_instructions().decode()] = loaded
        except ConfigError as error:
            found["why"] = str(error)
        patch.undo()
        native.library.cache_clear()
    cases.LIBRARIES.update(found)
    return found


@pytest.fixture
def unwritten_is_nan() -> Iterator[None]:
    """`torch.empty` gives NaN, and the largest integers: what a kernel leaves unwritten cannot look right by chance."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
