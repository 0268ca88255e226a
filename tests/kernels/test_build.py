"""`python -m hmoe.kernels.build`."""

import pytest


def test_the_kernels_builder_helps_and_refuses_what_it_does_not_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from hmoe.kernels.build import run_build_module

    with pytest.raises(SystemExit) as ended:
        run_build_module(["--help"])
    assert ended.value.code == 0
    assert "usage: python -m hmoe.kernels.build" in capsys.readouterr().out
    assert run_build_module(["-j4"]) == 2
    assert capsys.readouterr().err.startswith("hmoe: error: -j4: unknown argument")
