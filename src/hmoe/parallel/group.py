"""Joining the processes that a launcher such as torchrun started, and what they tell each other in plain values."""

import contextlib
import datetime
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import FileStore, PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

from hmoe.errors import CheckpointError, ConfigError, DistributedError, HMoEError, PeerError
from hmoe.parallel.expert_parallel import EXPERT_AXIS
from hmoe.parallel.heartbeat import HEARTBEAT
from hmoe.parallel.process_numbers import CANNOT_MEET, STORE_VARIABLE, ProcessNumbers, read_process_numbers
from hmoe.parallel.sharding import MESH_AXES
from hmoe.parallel.watch import Watch

TIMEOUT_SECONDS = 60.0
_PATIENCE_SECONDS = 1800.0
_LOST_WORDS = ("reset", "closed", "refused", "Broken pipe")  # of a connection to a process that has gone


class Messages:
    """Plain values and errors that the processes of a run tell each other.

    They wait for each other as long as reading a large file may take, unlike in a training step. A process that died
    is noticed at once in both.

    Attributes:
        rank, size: number of this process, and of all.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
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

    def gather_tensors(self, tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Return the CPU tensors of every process, in the order of their ranks; to the first process alone."""
        own = [tensor.contiguous() for tensor in tensors]
        kinds = self.gather_values([[str(t.dtype).removeprefix("torch."), list(t.shape)] for t in own])
        if self.rank > 0:
            for tensor in own:
                if tensor.numel():
                    dist.send(tensor.flatten().view(torch.uint8), 0, group=self._group)
            return []
        gathered = [own]
        for rank in range(1, self.size):
            received = [torch.empty(shape, dtype=getattr(torch, dtype)) for dtype, shape in kinds[rank]]
            for tensor in received:
                if tensor.numel():
                    dist.recv(tensor.flatten().view(torch.uint8), rank, group=self._group)
            gathered.append(received)
        return gathered

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
def join_processes(
    timeout_seconds: float = TIMEOUT_SECONDS,
    store: str | None = None,
    give_up: Callable[[str], None] | None = None,
) -> Iterator[Messages]:
    """Be one of the processes of a run, as the environment says (RANK, WORLD_SIZE), while it lasts.

    Tensors on CUDA devices go through NCCL, those on the CPU through gloo; both on this machine alone if all
    processes are there, unless the environment names a network (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME).

    Args:
        timeout_seconds: after which a process that does not answer in a training step is given up.
        store: file where they meet; None: that of the launcher, or the address MASTER_ADDR, MASTER_PORT.
        give_up: called from a thread when another process shows no sign of life; must end this one. None: it is
            noticed by who waits for it, only. Not needed for processes that `hmoe.parallel.launcher` watches.

    Raises:
        DistributedError: if they do not find each other, or one stops answering.
    """
    numbers = read_process_numbers()
    file = store or os.environ.pop(STORE_VARIABLE, None)  # not for processes of this one
    if file is not None or numbers.local_size == numbers.size:
        _stay_on_this_machine()
    meeting = _meet(file, numbers, timeout_seconds, give_up)
    watch = None
    if not HEARTBEAT.has_launcher and file is None:
        watch = Watch(
            meeting, numbers.rank, numbers.size, timeout_seconds, _explain_silence(numbers.size, give_up)
        )
    with _explain_failures(numbers.size, watch):
        messages = Messages()
        if watch is not None:
            watch.start()
        yield messages
        # Not after an error: others may wait for something else.
        messages.gather_values(None)
        if watch is not None:
            watch.end()
        dist.destroy_process_group()


def _meet(
    file: str | None, numbers: ProcessNumbers, timeout_seconds: float, give_up: Callable[[str], None] | None
) -> Store:
    """Wait for all other processes, and return the store where they met."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    timeout = datetime.timedelta(seconds=timeout_seconds)
    rank, size = numbers.rank, numbers.size
    failure = f"process {rank} of {size} did not find all others within {timeout_seconds:.0f} s"
    advice = "; start all of them by torchrun, or set MASTER_ADDR and MASTER_PORT" if file is None else ""
    # gloo itself tries as long as several times that; others, who say why, come first.
    timer = threading.Timer(timeout_seconds + 3, give_up or _say_nothing, (failure + advice,))
    timer.daemon = True
    timer.start()
    begin = time.monotonic()
    try:
        meeting = _open_store(file, numbers, timeout)
        dist.init_process_group(backend, store=meeting, timeout=timeout, rank=rank, world_size=size)
    except (ValueError, RuntimeError) as error:
        if time.monotonic() - begin < timeout_seconds / 2:  # it did not wait for them
            is_lost = any(word in str(error) for word in _LOST_WORDS)
            failure = f"process {rank} of {size} " + (
                "lost another one while they met" if is_lost else CANNOT_MEET
            )
        raise DistributedError(f"{failure} ({_shorten(error)}){advice}") from None
    finally:
        timer.cancel()
    return meeting


def _open_store(file: str | None, numbers: ProcessNumbers, timeout: datetime.timedelta) -> Store:
    """Return where the processes of one start meet."""
    if file is not None:
        store: Store = FileStore(file, numbers.size)
        store.set_timeout(timeout)
        return store
    store, _, _ = next(rendezvous("env://", numbers.rank, numbers.size, timeout=timeout))
    # torchrun keeps one store for all its restarts: addresses of processes that have died are still there.
    return PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _say_nothing(text: str) -> None:
    """Leave it to the engine to give up."""


def _stay_on_this_machine() -> None:
    """Let processes that are all on this machine talk without being reached from another one."""
    name = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if name is not None:
            os.environ.setdefault(variable, name)


def take_device(wanted: str, numbers: ProcessNumbers) -> str:
    """Return the kind of device of the processes, cpu or cuda, after this one has taken its own.

    Raises:
        ConfigError: if there are fewer devices than processes on this machine.
    """
    if wanted == "cpu" or not torch.cuda.is_available():
        return "cpu"
    if torch.cuda.device_count() < numbers.local_size:
        raise ConfigError(
            f"{numbers.local_size} processes on this machine, which has {torch.cuda.device_count()} GPUs: "
            "start as many as there are, or set train.device = cpu; other verbs see none with CUDA_VISIBLE_DEVICES="
        )
    torch.cuda.set_device(numbers.local_rank)
    return "cuda"


def make_mesh(device: str, replicas: int = 1, expert_ranks: int | None = None) -> DeviceMesh:
    """Return all processes of the run as a mesh, of one axis or of two.

    Args:
        device: kind of device of the processes.
        replicas: number of groups that hold all weights between them.
        expert_ranks: neighbours among which experts are placed; None: all of them, if any.

    Raises:
        ConfigError: if they cannot be cut into such groups.
    """
    size = dist.get_world_size()
    if size % replicas:
        raise ConfigError(f"replicas = {replicas}: must divide the {size} processes", argument="replicas")
    if expert_ranks is not None and expert_ranks != size:
        return init_device_mesh(
            device, (size // expert_ranks, expert_ranks), mesh_dim_names=("data", EXPERT_AXIS)
        )
    shape = (size,) if replicas == 1 else (replicas, size // replicas)
    return init_device_mesh(device, shape, mesh_dim_names=MESH_AXES[-len(shape) :])


def _explain_silence(
    num_processes: int, give_up: Callable[[str], None] | None
) -> Callable[[int, float], None] | None:
    if give_up is None:
        return None
    return lambda rank, seconds: give_up(
        f"process {rank} of {num_processes} shows no sign of life for {seconds:.0f} s, {HEARTBEAT.describe_step()}"
    )


@contextlib.contextmanager
def _explain_failures(num_processes: int, watch: Watch | None) -> Iterator[None]:
    """Raise what the engine says of processes that do not answer as one line, which names them if anybody knows."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, HMoEError) or not _is_of_communication(error):
            raise
        silent = [] if watch is None else watch.find_silent()
        if watch is not None:
            watch.end()
        names = " and ".join(map(str, silent))
        text = f"process {names} of {num_processes} no longer answers"
        if not silent and any(
            word in str(error) for word in (*_LOST_WORDS, "imed out", "imeout", "onnection")
        ):
            text = "another process of this run no longer answers"
        elif not silent:
            text = f"process {read_process_numbers().rank} of {num_processes} {CANNOT_MEET}"
        raise DistributedError(f"{text}, {HEARTBEAT.describe_step()} ({_shorten(error)})") from None


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _is_of_communication(error: Exception) -> bool:
    words = ("gloo", "Connection", "connect", "timed out", "Timed out", "timeout", "NCCL")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)
