"""Stage 1: the kernel tests that need a GPU, in many processes."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.facts import ROOT
from benchmarks.gpu.setting import Case, Outcome, Setting, WrongResultError

ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def cases(setting: Setting) -> Mapping[str, Case]:
    """Return one case, the suite; its output is kept in suite.log."""
    return {"tests/kernels": lambda: _suite(setting)}


def _suite(setting: Setting) -> Outcome:
    report, log = setting.out / "suite.xml", setting.out / "suite.log"
    command = [sys.executable, "-m", "pytest", "-vv", "-W", "default", "--tb=short", "-p", "no:cacheprovider"]
    if setting.dry:
        command += [f"--junitxml={report}", "-k", "tables_are_whole", "tests/kernels/test_shapes.py"]
    else:
        command += [f"--junitxml={report}", "-m", "gpu and not slow", "tests/kernels"]
        command += ["-n", "12"] if importlib.util.find_spec("xdist") else []
        command += ["--timeout=60"] if importlib.util.find_spec("pytest_timeout") else []
    ended_early = ""
    with log.open("w") as file:
        try:
            subprocess.run(
                command, cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT,
                timeout=setting.left - 2, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            ended_early = "time limit, "
    if report.exists():
        return _read_report(report, ended_early)
    text = log.read_text()
    raise RuntimeError(
        f"{ended_early}{text.count('PASSED')} passed, {text.count('FAILED')} failed; {text[-1500:]}"
    )


def _read_report(report: Path, ended_early: str) -> Outcome:
    tests, failures, seconds = 0, [], 0.0
    for test in ElementTree.parse(report).iter("testcase"):
        tests += 1
        seconds += float(test.get("time", 0))
        for kind in ("failure", "error"):
            for failure in test.findall(kind):
                failures.append({
                    "test": test.get("name"), "message": (failure.get("message") or "")[:600],
                    "text": (failure.text or "")[-1500:],
                })  # fmt: skip
    report.unlink()
    for row in failures[:10]:
        print(f"1   {row['test']}: {' '.join(str(row['message']).split())[:220]}", flush=True)
    line = f"{ended_early}{tests - len(failures)} of {tests} passed"
    data = {"tests": tests, "seconds": seconds, "failures": failures}
    if failures or ended_early:
        raise WrongResultError(line, data)
    return line, data
