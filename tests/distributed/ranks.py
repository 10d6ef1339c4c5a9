"""Several processes of a group on this machine, as a launcher would start them, each given the same function."""

from __future__ import annotations

import json
import os
import socket
import tempfile
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


def together(
    count: int, function: Callable[..., Any], *arguments: Any, seconds: float = 120, engine: str = "torch"
) -> list[Any]:
    """What `function(group, *arguments)` returns in each of `count` processes of an engine, by rank.

    Fails when one raises, or when they have not ended within `seconds`.
    """
    environment = environment_of(count, engine)
    pipes = [FRESH.Pipe(duplex=False) for _ in range(count)]
    processes = [
        FRESH.Process(target=_rank, args=(rank, count, engine, environment, pipes[rank][1], function, arguments))
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


def ports(count: int) -> list[int]:
    """Free ports, one after the other as mlx.launch takes them; those of tests side by side are far apart, and
    below the ones that systems give to clients."""
    for first in range(20000 + os.getpid() * 101 % 12000, 60000, count):
        held = [socket.socket() for _ in range(count)]
        try:
            for place, one in enumerate(held):
                one.bind(("127.0.0.1", first + place))
            return [*range(first, first + count)]
        except OSError:
            continue
        finally:
            for one in held:
                one.close()
    raise AssertionError("no free ports")


def environment_of(count: int, engine: str) -> dict[str, str]:
    """Where `count` processes of this host meet, as a launcher says it."""
    if engine == "torch":
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports(1)[0]), "TANDEM_TORCH_DEVICE": "cpu"}
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump([[f"127.0.0.1:{port}"] for port in ports(count)], file)
    return {"MLX_HOSTFILE": file.name}


def _rank(
    rank: int,
    count: int,
    engine: str,
    environment: dict[str, str],
    sender: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ |= {**environment, "MLX_RANK": str(rank)}
    launcher = "torchrun" if engine == "torch" else "mlx.launch"
    try:
        group: Group = backends.load(engine).join(Launch(rank, rank, count, count, launcher))
        sender.send((function(group, *arguments), ""))
        group.close()
    except BaseException:
        sender.send((None, traceback.format_exc()))
        raise
