"""Which Triton these tests run: that of the dev extra, or what `make test-triton` installs."""

import os
import subprocess
import sys

import numpy
import triton


def test_the_triton_that_runs_is_the_expected_one_also_in_processes_that_compile() -> None:
    expected = os.environ.get("HMOE_EXPECT_TRITON", "3.")
    code = "import triton; print(triton.__version__)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert triton.__version__ == told.strip()
    assert triton.__version__.startswith(expected), triton.__version__
    if expected == "3.6":  # its interpreter fails with later ones
        assert tuple(map(int, numpy.__version__.split(".")[:2])) < (2, 4)
