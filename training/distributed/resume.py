"""The folder and the checkpoint that all processes of a run share."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from backends.group import Group
from config.errors import CheckpointError
from training.distributed.ranks import decided, together
from training.loop import checkpoint


def newest_checkpoint(group: Group, folder: Path, say: Callable[[str], None]) -> Path | None:
    """`checkpoint.newest` as rank 0 finds it; `CheckpointError` where another rank does not see it."""
    name = decided(group, lambda: (path := checkpoint.newest(folder, say)) and path.name)
    if name is None:
        return None
    require(group, folder / name)
    return folder / name


def require(group: Group, path: Path) -> None:
    """`CheckpointError` on all ranks where a host does not see a folder of rank 0's."""

    def check() -> None:
        if not path.is_dir():
            host = socket.gethostname()
            raise CheckpointError(f"{path}: {host} does not see it; --out is to be a folder of all hosts")

    together(group, check)
