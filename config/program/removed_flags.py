"""Flags and commands that earlier versions had under other names, or had at all: they are refused with what to do."""

from __future__ import annotations

from collections.abc import Sequence

from config.errors import ConfigError

# Old flag -> new flag.
RENAMED = {
    "--second_look": "--retry_deskewed",
    "--one_image": "--single_input",
    "--least": "--min_per_class",
    "--blocks": "--ops",
}
# Program, and its command or flag -> why it is gone.
_PAIRS = "second heads for confused classes were removed"
REMOVED = {
    ("python -m infer", "--pairs"): f"{_PAIRS}; leave it out",
    ("python -m training", "pair"): f"{_PAIRS}; python -m training report lists them",
}


def refuse(words: Sequence[str], prog: str) -> None:
    """`ConfigError` where a command line of `prog` has a flag or a command that was renamed or removed."""
    for i, word in enumerate(words):
        flag = word.partition("=")[0]
        if flag in RENAMED:
            raise ConfigError(f"{flag} is now {RENAMED[flag]}")
        if (prog, flag) in REMOVED and (i == 0 or flag.startswith("--")):
            raise ConfigError(f"{flag}: {REMOVED[prog, flag]}")
