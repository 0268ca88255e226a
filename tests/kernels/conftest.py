"""The C++ library in both variants, built once per session into the tests' own cache."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hmoe.errors import ConfigError
from hmoe.kernels import build, native
from tests.kernels import cases

WITHOUT_TRITON = ("test_native.py", "test_op.py")
OTHER_BACKENDS = ("reference", "loop", "exact", "cpu")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `triton`, for `make test-triton`, all tests of this folder but those that name another backend."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name not in WITHOUT_TRITON:
            values = dict(item.callspec.params) if hasattr(item, "callspec") else {}
            values.pop("device", None)
            named = [value[0] if isinstance(value, tuple) and value else value for value in values.values()]
            if not any(isinstance(name, str) and name.partition("+")[0] in OTHER_BACKENDS for name in named):
                item.add_marker("triton")


@pytest.fixture(scope="session")
def native_libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The libraries by variant; `why` holds the reason where one is missing."""
    libraries: dict[str, object] = {"why": "this processor lacks the instructions"}
    without_amx = ("-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8")
    for flags in ((), without_amx):
        patch = pytest.MonkeyPatch()
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("library")))
        try:
            build.build_library(flags)
            loaded = native.load_library(native.library_path())
            assert loaded is not None
            libraries[loaded.hmoe_instructions().decode()] = loaded
        except ConfigError as error:
            libraries["why"] = str(error)
        patch.undo()
        native.get_library.cache_clear()
    cases.LIBRARIES.update(libraries)
    return libraries


@pytest.fixture
def unwritten_is_nan() -> Iterator[None]:
    """`torch.empty` gives NaN, and the largest integers: what a kernel leaves unwritten cannot look right by chance."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
