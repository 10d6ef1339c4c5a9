"""A fold's session, compiled where the settings say so or where a short trial shows that it pays.

`policy.compiling` decides what pays. The choice of `train.compile auto` is written into the fold's folder, so that a
resumed fold computes as before.
"""

from __future__ import annotations

from collections.abc import Callable

from backends.contract import CompileMode, Session
from config.errors import BackendUnavailable, ConfigError
from config.places import atomic_write
from config.sections.train import Train
from config.text import counted
from training.loop.rehearsal import Ahead, rehearse
from training.policy import compiling

# Given whether to compile, or torch's mode of it.
Open = Callable[[bool | CompileMode], Session]
_WARM, _TIMED = 2, 3  # updates of a trial
_FILE = "compile.txt"


def session(open: Open, engine: str, train: Train, ahead: Ahead | None, say: Callable[[str], None] = print) -> Session:
    """The session that `open` gives, compiled as `train` says; without `ahead` nothing is to be trained.

    Raises `ConfigError` where the settings insist on what the engine cannot do, and `BackendUnavailable` where they
    insist and the compiler is not installed; `auto` goes on without it then, and says so.
    """
    if train.compile == "off":
        return open(False)
    named = train.compile_mode if engine == "torch" else True
    if train.compile == "on":
        compiled = open(named)
        if not compiled.describe()["compiled"]:
            compiled.close()
            raise ConfigError(f"train.compile on: the {engine} engine does not compile on this device; set it to auto")
        return compiled
    if engine != "torch":
        return open(True)
    eager = open(False)
    if ahead is None or not eager.describe()["compiles"]:
        return eager
    file = ahead.folder / _FILE
    if not file.exists():
        atomic_write(file, "on\n" if _pays(eager, ahead, say) else "off\n")
    if file.read_text().strip() != "on":
        return eager
    eager.close()
    try:
        return open(named)
    except BackendUnavailable as error:
        say(f"continues without compiling: {error}")
        return open(False)


def choice(open: Open, engine: str, train: Train, ahead: Ahead | None) -> bool | CompileMode:
    """What `session` opens its session with. It is closed again."""
    opened = session(open, engine, train, ahead)
    compiled = bool(opened.describe()["compiled"])
    opened.close()
    return compiled and (train.compile_mode if engine == "torch" else True)


def _pays(eager: Session, ahead: Ahead, say: Callable[[str], None]) -> bool:
    try:
        seconds, tensors = trial(eager, ahead)
    except BaseException:
        eager.close()
        raise
    pays = compiling.pays(ahead.updates, seconds, tensors)
    if not pays:
        say(
            f"not compiled: {counted(ahead.updates, 'update is', 'updates are')} done at {seconds:.2g} s "
            "each before the "
            f"{compiling.cost(tensors):.0f} s that compiling takes would pay; train.compile on does it anyway"
        )
    return pays


def trial(eager: Session, ahead: Ahead) -> tuple[float, int]:
    """Seconds of an update with empty images, all updates taken back afterwards, and the tensors of the network."""
    taken = rehearse(eager, ahead, _WARM + _TIMED)
    return min(taken[_WARM:]), len(eager.state().weights)
