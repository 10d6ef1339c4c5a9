"""Names that a terminal cannot show, and file names that are no UTF-8, from the images to the submission."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import infer
from infer.io import archive
from tests.unit import members
from training import cli

PROGRAMS = ("infer", "data", "training", "convert", "models", "backends")
ROOT = Path(infer.__file__).parents[1]


@pytest.mark.parametrize("program", ["train_torch.py", *PROGRAMS])
def test_every_command_escapes_what_its_output_cannot_take(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", streams[0])
        patched.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit):
            if program == "train_torch.py":
                cli.main("torch", ["--help"])
            else:
                importlib.import_module(f"{program}.__main__").main(["--help"])
    for stream in streams:
        stream.write("고양이 \udcff")
        stream.flush()
        assert stream.buffer.getvalue().endswith(rb"\uace0\uc591\uc774 \udcff")


@pytest.fixture
def strange(tmp_path: Path) -> tuple[Path, Path]:
    """A member of Korean classes, and three images: two have names that are no UTF-8, one of these is damaged."""
    if sys.platform == "darwin":
        pytest.skip("its file systems take UTF-8 names alone")
    folder = members.checkpoint(tmp_path / "m", of=members.card(classes=("개", "고양이")))
    paths, _ = members.photographs(tmp_path / "images", count=3)
    paths[1].rename(tmp_path / "images" / os.fsdecode(b"b\xff.png"))
    paths[2].rename(tmp_path / "images" / os.fsdecode(b"c\xfe.png")).write_bytes(b"no image")
    return folder, tmp_path / "images"


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}, {"PYTHONIOENCODING": "ascii"}])
def test_names_that_are_no_utf8_reach_the_submission(
    strange: tuple[Path, Path], tmp_path: Path, locale: dict[str, str]
) -> None:
    folder, images = strange
    words = ["--member", str(folder), "--images", str(images), "--out", "s.csv", "s.jsonl", "s.npz"]
    code = "import runpy, tests.numpy_engine; runpy.run_module('infer', run_name='__main__', alter_sys=True)"
    given = [sys.executable, "-c", code, *words]
    environment = {**os.environ, **locale, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(given, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert rb"c\xfe.png" in done.stderr
    rows = [line.partition(",")[0] for line in (tmp_path / "s.csv").read_text(encoding="utf-8").splitlines()]
    assert rows == ["ID", "000.png", r"b\xff.png", r"c\xfe.png"]
    assert infer.main(["validate", str(tmp_path / "s.csv"), "--sample", str(tmp_path / "s.csv")]) == 0


def test_named_files_and_archives_of_such_names_are_answered(strange: tuple[Path, Path], tmp_path: Path) -> None:
    import tarfile

    folder, images = strange
    named = [str(path) for path in sorted(images.iterdir())]
    assert infer.main(["--member", str(folder), "--images", *named, "--out", str(tmp_path / "a.csv")]) == 0
    with tarfile.open(tmp_path / "t.tar", "w") as packed:
        packed.add(images, "images")
    assert (
        infer.main(["--member", str(folder), "--images", str(tmp_path / "t.tar"), "--out", str(tmp_path / "b.csv")])
        == 0
    )
    assert r"images/b\xff.png," in (tmp_path / "b.csv").read_text(encoding="utf-8")
    with (tmp_path / "t.tar").open("rb") as file:
        assert r"images/b\xff.png" in archive.open(file, "t.tar").ids
