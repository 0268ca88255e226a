"""The guide's sbatch file, with an `srun` that starts its tasks here."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import tiny
from tests.train.helpers import SMALL, one_thread, rows

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "several-gpus.md"
SRUN = """
import os, subprocess, sys
starts = int(open("starts").read()) if os.path.exists("starts") else 0
open("starts", "w").write(str(starts + 1))
open("ports", "a").write(os.environ["MASTER_PORT"] + "\\n")
if starts == 0:
    sys.exit(137)  # as if a task had been killed
assert sys.argv[1:3] == ["--kill-on-bad-exit=0", "--cpus-per-task=1"], sys.argv
tasks = [
    subprocess.Popen(sys.argv[3:], env={**os.environ, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
    for rank in range(2)
]
sys.exit(max(task.wait() for task in tasks))
"""


def read_batch_script() -> str:
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", GUIDE.read_text(), re.DOTALL)
    return str(script)


def write_program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_a_start_that_lost_a_task_is_repeated_and_the_tasks_train_together(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    write_program(programs, "srun", f"#!{sys.executable}{SRUN}")
    write_program(programs, "scontrol", "#!/bin/sh\necho 127.0.0.1\necho 127.0.0.2\n")
    write_program(programs, "hmoe", f'#!/bin/sh\nexec {sys.executable} -m hmoe "$@"\n')
    command = "hmoe train hmoe-16b-topp --run runs/16b data.path=shards"
    assert command in read_batch_script()
    small = " ".join(["hmoe train tiny --run runs/16b", *tiny("tiny"), *SMALL])
    (tmp_path / "train.sbatch").write_text(read_batch_script().replace(command, small))
    variables = {
        "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "1234567",
        "SLURM_CPUS_PER_TASK": "1", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
    }  # fmt: skip
    path = f"{programs}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "train.sbatch"], cwd=tmp_path, env={**one_thread(), **variables, "PATH": path},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "processes: 2, zero2" in result.stdout
    assert len(rows(tmp_path / "runs" / "16b")) == 6
    ports = (tmp_path / "ports").read_text().split()
    assert len(set(ports)) == 2


def test_errors_that_would_come_again_are_not_repeated(tmp_path: Path) -> None:
    write_program(tmp_path, "srun", "#!/bin/sh\necho start >> starts\nexit 3\n")
    write_program(tmp_path, "scontrol", "#!/bin/sh\necho 127.0.0.1\n")
    (tmp_path / "train.sbatch").write_text(read_batch_script())
    variables = {
        "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }  # fmt: skip
    result = subprocess.run(
        ["bash", "train.sbatch"], cwd=tmp_path, env={**os.environ, **variables}, check=False
    )
    assert result.returncode == 3
    assert (tmp_path / "starts").read_text() == "start\n"
