"""The processes that mlx.launch, or mpirun, started, and their talk on the host: over the same connections as the
gradients, which `replicas` exchanges.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from backends.group import ALONE
from backends.group import Group as AnyGroup
from config.errors import BackendUnavailable, ConfigError, GroupLost
from config.launch import Launch

_WAIT = 30 * 60.0  # seconds: rank 0 may prepare data that long while the others wait
_MEET = 10 * 60.0  # seconds in which all processes are to start
_MOST = 1 << 28  # bytes of a message, whose length MLX counts in 32 bits
_SIGNS = ("[ring]", "[mpi]", "[jaccl]", "[nccl]", "[distributed]")  # how MLX begins what it says of other processes


def join(launch: Launch) -> AnyGroup:
    """The group of the processes that a launcher started; see `backends.contract.Backend`."""
    if not launch.several:
        return ALONE
    backend = _backend(launch)
    if not mx.distributed.is_available(backend):
        raise BackendUnavailable(
            f"{launch.launcher}: MLX has no {backend} backend on this machine; start mlx.launch with --backend ring"
        )
    before = _sockets()
    with _meeting(launch):
        group = mx.distributed.init(strict=True, backend=backend)
    if group.size() != launch.world_size:
        raise ConfigError(
            f"{launch.launcher}: MLX found {group.size()} processes, not {launch.world_size}; start mlx.launch again"
        )
    return Group(group, _sockets() - before)


def _backend(launch: Launch) -> str:
    """MLX's name of how the processes are connected."""
    if launch.launcher == "mpirun":
        return "mpi"
    if launch.launcher != "mlx.launch":
        raise ConfigError(
            f"{launch.launcher} started {launch.world_size} processes, and MLX meets in those of mlx.launch or mpirun; "
            "start mlx.launch -n 2 --backend ring -- python train_mlx.py"
        )
    by_variable = {"MLX_IBV_DEVICES": "jaccl", "MLX_HOSTFILE": "ring"}
    return next((name for variable, name in by_variable.items() if os.environ.get(variable)), "nccl")


@contextmanager
def _meeting(launch: Launch) -> Iterator[None]:
    """Around MLX's wait for the others, in which no Python runs: signals end the process, so does the time limit."""
    if launch.rank == 0:
        print(f"waiting for {launch.world_size} processes, {_MEET / 60:.0f} minutes at most", flush=True)
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(_MEET, exit=True, file=nowhere)
        try:
            yield
        except RuntimeError as error:
            raise GroupLost(
                f"{launch.launcher}: the {launch.world_size} processes did not meet ({error}); start all of them again"
            ) from error
        finally:
            faulthandler.cancel_dump_traceback_later()
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextmanager
def lost() -> Iterator[None]:
    """`GroupLost` for MLX's errors about processes that ended or do not answer.

    MLX raises such an error once, in the first `mx.eval`; `np.array` of what is not evaluated yet hides it.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _SIGNS):
            raise
        raise GroupLost(
            f"another process of the group has ended or does not answer ({error}); its log tells why, start again"
        ) from error


class Group:
    """See `backends.group.Group`. Used from the thread that made it."""

    def __init__(self, group: mx.distributed.Group, sockets: set[int]):
        self.rank, self.world_size = group.rank(), group.size()
        self.group = group
        self._sockets = sockets

    def gather(self, rows: NDArray[Any], even: bool = False) -> NDArray[Any]:
        """The rows of all ranks, one rank after another."""
        if even:
            mine = np.ascontiguousarray(rows)
            gathered = self._gathered(mine.reshape(-1).view(np.uint8))
            return gathered.reshape(-1).view(mine.dtype).reshape(-1, *mine.shape[1:])
        packed = np.frombuffer(pickle.dumps(rows), np.uint8)
        sizes = self.gather(np.array([len(packed)]), even=True)
        every = self._gathered(np.pad(packed, (0, int(sizes.max()) - len(packed))))
        arrays = [pickle.loads(row[:size].tobytes()) for row, size in zip(every, sizes, strict=True)]
        return np.concatenate([array for array in arrays if len(array)] or arrays[:1])

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value`."""
        packed = np.frombuffer(pickle.dumps(value) if self.rank == 0 else b"", np.uint8)
        size = int(self.gather(np.array([len(packed)]), even=True)[0])
        sent = packed if self.rank == 0 else np.zeros(size, np.uint8)
        sums = [mx.distributed.all_sum(message, group=self.group) for message in _messages(sent)]
        self.wait(sums)
        return pickle.loads(b"".join(np.array(message).tobytes() for message in sums))

    def close(self) -> None:
        """Leave the group, after all is done."""
        self.gather(np.zeros(1, np.uint8), even=True)

    def wait(self, arrays: Any) -> None:
        """`mx.eval` of a tree of arrays that need other processes."""
        with self.waiting():
            mx.eval(arrays)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what may wait for other processes: `GroupLost` when they end, or at the time limit."""
        timer = threading.Timer(_WAIT, self._disconnect)
        timer.daemon = True
        timer.start()
        try:
            with lost():
                yield
        finally:
            timer.cancel()

    def _gathered(self, mine: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """`[world_size, n]` of `[n]`."""
        if not mine.size:
            return np.zeros((self.world_size, 0), np.uint8)
        gathered = [mx.distributed.all_gather(message[None], group=self.group) for message in _messages(mine)]
        self.wait(gathered)
        return np.concatenate([np.array(rows) for rows in gathered], axis=1)

    def _disconnect(self) -> None:
        """End a wait, which nothing in Python can: as its connections close, MLX raises. Where it has none, exit."""
        for number in self._sockets:
            with suppress(OSError), socket.socket(fileno=os.dup(number)) as copy:  # a closed one, or one that listens
                copy.shutdown(socket.SHUT_RDWR)
        timer = threading.Timer(0 if not self._sockets else 60, self._leave)
        timer.daemon = True
        timer.start()

    def _leave(self) -> None:
        os.write(2, b"error: another process of the group does not answer; its log tells why, start again\n")
        os._exit(GroupLost.exit_code)


def _messages(data: NDArray[np.uint8]) -> list[mx.array]:
    return [mx.array(data[start : start + _MOST]) for start in range(0, len(data), _MOST)]


def _sockets() -> set[int]:
    """The numbers of this process's open sockets."""
    sockets = set()
    for path in Path("/dev/fd").iterdir():
        with suppress(OSError):  # that of the listing itself
            if stat.S_ISSOCK(os.fstat(int(path.name)).st_mode):
                sockets.add(int(path.name))
    return sockets
