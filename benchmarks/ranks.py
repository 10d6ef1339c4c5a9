"""Several processes that train one network on this machine's cores, and what an update sends, counted.

    python -m benchmarks ranks --json

`throughput` compares two processes of one thread, over gloo, with one process of two threads, in turns; the images are
at hand. `sent` counts what a process hands over in an update, beside the least, its gradients once. `simulated` is one
process of 64 whose others are torch's fake process group: what they would send, and the memory of this one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist

from backends.contract import MixPlan, SessionConfig
from backends.group import ALONE, Alone, Group
from backends.torch import session
from backends.torch.distributed import replicas
from benchmarks import common
from benchmarks.common import Result, comparison, option, together
from benchmarks.steps.step import CLASSES, HYPERPARAMS, batch_of, pixels
from config.launch import Launch
from models import registry

_UPDATES = 4  # of a turn


@comparison(
    "ranks",
    option("--model", default="convnext_atto"),
    option("--size", type=int, default=64),
    option("--batch", type=int, default=64),
    option("--turns", type=int, default=5),
    option("--simulate", type=int, default=0, metavar="N", help="simulate one of N processes, and no more"),
)
def ranks(arguments: argparse.Namespace, _folder: Path) -> Result:
    """Throughput of two processes, or one of many."""
    case = arguments.model, arguments.size, arguments.batch
    figures = simulated(*case, arguments.simulate) if arguments.simulate else throughput(*case, arguments.turns)
    return common.result(figures, arguments.turns, "torch", "timm")


class Rank:
    """A process with its share of each batch; `messages` are (operation, bytes) of the last update."""

    def __init__(self, rank: int, count: int, port: int, threads: int):
        torch.set_num_threads(threads)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TANDEM_TORCH_DEVICE": "cpu"}
        self.launch = Launch(rank, rank, count, count, "torchrun")
        self.messages: list[tuple[str, int]] = []
        self.group: Group = ALONE

    def begin(self, model: str, size: int, batch: int, group: Group | None = None) -> int:
        """Join the others and open the session; the bytes of its parameters."""
        self.group = group or session.join(self.launch)
        spec = registry.get(model, num_classes=CLASSES, image_size=size)
        self.session = session.open(spec, None, SessionConfig(compile=False), self.group)
        everything = batch_of(pixels(batch, size))
        self.batch = everything._replace(images=everything.images[: batch // self.group.world_size])
        lam, permutation = np.full(batch, 0.7, np.float32), np.random.default_rng(0).permutation(batch)
        self.mix = MixPlan(permutation.astype(np.int32), lam, np.zeros((batch, 4), np.int32), lam)
        for name in ("all_reduce", "all_gather_into_tensor", "all_gather"):
            setattr(dist, name, partial(self._counted, name, getattr(dist, name)))
        return 4 * sum(p.numel() for p in self.session._parameters.values())

    def _counted(self, name: str, call: Callable[..., Any], *tensors: Any, **more: Any) -> Any:
        sent = tensors[0] if name == "all_reduce" else tensors[1]
        self.messages.append((name, sent.numel() * sent.element_size()))
        return call(*tensors, **more)

    def updates(self, count: int, mixes: bool = False) -> float:
        """Seconds of one of `count` updates, with the exchange on the host that goes before each."""
        started = time.perf_counter()
        for _ in range(count):
            self.messages = []
            self.group.gather(np.ones((1, 3 + len(self.batch.images)), np.float32), even=True)
            self.session.read(self.session.train_step(self.batch, self.mix if mixes else None, HYPERPARAMS))
        return (time.perf_counter() - started) / count

    def sent(self) -> dict[str, dict[str, int]]:
        """Messages and bytes of the last update, by kind."""
        kinds = {name: [size for kind, size in self.messages if kind == name] for name, _ in self.messages}
        return {name: {"messages": len(sizes), "bytes": sum(sizes)} for name, sizes in kinds.items()}


def throughput(model: str, size: int, batch: int, turns: int) -> dict[str, Any]:
    """Images a second of both, and their ratio, turn by turn."""
    port = common.free_port()
    with (
        common.Peer(Rank, 0, 1, port, 2) as alone,
        common.Peer(Rank, 0, 2, port, 1) as a,
        common.Peer(Rank, 1, 2, port, 1) as b,
    ):
        ideal = alone("begin", model, size, batch)
        together("begin", (a, b), model, size, batch)
        arms = {
            "one": lambda: alone("updates", _UPDATES),
            "two": lambda: max(together("updates", (a, b), _UPDATES)),
        }
        seconds = common.in_turn(arms, turns)
        sent = a("sent")
        together("updates", (a, b), 1, True)
        mixed = a("sent")
    ratios = [single / pair for single, pair in zip(*seconds.values(), strict=True)]
    return {
        "images_per_second": {name: common.rounded(batch / statistics.median(s)) for name, s in seconds.items()},
        "ratio": common.rounded(statistics.median(ratios)),
        "spread": [common.rounded(min(ratios)), common.rounded(max(ratios))],
        "sent": {"least_bytes": ideal, "plain": sent, "mixup": mixed},
    }


class _Simulated(Alone):
    """The first process of a group whose others do not exist."""

    def __init__(self, count: int):
        self.rank, self.world_size = 0, count


def _at_once(bucket: Any) -> Any:
    dist.all_reduce(bucket.buffer())
    done: Any = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def simulated(model: str, size: int, batch: int, count: int) -> dict[str, Any]:
    """One of `count` processes, the others being torch's fake process group."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    replicas.summed = _at_once  # the fake group's futures hold nothing
    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    rank = Rank(0, count, 0, 2)
    ideal = rank.begin(model, size, batch, group=_Simulated(count))
    rank.updates(3)  # DistributedDataParallel begins with the second and sorts its buckets after it
    plain = rank.sent()
    rank.updates(1, True)
    return {
        "processes": count,
        "batch": batch,
        "least_bytes": ideal,
        "plain": plain,
        "mixup": rank.sent(),
        "memory_gib": common.rounded(psutil.Process().memory_info().rss / 2**30),
    }
