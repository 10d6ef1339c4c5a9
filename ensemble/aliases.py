"""Several names of one class: their probabilities are added where a label is chosen, and shared in a file.

A name may be unknown to the members: a column that the sample asks for and no image was labelled with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from config.errors import ConfigError

Groups = Sequence[Sequence[str]]
Probabilities = NDArray[np.float32]


def parse(texts: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Groups written as `A=B` or `A=B=C`; `ConfigError` for one without `=` or a name in two groups."""
    groups = tuple(tuple(text.split("=")) for text in texts)
    for text, group in zip(texts, groups, strict=True):
        if len(group) < 2 or not all(group):
            raise ConfigError(f"--alias {text!r}: expected the names of one class, NAME=NAME")
    every = [name for group in groups for name in group]
    twice = sorted({name for name in every if every.count(name) > 1})
    if twice:
        raise ConfigError(f"--alias: {twice[0]!r} is named twice; write all names of a class as one NAME=NAME=NAME")
    return groups


def names(known: Sequence[str], groups: Groups) -> set[str]:
    """All names of the groups that hold one of the `known` names."""
    return {name for group in groups if set(group) & set(known) for name in group}


def summed(probabilities: Probabilities, class_names: Sequence[str], groups: Groups) -> Probabilities:
    """`[N, C]` where each name of a group has the probability of them all; rows no longer sum to one."""
    if not groups:
        return probabilities
    together = probabilities.copy()
    for _, known in _known(class_names, groups):
        together[:, known] = probabilities[:, known].sum(axis=1, keepdims=True)
    return together


def shared(
    probabilities: Probabilities, class_names: Sequence[str], groups: Groups, columns: Sequence[str]
) -> Probabilities:
    """`[N, D]` for the names `columns`: those of a group have equal shares of its probability. A column must be a class
    or an alias of one."""
    column_of = {name: column for column, name in enumerate(class_names)}
    wide = np.zeros((len(probabilities), len(columns)), dtype=np.float32)
    known = [column for column, name in enumerate(columns) if name in column_of]
    wide[:, known] = probabilities[:, [column_of[columns[column]] for column in known]]
    for group, members in _known(class_names, groups):
        asked = [column for column, name in enumerate(columns) if name in group]
        if members and asked:
            wide[:, asked] = probabilities[:, members].sum(axis=1, keepdims=True) / len(asked)
    return wide


def _known(class_names: Sequence[str], groups: Groups) -> Iterator[tuple[Sequence[str], list[int]]]:
    column_of = {name: column for column, name in enumerate(class_names)}
    for group in groups:
        yield group, [column_of[name] for name in group if name in column_of]
