"""Writes artefacts atomically: in a folder beside the target, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from config.errors import ConvertError


@contextlib.contextmanager
def atomic_artefact(target: Path, overwrite: bool, also: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yields a path of the target's name in a temporary folder beside it; moved to `target` when all went well.

    `target` may become a file or a folder; what lies beside it under its name and a suffix of `also` goes along, first.
    Raises `ConvertError` when it exists and may not be replaced, or when the place cannot be written; an older
    one stays until the new one is complete.
    """
    refuse_existing(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield folder / target.name
        beside = [target.with_name(target.name + suffix) for suffix in also]
        new = [file for file in beside if (folder / file.name).exists()]
        for file in new:
            shutil.copymode(folder / target.name, folder / file.name)  # onnx keeps it from all but its owner
            (folder / file.name).replace(file)
        _move(folder / target.name, target, folder / "replaced")
        for file in set(beside) - set(new):  # an older one's
            file.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def temporaries(folder: Path) -> Iterator[None]:
    """Within it, temporary files of this process go into `folder`: large models need much space, and libraries leave
    files behind."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def refuse_existing(target: Path, overwrite: bool) -> None:
    """`ConvertError` when `target` exists and may not be replaced: checked before any work."""
    if target.exists() and not overwrite:
        raise ConvertError(f"{target}: exists already; delete it, give another --out, or --overwrite")


def _move(new: Path, target: Path, aside: Path) -> None:
    if not target.is_dir():
        new.replace(target)
        return
    target.replace(aside)
    try:
        new.replace(target)
    except OSError:
        aside.replace(target)
        raise


def _unwritable(target: Path, error: OSError) -> ConvertError:
    reason = error.strerror or str(error)
    if isinstance(error, shutil.Error):  # of a folder's copy: a list of (source, target, reason)
        reason = str(error.args[0][0][2])
    full = os.strerror(errno.ENOSPC)
    if full in reason:
        return ConvertError(f"{target}: cannot be written ({full}); free some space")
    return ConvertError(f"{target}: cannot be written ({reason}); give an --out that can be written")
