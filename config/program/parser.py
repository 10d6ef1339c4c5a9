"""The parser of every command that takes options: what is wrong with a command line is one line, as for settings.

Nothing that takes time is imported here: python -m doctor runs with it where packages are broken or missing.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from config.errors import ConfigError
from config.text import choices, nearest, plain, shown


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` without abbreviated options whose errors are `error: ...; see PROG --help`, with exit code 2.

    `passes` says which unknown options (`--NAME`) are left to the caller of `parse_known_args`; the others are refused,
    with the nearest that there is.
    """

    def __init__(self, prog: str | None = None, *, passes: Callable[[str], bool] | None = None, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **options)
        self._passes = passes

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse's, which would name a missing option first where it was only misspelled."""
        words = list(sys.argv[1:] if args is None else args)
        commands = next((action for action in self._actions if isinstance(action, argparse._SubParsersAction)), None)
        first = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
        self._refuse_unknown(words if commands is None else words[:first])
        if commands is not None and not {"-h", "--help"} & set(words[:first]) and first == len(words):
            self.error(f"no command given; there are {', '.join(commands.choices)}")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """End the process with the message."""
        text = message.removeprefix("argument ")
        self.exit(ConfigError.exit_code, f"error: {text}{' ' if text.endswith('?') else '; '}see {self.prog} --help\n")

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        flags = [flag for action in self._actions for flag in action.option_strings]
        for word in words[: words.index("--")] if "--" in words else words:
            name = word.partition("=")[0]
            if not name.startswith("--") or " " in name or name in flags or (self._passes and self._passes(name)):
                continue
            abbreviated = [flag for flag in flags if flag.startswith(name)]
            self.error(f"{plain(name)}: no such option{nearest(name, abbreviated or flags).removesuffix(';')}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"found {shown(value)}{choices(str(value), map(str, action.choices))}")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            if action.type not in (int, float):
                raise
            kind = "a whole number" if action.type is int else "a number"
            raise argparse.ArgumentError(action, f"found {shown(arg_string)}; expected {kind}") from None


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an option that takes a whole number, `least` or more, and `most` or less."""
    bounds = f">= {least}" if most is None else f"from {least} to {most}"

    def convert(text: str) -> int:
        with contextlib.suppress(ValueError):
            value = int(text)
            if least <= value and (most is None or value <= most):
                return value
        raise argparse.ArgumentTypeError(f"found {shown(text)}; expected a whole number {bounds}")

    return convert


def fraction(text: str) -> float:
    """The type of an option that takes a number from 0 to 1."""
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"found {shown(text)}; expected a number from 0 to 1")
