"""The command from its inputs to its files: every kind of both, restarts, shards, and what it refuses."""

import io
import json
import signal
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

import infer
from config.errors import ConfigError, DataError
from infer import job, model_cache, prepare
from infer.io import archive, inputs, shard
from infer.member import ensemble_of
from infer.prepare import Grid
from infer.runner import Runner
from tests.unit import members


@pytest.fixture
def pair(tmp_path):
    """Two members of different preprocessing, and eleven images with their pixels."""
    paths, pixels = members.photographs(tmp_path / "images", count=11)
    folders = [members.checkpoint(tmp_path / "a"), members.checkpoint(tmp_path / "b", 1, members.card(size=16))]
    return folders, paths, pixels


def command(capsys, *words):
    code = infer.main([str(word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def answers(folders, pixels, **options):
    """What each image gets, from the library."""
    said = []
    for folder in folders:
        with infer.load(folder, **options) as model:
            said.append(model.predict(list(pixels)).probabilities.astype(np.float64))
    return np.mean(said, axis=0)


def read_wide(path):
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    return header, [row[0] for row in rows], np.array([[float(cell) for cell in row[1:]] for row in rows])


def sources(tmp_path, paths):
    """Each kind of input, with the IDs that its images get."""
    names = [path.name for path in paths]
    below = [f"images/{name}" for name in names]
    (tmp_path / "list.txt").write_text("\n".join(below) + "\n\n")
    (tmp_path / "images" / "test.csv").write_text("ID\n" + "\n".join(names) + "\n")
    yield [tmp_path / "list.txt"], below
    yield [tmp_path / "images" / "test.csv"], names
    yield paths, [str(path) for path in paths]
    for ending in ("tar", "tar.gz", "tar.bz2", "tar.xz"):
        with tarfile.open(tmp_path / f"t.{ending}", f"w:{ending[4:]}") as packed:
            packed.add(tmp_path / "images", "images")
        yield [tmp_path / f"t.{ending}"], below
    with zipfile.ZipFile(tmp_path / "t.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for path in paths:
            packed.write(path, f"images/{path.name}")
    yield [tmp_path / "t.zip"], below


def test_every_kind_of_input_gives_the_same_answers(pair, tmp_path, capsys):
    folders, paths, pixels = pair
    expected = answers(folders, pixels)
    for number, (given, ids) in enumerate(sources(tmp_path, paths)):
        out = tmp_path / f"{number}.csv"
        code, _, err = command(
            capsys, "--member", *folders, "--images", *given, "--out", out, "--format", "wide", "--batch_size", 4
        )
        assert (code, err) == (0, ""), given
        header, found, said = read_wide(out)
        assert header == ["ID", *members.CLASSES]
        order = [ids.index(name) for name in found]
        assert sorted(order) == list(range(11)) and np.allclose(said, expected[order], atol=2e-6), given
        assert order == list(range(11)) or str(given[0]).endswith(("tar", "gz", "bz2", "xz"))  # as they were packed


@pytest.mark.parametrize("kind", ["png", "tar", "gz", "zip"])
def test_standard_input_takes_an_image_or_an_archive(pair, tmp_path, capsys, monkeypatch, kind):
    folders, paths, pixels = pair
    files = {str(given[0]).rpartition(".")[2]: given[0] for given, _ in sources(tmp_path, paths)} | {"png": paths[3]}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(files[kind].read_bytes())))
    code, _, err = command(capsys, "--member", *folders, "--images", "-", "--out", tmp_path / "s.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert (code, err) == (0, "") and len(rows) == (1 if kind == "png" else 11)
    if kind == "png":
        said = [rows[0]["probabilities"][name] for name in members.CLASSES]
        assert rows[0]["id"] == "stdin" and np.allclose(said, answers(folders, pixels[3:4])[0], atol=2e-6)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "GIF", "WEBP", "AVIF", "JPEG"])
def test_every_format_that_pillow_reads_is_answered(pair, tmp_path, kind):
    folders, _, pixels = pair
    data = io.BytesIO()
    Image.fromarray(pixels[0]).save(data, kind, **({"lossless": True} if kind == "WEBP" else {}))
    shown = np.asarray(Image.open(io.BytesIO(data.getvalue())).convert("RGB"))
    with infer.load(folders[0]) as model:
        said, expected = (model.predict([one]).probabilities for one in (data.getvalue(), shown))
    assert np.allclose(said, expected, atol=0.02)


def test_results_of_every_kind_say_the_same(pair, tmp_path, capsys):
    folders, paths, pixels = pair
    paths[4].write_bytes(b"no image")
    expected = np.delete(answers(folders, pixels), 4, axis=0)
    outs = [tmp_path / name for name in ("s.csv", "s.jsonl", "s.parquet", "s.npz")]
    words = ["--member", *folders, "--images", tmp_path / "images", "--on_bad_image", "row"]
    code, out, err = command(capsys, *words, "--out", *outs)
    assert code == 0 and "unreadable: 1" in out and err.startswith("warning: the first unreadable image: ")
    names, good = [path.name for path in paths], [0, 1, 2, 3, *range(5, 11)]
    with np.load(outs[3]) as held:
        assert held["ids"].tolist() == names and np.isnan(held["probabilities"][4]).all()
        assert np.allclose(held["probabilities"][good], expected, atol=2e-6) and "004.png" in held["errors"][4]
        exact = held["probabilities"]
    lines = [json.loads(line) for line in outs[1].read_text().splitlines()]
    assert set(lines[4]) == {"id", "error"} and [line["id"] for line in lines] == names
    given = [[line["probabilities"][name] for name in members.CLASSES] for line in np.array(lines)[good]]
    assert np.array_equal(np.array(given, np.float32), exact[good])
    table = parquet.read_table(outs[2]).to_pydict()
    assert table["error"][4] and table["label"][4] is None and table["ant"][4] is None and table["id"] == names
    assert np.array_equal(np.array([table["bee"][row] for row in good], np.float32), exact[good, 1])
    rows = [line.split(",", 1) for line in outs[0].read_text().splitlines()[1:]]
    labels = [members.CLASSES[best] for best in exact[good].argmax(axis=1)]
    assert rows[4] == ["004.png", ""] and [rows[row][1] for row in good] == labels == [lines[r]["label"] for r in good]
    beside = (tmp_path / "s_probabilities.csv").read_text().splitlines()
    assert beside[0].endswith(",error") and beside[5].startswith("004.png,,,,") and "cannot be decoded" in beside[5]
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*"))


def test_an_unreadable_image_stops_and_resume_goes_on_after_it_was_mended(pair, tmp_path, capsys):
    folders, paths, _ = pair
    words = ["--member", *folders, "--images", tmp_path / "images", "--format", "wide", "--batch_size", 2]
    words += ["--on_bad_image", "error"]
    assert command(capsys, *words, "--out", tmp_path / "whole.csv")[0] == 0
    data = paths[7].read_bytes()
    paths[7].write_bytes(data[:60])
    out = tmp_path / "s.csv"
    code, _, err = command(capsys, *words, "--out", out)
    assert code == 1 and "007.png" in err and "add --resume" in err and err.count("\n") == 1 and not out.exists()
    code, _, err = command(capsys, *words, "--out", out)
    assert code == 2 and "add --resume" in err and err.count("\n") == 1
    code, _, err = command(capsys, *words, "--out", out, "--resume", "--tta", "flip")
    assert code == 2 and "was begun with other ensemble" in err
    paths[7].write_bytes(data)
    with (tmp_path / "s.csv.part" / "shard_0_of_1" / "answers.f32").open("ab") as file:
        file.write(b"\x01" * 17)  # what a kill may leave behind
    code, _, err = command(capsys, *words, "--out", out, "--resume")
    assert (code, err) == (0, "") and out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not (tmp_path / "s.csv.part").exists()


@pytest.mark.parametrize("keep", ["all", "one"])
def test_the_bytes_are_the_same_for_every_worker_count_shard_and_memory(pair, tmp_path, capsys, keep):
    folders, _, _ = pair
    words = ["--member", *folders, "--images", tmp_path / "images", "--tta", "five", "--batch_size", 2]
    one = [tmp_path / "one.npz", tmp_path / "one.csv", tmp_path / "one.parquet"]
    assert command(capsys, *words, "--out", *one, "--workers", 1, "--format", "wide")[0] == 0
    for workers in (2, 5):
        out = tmp_path / f"{workers}.npz"
        assert command(capsys, *words, "--out", out, "--workers", workers, "--in_memory", keep)[0] == 0
        assert out.read_bytes() == one[0].read_bytes()
    many = [tmp_path / "many.npz", tmp_path / "many.csv", tmp_path / "many.parquet"]
    for part in ("2/4", "0/4", "3/4", "0/4", "1/4"):  # one of them twice, as after a crash
        code, said, err = command(capsys, *words, "--out", *many, "--shard", part, "--format", "wide")
        assert (code, err) == (0, "") and ("wrote" in said) == (part == "1/4"), part
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, many, strict=True))


def test_ranks_of_launchers_are_shards(tmp_path):
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([["127.0.0.1:1"], ["127.0.0.1:2"], ["127.0.0.1:3"]]))
    assert shard.of_rank({"RANK": "1", "WORLD_SIZE": "4"}) == (1, 4)
    assert shard.of_rank({"MLX_RANK": "2", "MLX_HOSTFILE": str(hosts)}) == (2, 3)
    assert shard.of_rank({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}) == (0, 2)
    assert shard.of_rank({}) == shard.WHOLE == (0, 1)
    for text in ("4/4", "1", "-1/3", "a/b"):
        with pytest.raises(ConfigError, match="expected i/n"):
            shard.parse(text)
    for count, size, unit in ((11, 2, 1), (100, 8, 3), (1, 4, 1)):
        grid = Grid(count, size)
        parts = [shard.Shard(number, 3).cut(grid, unit).batches for number in range(3)]
        assert [number for part in parts for number in part] == list(grid.batches)
        assert all(part.start % unit == 0 for part in parts if len(part))


def test_ctrl_c_says_how_to_go_on_and_the_files_are_the_same(pair, tmp_path, capsys):
    folders, _, _ = pair
    stopping = (
        "import sys, os, signal, infer, tests.numpy_engine\n"
        "from infer.runner import Runner\n"
        "stream = Runner.stream\n"
        "def stopping(*given):\n"
        "    for number, part in enumerate(stream(*given)):\n"
        "        if number == 3: os.kill(os.getpid(), signal.SIGINT)\n"
        "        yield part\n"
        "Runner.stream = stopping\n"
        "sys.exit(infer.main(sys.argv[1:]))\n"
    )
    words = ["--member", *folders, "--images", tmp_path / "images", "--batch_size", 2, "--out"]
    given = [sys.executable, "-c", stopping, *map(str, words), str(tmp_path / "s.npz")]
    stopped = subprocess.run(given, capture_output=True, text=True, cwd=Path(job.__file__).parents[1])
    assert stopped.returncode == 128 + signal.SIGINT and "--resume" in stopped.stderr
    assert stopped.stderr.count("\n") == 1 and not (tmp_path / "s.npz").exists()
    kept = (tmp_path / "s.npz.part" / "shard_0_of_1" / "answers.f32").stat().st_size
    assert 0 < kept < 11 * 3 * 4
    assert command(capsys, *words, tmp_path / "s.npz", "--resume")[0] == 0
    assert command(capsys, *words, tmp_path / "whole.npz")[0] == 0
    assert (tmp_path / "s.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


@pytest.mark.parametrize("launched", ["by torchrun", "with --shard"])
def test_a_killed_rank_that_is_started_again_loses_nothing(pair, tmp_path, capsys, monkeypatch, launched):
    folders, _, _ = pair
    dying = (
        "import sys, os, signal, infer, tests.numpy_engine\n"
        "from infer.io.journal import Journal\n"
        "append, batches = Journal.append, []\n"
        "def dies_while_writing(self, probabilities, errors):\n"
        "    batches.append(probabilities)\n"
        "    if len(batches) == 3:\n"
        "        self._answers.write(probabilities.tobytes()[:7])\n"
        "        self._answers.flush()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    append(self, probabilities, errors)\n"
        "Journal.append = dies_while_writing\n"
        "sys.exit(infer.main(sys.argv[1:]))\n"
    )
    words = ["--member", *folders, "--images", tmp_path / "images", "--batch_size", 1, "--tta", "flip", "--out"]
    assert command(capsys, *words, tmp_path / "whole.npz", tmp_path / "whole.csv")[0] == 0
    words += [tmp_path / "s.npz", tmp_path / "s.csv"]

    def started(rank):
        monkeypatch.setenv("RANK" if launched == "by torchrun" else "_", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        return [*words, "--resume", *([] if launched == "by torchrun" else ["--shard", f"{rank}/2"])]

    given = [sys.executable, "-c", dying, *map(str, started(1))]
    assert subprocess.run(given, cwd=Path(job.__file__).parents[1]).returncode == -signal.SIGKILL
    assert (tmp_path / "s.npz.part" / "shard_1_of_2" / "answers.f32").stat().st_size == 2 * 3 * 4 + 7
    code, said, _ = command(capsys, *started(0))
    assert code == 0 and "the last shard to end writes the files" in said and not (tmp_path / "s.npz").exists()
    code, said, _ = command(capsys, *started(1))
    assert code == 0 and "wrote" in said
    for name in ("npz", "csv"):
        assert (tmp_path / f"s.{name}").read_bytes() == (tmp_path / f"whole.{name}").read_bytes()


def test_two_processes_do_not_write_one_journal(pair, tmp_path, capsys):
    folders, _, _ = pair
    place = tmp_path / "s.npz.part" / "shard_0_of_1"
    place.mkdir(parents=True)
    words = ["--member", *folders, "--images", tmp_path / "images", "--out", tmp_path / "s.npz"]
    with job.filelock.FileLock(place / "lock"):
        code, _, err = command(capsys, *words)
    assert code == 2 and "another process" in err and err.count("\n") == 1
    assert command(capsys, *words)[0] == 0


def test_the_batches_in_memory_are_bounded_whatever_the_number_of_images(tmp_path):
    """What was read but not given out yet stays within the depth, although the consumer is the slow part."""
    image = np.zeros((8, 8, 3), np.uint8)
    read = []
    many = inputs.Inputs([str(number) for number in range(5000)], lambda number: read.append(number) or image)
    card = members.card(size=8)
    batches = prepare.prepare(many, [card.preprocessing], Grid(5000, 10), workers=4)
    most = 0
    for number, batch in enumerate(batches):
        if number % 50 == 0:
            most = max(most, len(read) - 10 * (number + 1))
        assert batch.images[0].shape == (10, 8, 8, 3)
    assert most <= 10 * prepare.AHEAD and sorted(read) == list(range(5000))


def test_members_rotate_when_the_measured_memory_is_short(pair, monkeypatch):
    folders, _, pixels = pair
    with infer.load(folders[0]) as model:
        assert model._members.resident
    free = iter([100, 40, 40, *[40] * 20])  # the first member takes 60 of 100
    monkeypatch.setattr(model_cache, "free_memory", lambda: next(free))
    both = ensemble_of([str(folder) for folder in folders])
    with Runner(both) as runner:
        assert not runner._members.resident and not runner._members._open
        said = runner.predict(list(pixels)).probabilities
    assert np.allclose(said, answers(folders, pixels), atol=2e-6)


def test_many_threads_get_their_own_answers(pair):
    folders, _, pixels = pair
    with infer.load(folders[0], views=["flip"]) as model, ThreadPoolExecutor(6) as pool:
        expected = [model.predict([image]).probabilities for image in pixels]
        said = list(pool.map(lambda number: model.predict([pixels[number % 11]]).probabilities, range(66)))
    assert all(np.array_equal(one, expected[number % 11]) for number, one in enumerate(said))


def packed(*files):
    """A tar in memory of (name, bytes, type)."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as out:
        for name, content, kind in files:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), kind, "/etc/passwd"
            out.addfile(info, io.BytesIO(content))
    return io.BytesIO(data.getvalue())


def test_archives_are_read_without_trust(tmp_path, monkeypatch):
    file = tarfile.REGTYPE
    found = archive.open(
        packed(
            ("b.png", b"2", file), ("a.png", b"1", file), ("link.png", b"", tarfile.SYMTYPE), ("x.txt", b"3", file),
            ("__MACOSX/._a.png", b"4", file), ("dev.png", b"", tarfile.CHRTYPE),
        ),
        "t.tar",
    )  # fmt: skip
    assert found.ids == ["b.png", "a.png"] and [found.read(n) for n in (0, 1, 0)] == [b"2", b"1", b"2"]
    for name in ("../a.png", "/a.png", "C:\\a.png", "a/../../b.png"):
        with pytest.raises(DataError, match="outside of itself"):
            archive.open(packed((name, b"1", file)), "t.tar")
    with pytest.raises(DataError, match=r"t.tar: holds 'a.png' twice"):
        archive.open(packed(("a.png", b"1", file), ("a.png", b"2", file)), "t.tar")
    with pytest.raises(DataError, match="holds no images"):
        archive.open(packed(("a.txt", b"1", file)), "t.tar")
    whole = packed(("a.png", b"1" * 2000, file)).getvalue()
    with pytest.raises(DataError, match=r"t.tar: is a damaged archive"):
        archive.open(io.BytesIO(whole[:1500]), "t.tar")
    monkeypatch.setattr(archive, "FILE_LIMIT", 1000)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a.png", bytes(5000))
    for data in (packed(("a.png", bytes(5000), file)), bomb):
        data.seek(0)
        with pytest.raises(DataError, match=r"a.png: unpacks to more than"):
            archive.open(data, "t").read(0)


def test_a_bad_image_in_an_archive_is_a_row(pair, tmp_path, capsys):
    folders, paths, _ = pair
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as out:
        for path in paths:
            out.write(path, path.name)
    data = bytearray((tmp_path / "t.zip").read_bytes())
    data[data.index(b"\x89PNG") + 50] ^= 255  # the CRC of the first file no longer fits
    (tmp_path / "t.zip").write_bytes(data)
    words = ["--member", folders[0], "--images", tmp_path / "t.zip", "--on_bad_image", "row"]
    assert command(capsys, *words, "--out", tmp_path / "s.jsonl")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert "cannot be unpacked" in rows[0]["error"] and all("label" in row for row in rows[1:])


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--images", "absent"], "absent: does not exist; give a folder, a CSV, a .txt list"),
        (
            ["--images", "IMAGES", "--device", "cuda"],
            "--device: is for members on torch or mlx, and these run on numpy",
        ),
        (["--images", "IMAGES", "--override", "2:device=cpu"], "N the number of a member, 1 to 1"),
        (["--images", "IMAGES", "--override", "1:devise=cpu"], "the keys: device, precision"),
        (["--images", "IMAGES", "--override", "1:provider=cpu"], "numpy takes no option 'provider'; it takes none"),
        (["--images", "IMAGES", "--tta", "flop"], "view 'flop' is not known; did you mean flip"),
        (["--images", "IMAGES", "--merge", "median"], "merge 'median' is not known"),
        (["--images", "IMAGES", "--shard", "3/2"], "--shard '3/2': expected i/n"),
        (["--images", "a.png", "b.png"], "2 of 2 are no files"),
    ],
)
def test_bad_words_are_one_line_before_any_work(tmp_path, capsys, words, found):
    folder = members.checkpoint(tmp_path / "a")
    members.photographs(tmp_path / "images")
    given = [str(tmp_path / "images") if word == "IMAGES" else word for word in words]
    code, out, err = command(capsys, "--member", folder, *given, "--out", tmp_path / "s.csv")
    assert code in (1, 2) and out == "" and found in err and err.count("\n") == 1
    assert not (tmp_path / "s.csv").exists() and not list(tmp_path.glob("*.part"))


def test_other_faults_of_outputs_are_told_first(tmp_path, capsys, monkeypatch):
    folder, images = members.checkpoint(tmp_path / "a"), tmp_path / "images"
    members.photographs(images)
    (tmp_path / "taken.jsonl").write_text("precious")
    words = ["--member", folder, "--images", images, "--out"]
    assert "overwritten" in command(capsys, *words, tmp_path / "taken.jsonl")[2]
    assert "ends in .csv, .jsonl" in command(capsys, *words, tmp_path / "s.xlsx")[2]
    monkeypatch.setattr("infer.io.outputs.installed", lambda _module: False)
    assert 'pip install -e ".[parquet]"' in command(capsys, *words, tmp_path / "s.parquet")[2]
    assert (tmp_path / "taken.jsonl").read_text() == "precious" and not (tmp_path / "s.xlsx").exists()
