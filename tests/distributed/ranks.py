"""Several processes of a group on this machine, as a launcher would start them, each given the same function."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import backends
from backends.group import Group
from config.launch import Launch
from tests.processes import fresh

FRESH = fresh(
    "backends.mlx",
    "training.run.train_run",
    "backends.torch.session",
    "torch.distributed.elastic",
    "tests.distributed.cases",
)


def together(count: int, function: Callable[..., Any], *arguments: Any, seconds: float = 120) -> list[Any]:
    """What `function(group, *arguments)` returns in each of `count` processes of the torch engine, by rank.

    Fails when one raises, or when they have not ended within `seconds`.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    pipes = [FRESH.Pipe(duplex=False) for _ in range(count)]
    processes = [
        FRESH.Process(target=_rank, args=(rank, count, port, pipes[rank][1], function, arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    end, results = time.monotonic() + seconds, []
    try:
        for rank, (receiver, sender) in enumerate(pipes):
            sender.close()
            assert receiver.poll(max(0.0, end - time.monotonic())), f"rank {rank} has not ended within {seconds} s"
            value, fault = receiver.recv()
            assert not fault, f"rank {rank}: {fault}"
            results.append(value)
    finally:
        for process in processes:
            process.join(5 if len(results) == count else 0)
            process.kill()
    return results


def _rank(
    rank: int, count: int, port: int, sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TANDEM_TORCH_DEVICE": "cpu"}
    try:
        group: Group = backends.load("torch").join(Launch(rank, rank, count, count, "torchrun"))
        sender.send((function(group, *arguments), ""))
        group.close()
    except BaseException:
        sender.send((None, traceback.format_exc()))
        raise
