"""What a command line asks for beside settings: a stage of a campaign, a member, a fold. Read by `load`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from config import faults
from config.usage import MODES

OPTIONS = {
    "config": "a YAML file",
    "member": "the name of a member",
    "mode": f"one of {', '.join(MODES)}",
    "fold": "a whole number >= 0",
}
FLAGS = {
    "--help": "help",
    "-h": "help",
    "--version": "version",
    "--print_config": "print_config",
    "--dry_run": "dry_run",
    "--tune": "tune",
}
_LINE = "command line"
_OF_ONE = ("train", "tune", "")  # the modes that one member alone is for


@dataclass(frozen=True)
class RunRequest:
    """`mode` "" is a single run, `member` "" is not chosen, `fold` None is all folds; `tune` goes with full;
    `dry_run` measures and stops."""

    mode: str = ""
    member: str = ""
    fold: int | None = None
    tune: bool = False
    dry_run: bool = False


def request(options: Mapping[str, Sequence[str]], flags: set[str]) -> tuple[RunRequest, list[str]]:
    """What the options say, the last of each, and what is wrong with them."""
    last = {name: values[-1] for name, values in options.items() if values}
    mode, fold, found = last.get("mode", ""), last.get("fold", ""), []
    if mode and mode not in MODES:
        found.append(f"mode: found {faults.shown(mode)} ({_LINE}){faults.nearest(mode, list(MODES))} {_list()}")
    for name in ("member", "fold"):
        if name in last and mode in MODES and mode not in _OF_ONE:
            found.append(f"{name}: --mode {mode} ({_LINE}) is for all members and folds; leave it out, or --mode train")
    if fold and not (fold.isascii() and fold.isdigit()):
        found.append(f"fold: found {faults.shown(fold)} ({_LINE}); expected {OPTIONS['fold']}")
    if "tune" in flags and mode != "full":
        found.append(f"tune: goes with --mode full ({_LINE}); --mode tune searches alone")
    number = int(fold) if fold.isascii() and fold.isdigit() else None
    return RunRequest(mode, last.get("member", ""), number, "tune" in flags, "dry_run" in flags), found


def _list() -> str:
    return f"there are {', '.join(MODES)}"
