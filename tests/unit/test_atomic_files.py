"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from config.places import atomic_path, atomic_write
from tests.unit.test_house import ROOT, sources


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = tmp_path / "a b é.csv"
    atomic_write(file, "old")
    atomic_write(file, "é\n")
    assert file.read_bytes() == b"\xc3\xa9\n"
    atomic_write(file, b"\x00")
    assert file.read_bytes() == b"\x00" and list(tmp_path.iterdir()) == [file]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    atomic_write(file, "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(file) as unfinished:
        unfinished.write_text("half")
        assert unfinished.parent == tmp_path and file.read_text() == "old"
        raise KeyboardInterrupt
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_others_may_read_the_file_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        atomic_write(tmp_path / "missing" / "a.csv", "")
    assert caught.value.filename == str(tmp_path / "missing" / "a.csv")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "a.csv", tmp_path / "link.csv"
    real.parent.mkdir()
    link.symlink_to(Path("disk") / "a.csv")
    for content in ("first", "second"):  # the first one while the link points nowhere
        atomic_write(link, content)
        assert link.is_symlink() and real.read_text() == content
    assert list(real.parent.iterdir()) == [real]


def test_a_pipe_is_written_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        atomic_write(pipe, "text")
        assert os.read(reader, 10) == b"text" and pipe.is_fifo()
    finally:
        os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as caught:
        atomic_write(tmp_path / "file" / "a.csv", "")
    assert caught.value.filename == str(tmp_path / "file" / "a.csv")


def test_no_other_code_names_a_temporary_file_beside_its_target() -> None:
    """Folders, files that several processes fill, and shards in transfer have ways of their own."""
    own = {"config/places.py", "convert/place.py", "data/streaming/shard_cache.py", "training/loop/checkpoint.py"}
    for path in sources():
        if path.relative_to(ROOT).as_posix() not in own:
            assert not re.search(r"with_name\(f?\"\.|\.partial\"|\.tmp\"", path.read_text()), path
