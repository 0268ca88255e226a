"""One tree of errors; each may say which arguments it is about."""

import pickle

from hmoe import ConfigError
from hmoe.errors import DataError, HMoEError


def test_an_error_keeps_what_it_is_about() -> None:
    assert HMoEError("x").arguments == ()
    assert ConfigError("x", argument="a").arguments == ("a",)
    copy = pickle.loads(pickle.dumps(DataError("x", argument=("a", "b"))))
    assert (str(copy), copy.arguments) == ("x", ("a", "b"))
