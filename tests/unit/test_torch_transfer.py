"""The way to a CUDA device, played by stand-ins for its streams and events: what is done, in which order. What the real
ones do is not tested here; torch does have them under these names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from backends.torch.transfer import Transfer, arrived

CUDA = torch.device("cuda")


class Told(list[str]):
    """What happened, in order."""


class Stream:
    def __init__(self, told: Told, name: str):
        self.told, self.name = told, name

    def wait_stream(self, other: Stream) -> None:
        self.told.append(f"{self.name} waits for {other.name}")


class Event:
    """An event that counts as many milliseconds as there were events before it."""

    def __init__(self, told: Told, **options: bool):
        assert options == {"enable_timing": True, "blocking": True}
        self.told, self.at = told, 0

    def record(self, stream: Stream) -> None:
        self.at = len(self.told)
        self.told.append(f"event on {stream.name}")

    def synchronize(self) -> None:
        self.told.append("wait")

    def elapsed_time(self, other: Event) -> float:
        return float(other.at - self.at)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    main, side = Stream(told, "main"), Stream(told, "side")
    current = [main]

    @contextmanager
    def within(stream: Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    def pinned(tensor: torch.Tensor) -> torch.Tensor:
        told.append("pin")
        return tensor.clone()

    def to(tensor: torch.Tensor, device: Any, non_blocking: bool = False) -> torch.Tensor:
        told.append(f"copy to {torch.device(device).type} on {current[-1].name}{' at once' * (not non_blocking)}")
        return tensor

    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: side)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: current[-1])
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: Event(told, **options))
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda _self, stream: told.append(f"memory is {stream.name}'s too")
    )
    return told


def test_a_batch_is_pinned_and_copied_beside_the_arithmetic_which_waits_for_it_alone(told: Told) -> None:
    batch = np.arange(6, dtype=np.uint8)
    (sent,) = Transfer(CUDA).send([batch])
    assert told == ["pin", "copy to cuda on side", "main waits for side", "memory is main's too"]
    batch[:] = 0  # the loader's memory is used again
    assert sent.tolist() == list(range(6))


def test_a_result_comes_back_without_a_wait_and_tells_the_device_s_seconds(told: Told) -> None:
    transfer = Transfer(CUDA)
    began = transfer.begin()
    pending = transfer.returning(torch.tensor([0.5, 1.0]), began)
    assert told == ["event on main", "copy to cpu on main", "event on main"]
    packed, seconds = arrived(pending)
    assert told[-1] == "wait"
    assert packed.tolist() == [0.5, 1.0]
    assert seconds == pytest.approx(0.002)
