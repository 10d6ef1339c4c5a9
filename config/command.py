"""What a command line asks for beside settings: a stage of a campaign, a member, a fold. Read by `load`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from config.text import choices, shown
from config.usage import MODES

OPTIONS = {
    "config": "a YAML file",
    "member": "the name of a member",
    "mode": f"one of {', '.join(MODES)}",
    "fold": "a whole number >= 0",
    "spread": "folds",
}
FLAGS = {"-h": "help"} | {f"--{name}": name for name in ("help", "version", "print_config", "dry_run", "tune")}
_LINE = "command line"
_MEMBER_MODES = ("train", "tune", "")  # the modes that take a single member
SHARED_MODES = ("train", "tune", "full")  # the modes whose work several processes share


@dataclass(frozen=True)
class RunRequest:
    """`mode` "" is a single run, `member` "" is not chosen, `fold` None is all folds; `tune` goes with full.
    With `spread`, the processes of a launcher work on different folds, not together on one. `dry_run` measures and
    stops."""

    mode: str = ""
    member: str = ""
    fold: int | None = None
    tune: bool = False
    spread: bool = False
    dry_run: bool = False


def request(options: Mapping[str, Sequence[str]], flags: set[str]) -> tuple[RunRequest, list[str]]:
    """What the options say, the last of each, and what is wrong with them."""
    last = {name: values[-1] for name, values in options.items() if values}
    mode, fold, spread, faults = last.get("mode", ""), last.get("fold", ""), last.get("spread", ""), []
    if mode and mode not in MODES:
        faults.append(f"mode: found {shown(mode)} ({_LINE}){choices(mode, MODES)}")
    for name in ("member", "fold"):
        if name in last and mode in MODES and mode not in _MEMBER_MODES:
            faults.append(
                f"{name}: --mode {mode} ({_LINE}) is for all members and folds; leave it out, or --mode train"
            )
    number = int(fold) if fold.isascii() and fold.isdigit() else None
    if fold and number is None:
        faults.append(f"fold: found {shown(fold)} ({_LINE}); expected {OPTIONS['fold']}")
    if "tune" in flags and mode != "full":
        faults.append(f"tune: goes with --mode full ({_LINE}); --mode tune searches alone")
    if spread not in ("", "folds"):
        faults.append(f"spread: found {shown(spread)} ({_LINE}); expected {OPTIONS['spread']}")
    elif spread and mode not in SHARED_MODES:
        faults.append(
            f"spread: goes with --mode {', '.join(SHARED_MODES)} ({_LINE}); a single run's folds are not shared"
        )
    return RunRequest(mode, last.get("member", ""), number, "tune" in flags, bool(spread), "dry_run" in flags), faults
