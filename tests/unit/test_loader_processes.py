"""Worker processes of the loader: the batches of threads to the bit, the same errors, and nothing left however it
ends."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from config.errors import ConfigError, DataError
from config.sections.augment import Augment
from config.sections.data import Data
from data.augment import transforms as augment
from data.cache import disk
from data.cache.images import Images
from data.loading import pace, processes
from data.loading.loader import Loaded, Loader
from data.loading.sampler import epoch_order
from models.card import Preprocessing
from tests.unit import transforms
from tests.unit.test_campaign import NEVER, final, settings
from training.run import train_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no worker processes")
COUNT, SIZE, ROOT = 23, 16, Path(__file__).parents[2]
PREP = Preprocessing(size=SIZE)
Copy = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        name = f"{i:02d} é.{'jpg' if i % 2 else 'png'}"
        Image.fromarray(rng.integers(0, 256, (40 + i, 44, 3), dtype=np.uint8)).save(folder / name)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module", autouse=True)
def started() -> Any:
    """Two workers that most of the tests share, as loaders of one run do."""
    pool = processes.workers(2)
    yield pool
    pool.close()


def loader(paths: list[Path], count: int | str, section: Augment | None = None, **options: Any) -> Loader:
    transform = augment.by_epoch(section or Augment(level="hard"), PREP, 3)
    return Loader(paths, transform, SIZE, 5, 2, 1, processes=count, **options)  # type: ignore[arg-type]


def copies(batches: Any) -> list[Copy]:
    return [(b.images.copy(), b.index.copy(), b.weight.copy()) for b in batches]


def assert_same(some: list[Copy], others: list[Copy]) -> None:
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_batches_are_those_of_threads_to_the_bit(count: int, paths: list[Path]) -> None:
    order = np.r_[epoch_order(COUNT, 1, 4), 3, 3, 9]  # a sample may stand several times
    made = loader(paths, count)
    for epoch in (0, 1):
        expected = copies(loader(paths, 0).epoch(order, epoch))
        assert_same(copies(made.epoch(order, epoch)), expected)
        assert_same(copies(made.epoch(order, epoch, first_batch=3)), expected[3:])
    assert list(made.epoch(np.array([], np.int64))) == []


@pytest.mark.parametrize("policy", ["rand", "trivial", "three"])
def test_every_kind_of_transform_reaches_the_workers(policy: Any, paths: list[Path]) -> None:
    section = Augment(policy=policy)
    expected = copies(loader(paths, 0, section).epoch(np.arange(COUNT)))
    assert_same(copies(loader(paths, 2, section).epoch(np.arange(COUNT))), expected)
    fixed = augment.train_transform(section, PREP)
    assert_same(copies(Loader(paths, fixed, SIZE, 5, 2, 1, processes=2).epoch(np.arange(COUNT))), expected)


def test_all_loaders_and_epochs_share_the_workers(paths: list[Path], started: processes.Workers) -> None:
    before = {child.pid for child in psutil.Process().children()}
    made, other = loader(paths, 2), loader(paths[:9], 2)
    both = zip(made.epoch(np.arange(9), 0), other.epoch(np.arange(9), 1), strict=True)
    found = [(copies([one]), copies([two])) for one, two in both]
    assert_same([one for pair in found for one in pair[0]], copies(loader(paths, 0).epoch(np.arange(9), 0)))
    assert_same([two for pair in found for two in pair[1]], copies(loader(paths, 0).epoch(np.arange(9), 1)))
    list(made.epoch(np.arange(COUNT), 2))
    assert {child.pid for child in psutil.Process().children()} == before


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_workers_map_the_cache_themselves_and_make_what_it_lacks(
    encoding: Any, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(disk, "_plan", lambda *_: [disk.StoreSpec(disk.Reduced(20), encoding)])
    data = Data(root=tmp_path, cache_gb=1.0, workers=2)
    train = disk.sources(data, PREP, paths[:-3], Images(0), lambda: False).train
    expected = copies(loader(paths, 0, images=train).epoch(np.arange(COUNT)))
    assert_same(copies(loader(paths, 2, images=train).epoch(np.arange(COUNT))), expected)


def test_no_table_and_no_pixels_are_sent_to_the_workers(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    kept = Images()
    for path in paths:
        kept(path)
    stored = disk.sources(Data(root=tmp_path, cache_gb=1.0, workers=2), PREP, paths, kept, lambda: False).train
    for source in (kept, stored):
        assert len(pickle.dumps(source.reader(2))) < 3000  # type: ignore[attr-defined]  # 23 images have 70,000 values


def test_a_batch_stays_while_any_piece_of_it_is_held_and_its_memory_is_used_again_afterwards(paths: list[Path]) -> None:
    order = np.arange(COUNT).repeat(4)
    expected, places = copies(loader(paths, 0).epoch(order)), set()
    held: list[tuple[int, np.ndarray]] = []
    for i, batch in enumerate(loader(paths, 2).epoch(order)):
        held.append((i, batch.images[1:3, ::2]))
    for i, piece in held:
        np.testing.assert_array_equal(piece, expected[i][0][1:3, ::2])
    del held, piece, batch
    for batch in loader(paths, 2).epoch(order):
        places.add(batch.images.ctypes.data)
        del batch
    assert len(places) <= 4


@pytest.mark.parametrize("count", [0, 2])
def test_a_bad_image_is_the_same_error_and_is_left_out_alike(count: int, paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(paths[0].read_bytes()[:200])
    some = [*paths[:7], tmp_path / "bad.png", tmp_path / "missing.png"]
    with pytest.raises(DataError, match=r"bad\.png: cannot be decoded \(.*\); replace or remove the file$"):
        list(loader(some, count).epoch(np.arange(9)))
    made = loader(some, count, skip_bad=True)
    _, last = made.epoch(np.arange(9))
    assert last.weight.tolist() == [1, 1, 0, 0, 0]
    np.testing.assert_array_equal(last.images[2], last.images[0])
    assert "cannot be decoded" in made.bad[some[7]]
    assert "No such file" in made.bad[some[8]]
    with pytest.raises(DataError, match="a whole batch of 2 images cannot be read"):
        list(made.epoch(np.array([7, 8])))


def test_a_fault_of_a_transform_keeps_its_type_and_says_which_image_and_where(paths: list[Path]) -> None:
    with pytest.raises(ZeroDivisionError, match="here") as caught:
        list(Loader(paths, transforms.divides, SIZE, 5, processes=2).epoch(np.arange(COUNT)))
    notes = "\n".join(caught.value.__notes__)
    assert f"while preparing {paths[7]}" in notes
    assert 'raise ZeroDivisionError("here")' in notes
    with pytest.raises(RuntimeError, match="Odd: 40 and 44"):
        list(Loader(paths, transforms.odd, SIZE, 5, processes=2).epoch(np.arange(COUNT)))


def test_an_epoch_that_is_left_early_disturbs_no_later_one(paths: list[Path]) -> None:
    made = loader(paths, 2)
    expected = copies(loader(paths, 0).epoch(np.arange(COUNT), 1))
    for _ in range(3):
        with closing(made.epoch(np.arange(COUNT), 0)) as batches:
            next(batches)
        assert_same(copies(made.epoch(np.arange(COUNT), 1)), expected)


def test_a_killed_worker_is_one_line_and_the_end_of_the_others(paths: list[Path]) -> None:
    made = loader(paths, 3)
    batches = made.epoch(np.arange(COUNT).repeat(20))
    next(batches)
    pool = processes.running(3)
    assert pool is not None
    children = [psutil.Process(process.pid) for process in pool._processes.values()]
    children[1].kill()
    with pytest.raises(DataError) as caught:
        list(batches)
    said = str(caught.value)
    assert f"pid {children[1].pid}) was killed by SIGKILL" in said
    assert "data.processes" in said and "\n" not in said
    assert pool.closed and not any(child.is_running() for child in children)
    assert_same(copies(made.epoch(np.arange(COUNT))), copies(loader(paths, 0).epoch(np.arange(COUNT))))


SCRIPT = """
import signal, sys
from pathlib import Path
import numpy as np
from data.augment.transforms import EvalTransform
from data.loading.loader import Loader
from models.card import Preprocessing
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
paths = sorted(Path(sys.argv[1]).iterdir())
made = Loader(paths, EvalTransform(Preprocessing(size=16)), 16, 5, processes=2)
try:
    for number, batch in enumerate(made.epoch(np.arange(len(paths)).repeat(100_000))):
        if number == 3:
            print("working", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.fixture
def working(paths: list[Path]) -> Any:
    """A program in the middle of an epoch, in a process group of its own, and its workers."""
    program = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(paths[0].parent)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "working\n"
    children = psutil.Process(program.pid).children(recursive=True)
    assert len(children) == 2
    yield program, children
    program.kill()
    program.communicate()


def test_nothing_is_left_when_the_parent_is_killed(working: Any, tmp_path: Path) -> None:
    program, children = working
    shared = {file.name for file in Path("/dev/shm").iterdir()} if Path("/dev/shm").exists() else set()
    program.send_signal(signal.SIGKILL)
    program.wait(20)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert program.stderr.read() == ""
    if shared:
        assert not {file.name for file in Path("/dev/shm").iterdir()} - shared


def test_ctrl_c_reaches_the_parent_alone_which_ends_cleanly(working: Any) -> None:
    program, children = working
    os.killpg(program.pid, signal.SIGINT)
    out, err = program.communicate(timeout=20)
    assert (out, err, program.returncode) == ("interrupted\n", "", 0)
    assert not psutil.wait_procs(children, timeout=20)[1]


def test_a_signal_to_stop_ends_no_worker_before_its_parent(paths: list[Path], started: processes.Workers) -> None:
    """A scheduler sends SIGTERM to every process of a job; the parent still saves what it has."""
    made = loader(paths, 2)
    list(made.epoch(np.arange(COUNT)))
    for process in started._processes.values():
        process.send_signal(signal.SIGTERM)
    assert_same(copies(made.epoch(np.arange(COUNT))), copies(loader(paths, 0).epoch(np.arange(COUNT))))


def test_the_workers_end_with_the_last_loader(paths: list[Path]) -> None:
    made = loader(paths, 1)
    list(made.epoch(np.arange(5)))
    pool = processes.running(1)
    assert pool is not None
    children = [psutil.Process(process.pid) for process in pool._processes.values()]
    del made, pool
    assert not any(child.is_running() for child in children)


def test_systems_without_memfd_share_an_unlinked_file(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    pool = processes.Workers(1)
    monkeypatch.setitem(processes._pools, 1, pool)
    assert_same(copies(loader(paths, 1).epoch(np.arange(COUNT))), copies(loader(paths, 0).epoch(np.arange(COUNT))))
    pool.close()


def test_too_many_processes_are_one_line_and_auto_goes_on_with_threads(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refused)
    with pytest.raises(DataError, match=r"data\.processes: 7 worker processes cannot be started \(Resource temp"):
        loader(paths, 7)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(pace, "cores", lambda: 4)
    monkeypatch.setattr(pace, "THREADS_DO", 1)
    monkeypatch.setattr(pace, "_TRIAL", 0.05)
    order = np.arange(COUNT).repeat(10)
    assert len(list(Loader(paths, transforms.slow, SIZE, 5, 4, processes="auto").epoch(order))) == 46
    assert "training goes on with threads" in capsys.readouterr().out


def test_windows_has_no_workers_and_says_so(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigError, match=r"data\.processes: worker processes need Linux or macOS"):
        loader(paths, 4)
    list(loader(paths, "auto").epoch(np.arange(5)))


def test_a_run_is_the_same_with_processes_and_can_change_to_them(digits: Path, tmp_path: Path) -> None:
    """Samplers whose weights change between epochs, progressive sizes, mixing and all."""
    wish = ("--folds.train", "[0]", "--progressive.sizes", "[16]", "--progressive.epochs", "[1]")
    wish += ("--data.image_size", "24", "--stopping.robust_weight", "0.3")
    expected = final(train_run.run_all("numpy", settings(digits, tmp_path / "threads", *wish), NEVER))
    folder = train_run.run_all("numpy", settings(digits, tmp_path / "some", *wish, "--data.processes", "2"), NEVER)
    found = final(folder)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    again = settings(digits, tmp_path / "some", *wish, "--data.processes", "0", "--resume", str(folder))
    assert train_run.run_all("numpy", again, NEVER) == folder


@pytest.mark.skipif(sys.platform != "linux", reason="a file system that takes any bytes")
def test_names_that_are_no_text_reach_the_workers(paths: list[Path], tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff'\"\n.png"))
    odd.write_bytes(paths[0].read_bytes())
    cut = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe.png"))
    cut.write_bytes(paths[0].read_bytes()[:99])
    made = loader([odd, cut], 2, skip_bad=True)
    assert_same(copies(made.epoch(np.arange(2))), copies(loader([odd, cut], 0, skip_bad=True).epoch(np.arange(2))))
    assert list(made.bad) == [cut]


def test_what_remains_of_a_truncated_image_is_the_same(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(paths[1].read_bytes()[:1500])
    some = [*paths[:4], tmp_path / "cut.jpg"]
    found = [copies(loader(some, n, images=Images(partial=True)).epoch(np.arange(5))) for n in (0, 2)]
    assert_same(*found)


class Clock:
    """In place of `time`: seconds by the wall and of the processor."""

    wall = processor = 0.0

    def perf_counter(self) -> float:
        return self.wall

    def process_time(self) -> float:
        return self.processor


@pytest.mark.parametrize(
    ("cores", "threads", "waited", "busy", "expected"),
    [
        (16, 0, 0.5, 0.3, 16),  # the interpreter is the limit
        (16, 12, 0.5, 0.3, 12),
        (96, 0, 0.5, 0.3, 32),
        (16, 0, 0.5, 0.95, 0),  # the cores are
        (16, 0, 0.05, 0.3, 0),  # the network is
        (8, 0, 0.5, 0.3, 0),
        (16, 4, 0.5, 0.3, 0),
    ],
)
def test_auto_takes_processes_where_threads_keep_training_waiting_and_cores_are_idle(
    cores: int,
    threads: int,
    waited: float,
    busy: float,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock, asked = Clock(), list[int]()
    monkeypatch.setattr(pace, "time", clock)
    monkeypatch.setattr(pace, "cores", lambda: cores)
    monkeypatch.setattr(pace, "workers", lambda count: asked.append(count))
    monkeypatch.setattr(sys, "platform", "linux")
    made, yielded = pace.Pace("auto", threads), None
    for _ in range(60):
        begun = clock.wall + (1 - waited) * 0.1
        clock.wall += 0.1
        clock.processor += busy * 0.1 * (threads or cores)
        yielded = made.note(begun, yielded, 64)
        if asked:
            break
    assert asked == ([expected] if expected else [])
    said = capsys.readouterr().out
    assert said.startswith(f"data: {threads or cores} threads prepare 640 images/s, training could take 1280; ") == (
        expected > 0
    )


def test_auto_goes_over_in_the_middle_of_an_epoch_and_changes_no_batch(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    order = np.arange(COUNT).repeat(12)
    expected = copies(Loader(paths, transforms.slow, SIZE, 5).epoch(order))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(pace, "cores", lambda: 4)
    monkeypatch.setattr(pace, "THREADS_DO", 1)
    monkeypatch.setattr(pace, "_TRIAL", 0.1)
    made, starting = Loader(paths, transforms.slow, SIZE, 5, 4, processes="auto"), 0

    def watched() -> Any:
        nonlocal starting
        for batch in made.epoch(order):
            pool = processes.running(4)
            if pool is not None and starting == 0:
                starting = 1
                while not pool.ready:  # so that the rest of the epoch is theirs
                    time.sleep(0.01)
            yield batch

    assert_same(copies(watched()), expected)
    pool = processes.running(4)
    assert pool is not None and pool._number > 20
    pool.close()


def test_a_loaded_batch_is_the_consumers_to_change(paths: list[Path]) -> None:
    for batch in loader(paths, 2).epoch(np.arange(10)):
        assert isinstance(batch, Loaded)
        batch.images[:] = 0
