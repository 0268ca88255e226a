"""Joining the processes that a launcher such as torchrun started, and what they tell each other in plain values."""

import contextlib
import datetime
import json
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from hmoe.errors import CheckpointError, ConfigError, DistributedError, HMoEError, PeerError
from hmoe.parallel.sharding import MESH_AXES

TIMEOUT_SECONDS = 60.0
_PATIENCE_SECONDS = 1800.0


class Messages:
    """Plain values and errors that the processes of a run tell each other.

    They wait for each other as long as reading a large file may take, unlike in a training step. A process that died
    is noticed at once in both.
    """

    def __init__(self) -> None:
        timeout = datetime.timedelta(seconds=_PATIENCE_SECONDS)
        self._group = dist.new_group(backend="gloo", timeout=timeout)

    def gather_values(self, value: Any) -> list[Any]:
        """Return a JSON value of every process, in the order of their ranks."""
        # Not by all_gather_object, which is pickle.
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
        dist.all_gather(lengths, torch.tensor([len(content)]), group=self._group)
        most = max(int(length) for length in lengths)
        padded = [torch.zeros(most, dtype=torch.uint8) for _ in lengths]
        dist.all_gather(
            padded, torch.cat([content, content.new_zeros(most - len(content))]), group=self._group
        )
        return [
            json.loads(text[: int(length)].numpy().tobytes())
            for text, length in zip(padded, lengths, strict=True)
        ]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Let every process raise an error if one does, after what each does for itself inside.

        The first that failed raises its own, all others a PeerError, so that one line says what went wrong.
        """
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        code = CheckpointError.exit_code if isinstance(error, OSError) else 1  # as the command line has it
        failure = None if error is None else [str(error), getattr(error, "exit_code", code)]
        failures = self.gather_values(failure)
        first = next((rank for rank, each in enumerate(failures) if each is not None), None)
        if first is None:
            return
        if error is not None and first == dist.get_rank():
            raise error
        raise PeerError(*failures[first])


@contextlib.contextmanager
def join_processes(timeout_seconds: float = TIMEOUT_SECONDS, store: str = "env://") -> Iterator[Messages]:
    """Be one of the processes of a run, as the environment says (RANK, WORLD_SIZE), while it lasts.

    Tensors on CUDA devices go through NCCL, those on the CPU through gloo.

    Args:
        timeout_seconds: after which a process that does not answer in a training step is given up.
        store: address where they meet: that of the environment (MASTER_ADDR, MASTER_PORT), or file://PATH.

    Raises:
        DistributedError: if they do not find each other, or one stops answering.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    timeout = datetime.timedelta(seconds=timeout_seconds)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        dist.init_process_group(backend, store, timeout=timeout, rank=rank, world_size=size)
    except (ValueError, RuntimeError) as error:
        raise DistributedError(
            f"process {rank} of {size} did not find all others within {timeout_seconds:.0f} s "
            f"({_shorten(error)}); start all of them by torchrun, or set MASTER_ADDR and MASTER_PORT"
        ) from None
    with _explain_failures():
        messages = Messages()
        yield messages
        # Not after an error: others may wait for something else.
        messages.gather_values(None)
        dist.destroy_process_group()


def make_mesh(device: str, replicas: int = 1) -> DeviceMesh:
    """Return all processes of the run as a mesh: of one axis, or of two if weights are held `replicas` times.

    Raises:
        ConfigError: if they cannot be cut into so many groups.
    """
    size = dist.get_world_size()
    if size % replicas:
        raise ConfigError(f"replicas = {replicas}: must divide the {size} processes", argument="replicas")
    shape = (size,) if replicas == 1 else (replicas, size // replicas)
    return init_device_mesh(device, shape, mesh_dim_names=MESH_AXES[-len(shape) :])


@contextlib.contextmanager
def _explain_failures() -> Iterator[None]:
    """Raise what the engine says of processes that do not answer as one line."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, HMoEError) or not _is_of_communication(error):
            raise
        raise DistributedError(f"another process of this run no longer answers ({_shorten(error)})") from None


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _is_of_communication(error: Exception) -> bool:
    words = ("gloo", "Connection", "connect", "timed out", "Timed out", "timeout", "NCCL")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)
