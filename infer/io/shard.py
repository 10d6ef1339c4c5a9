"""The shard of the images that this process predicts: by `--shard`, or by its rank under torchrun, mlx.launch or MPI.

A shard consists of complete batches, so that its predictions are bit-equal to those of one process over all images.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from config.errors import ConfigError
from infer.prepare import Grid


class Shard(NamedTuple):
    """Shard `number`, from 0, `of` so many."""

    number: int = 0
    of: int = 1

    def cut(self, grid: Grid, unit: int) -> Grid:
        """The shard's batches of the grid; shards begin at multiples of `unit` batches."""
        units = -(-len(grid.batches) // unit)
        first, last = (units * number // self.of * unit for number in (self.number, self.number + 1))
        return dataclasses.replace(grid, first=first, last=min(last, len(grid.batches)))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE = Shard()


def parse(text: str) -> Shard:
    """`i/n` with i from 0 to n - 1; `ConfigError` for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ConfigError(f"--shard {text!r}: expected i/n with i from 0 to n - 1, such as 0/4")
    return Shard(int(match[1]), int(match[2]))


def of_rank(environment: Mapping[str, str]) -> Shard:
    """The shard of this process's rank; all images where it was launched alone."""
    rank, size = environment.get("RANK"), environment.get("WORLD_SIZE")
    if "MLX_RANK" in environment:
        rank, size = environment["MLX_RANK"], environment.get("MLX_WORLD_SIZE") or _hosts(environment)
    elif "OMPI_COMM_WORLD_RANK" in environment:
        rank, size = environment["OMPI_COMM_WORLD_RANK"], environment.get("OMPI_COMM_WORLD_SIZE")
    if rank is None or size is None:
        return WHOLE
    if not rank.isdecimal() or not size.isdecimal() or int(rank) >= int(size):
        raise ConfigError(f"the environment names rank {rank!r} of {size!r}; give --shard i/n")
    return Shard(int(rank), int(size))


def _hosts(environment: Mapping[str, str]) -> str:
    """The number of processes in the ring of mlx.launch: the entries of its host file."""
    file = environment.get("MLX_HOSTFILE", "")
    try:
        return str(len(json.loads(Path(file).read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"MLX_HOSTFILE {file!r}: is no list of hosts ({error}); give --shard i/n") from error
