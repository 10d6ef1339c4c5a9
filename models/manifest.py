"""`manifest.json` of a checkpoint folder: the SHA-256 of each of its files, written last and verified first.

It says nothing about what is in the files; `models.weights.loading` and the checkpoint reader do.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from config.errors import CheckpointError

NAME = "manifest.json"
# A reader picks these up by their mere presence, so one that the manifest does not list cannot be trusted.
_READ_BY_PRESENCE = (".safetensors", ".json")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(folder: Path) -> None:
    """Write `folder/manifest.json` over the files that now lie directly in `folder`."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != NAME)
    text = json.dumps({p.name: sha256(p) for p in files}, indent=1)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def verify(folder: Path) -> None:
    """Compare a checkpoint folder with its manifest.

    Raises `CheckpointError`, naming the file, when one is missing, changed, or (a weights or state file) not listed.
    Files of other kinds may lie beside the checkpoint.
    """
    listed = _read(folder)
    for name, expected in listed.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: listed in {NAME} but missing; use another checkpoint or copy it again")
        if sha256(path) != expected:
            raise CheckpointError(
                f"{path}: its SHA-256 is not the one in {NAME}, so it is damaged or was changed; "
                "use another checkpoint or copy it again"
            )
    for path in sorted(folder.iterdir()):
        if path.suffix in _READ_BY_PRESENCE and path.name not in listed and path.name != NAME:
            raise CheckpointError(f"{path}: not listed in {NAME}; move this file out of the checkpoint folder")


def _read(folder: Path) -> dict[str, str]:
    path = folder / NAME
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: has no {NAME}, so it is no whole checkpoint; name a folder such as RUN/fold_0/best"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: unreadable ({error}); use another checkpoint or copy it again") from error
    if not isinstance(listed, dict) or not all(Path(n).name == n and isinstance(h, str) for n, h in listed.items()):
        raise CheckpointError(f"{path}: not a table of file names and SHA-256; use another checkpoint")
    return listed
