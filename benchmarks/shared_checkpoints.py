"""How fast do processes write and read a checkpoint together, beside `dd` with a flush of as many bytes?

    python benchmarks/shared_checkpoints.py [--megabytes 1024] [--processes 2] [--rounds 5] [--out FILE]

The weights and both moments of a model are shared as with zero3. Saving is timed from the call until the checkpoint is
published, and until training could go on; loading from the look for the newest checkpoint until all weights and
moments are in place and proven. Each round times dd of one file of as many bytes too, right before.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from hmoe.checkpoint.shared_load import find_newest_checkpoint
from hmoe.checkpoint.shared_save import SharedSaver
from hmoe.parallel.pieces import cut_pieces, restore_pieces
from hmoe.parallel.ranks import Ranks
from hmoe.parallel.sharding import parallelize


def make_model(megabytes: int) -> nn.Module:
    """Return layers whose weights and moments together have so many megabytes, 12 bytes a parameter."""
    layer = 2048 * 2048 * 12 / 1e6
    return nn.Sequential(
        *(nn.Linear(2048, 2048, bias=False) for _ in range(max(1, round(megabytes / layer))))
    )


def time_dd(folder: Path, megabytes: int) -> float:
    """Return the seconds in which dd writes zeros and flushes them."""
    begin = time.perf_counter()
    command = ["dd", "if=/dev/zero", f"of={folder / 'zeros'}", "bs=1M", f"count={megabytes}", "conv=fsync"]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - begin
    (folder / "zeros").unlink()
    return seconds


def run_rank(rank: int, folder: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=options.processes
    )
    mesh = init_device_mesh("cpu", (options.processes,))
    ranks, model = Ranks(mesh), make_model(options.megabytes)
    parallelize(model, mesh, blocks=list(model.children()))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    model(torch.randn(4, 2048)).square().sum().backward()
    optimizer.step()
    run, rows = Path(folder) / "run", []
    if rank == 0:
        run.mkdir()
    for step in range(1, options.rounds + 2):
        seconds = time_dd(Path(folder), options.megabytes) if rank == 0 else 0.0
        saver = SharedSaver(run, 2, ranks)
        dist.barrier()
        begin = time.perf_counter()
        saver.save(step, cut_pieces(model, optimizer), {})
        held = time.perf_counter() - begin
        saver.finish()
        saved = time.perf_counter() - begin
        dist.barrier()
        begin = time.perf_counter()
        stored = find_newest_checkpoint(run, ranks, print)
        assert stored is not None
        restore_pieces(stored, model, optimizer, ranks)
        rows.append({"dd": seconds, "held": held, "save": saved, "load": time.perf_counter() - begin})
        dist.barrier()
    if rank == 0:
        (Path(folder) / "rows.json").write_text(json.dumps(rows[1:]))  # the first warms up
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    folder = tempfile.mkdtemp(dir=options.folder)
    try:
        arguments = (folder, options)
        torch.multiprocessing.spawn(run_rank, arguments, nprocs=options.processes)  # type: ignore[attr-defined, no-untyped-call]
        rows = json.loads((Path(folder) / "rows.json").read_text())
    finally:
        shutil.rmtree(folder)
    result: dict[str, object] = {name: median(row[name] for row in rows) for name in rows[0]}
    for name in ("save", "load"):
        result[f"{name}_beside_dd"] = median(row["dd"] / row[name] for row in rows)
    print(json.dumps(result, indent=1))
    if options.out:
        from hmoe.bench.measure import describe_machine

        settings = {key: getattr(options, key) for key in ("megabytes", "processes", "rounds")}
        content = {"machine": describe_machine("cpu"), **settings, **result, "seconds": rows}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
