"""A fold's session, compiled where the settings say so or where a short trial shows that it pays.

What pays is decided in `policy.compiling`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backends.contract import CompileMode, Session
from config.errors import ConfigError
from config.train_sections import Train
from training.policy import compiling
from training.rehearsal import rehearse

# Given whether to compile, or torch's mode of it.
Open = Callable[[bool | CompileMode], Session]
_WARM, _TIMED = 2, 3  # updates of a trial


@dataclass(frozen=True)
class Ahead:
    """What a training has before it: updates with `batch` images of `size` pixels and so many classes."""

    updates: int
    batch: int
    size: int
    classes: int


def session(open: Open, engine: str, train: Train, ahead: Ahead | None, say: Callable[[str], None] = print) -> Session:
    """The session that `open` gives, compiled as `train` says; without `ahead` nothing is to be trained.

    Raises `ConfigError` where the settings insist on what the engine cannot do.
    """
    if train.compile == "off":
        return open(False)
    named = train.compile_mode if engine == "torch" else True
    if train.compile == "on":
        return _insisted(open(named), engine)
    if engine != "torch":
        return open(True)
    eager = open(False)
    if ahead is None or not eager.describe()["compiles"] or not _pays(eager, ahead, say):
        return eager
    eager.close()
    return open(named)


def _insisted(opened: Session, engine: str) -> Session:
    if not opened.describe()["compiled"]:
        opened.close()
        raise ConfigError(f"train.compile on: the {engine} engine does not compile on this device; set it to auto")
    return opened


def _pays(eager: Session, ahead: Ahead, say: Callable[[str], None]) -> bool:
    try:
        seconds, tensors = trial(eager, ahead)
    except BaseException:
        eager.close()
        raise
    pays = compiling.pays(ahead.updates, seconds, tensors)
    if not pays:
        say(
            f"not compiled: {ahead.updates} updates of {seconds:.2g} s each are done before the "
            f"{compiling.cost(tensors):.0f} s that compiling takes would pay; train.compile on does it anyway"
        )
    return pays


def trial(eager: Session, ahead: Ahead) -> tuple[float, int]:
    """Seconds of an update with empty images, all updates taken back afterwards, and the tensors of the network."""
    taken = rehearse(eager, ahead.batch, ahead.size, ahead.classes, _WARM + _TIMED)
    return min(taken[_WARM:]), len(eager.state().weights)
