"""Shards read front to back while training: the order, what is fetched of a store and when, and exact resume."""

from __future__ import annotations

import csv
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from config import load
from config.errors import ConfigError, DataError, Interrupted
from config.schema import Settings
from config.sections.data import Data
from data import sources
from data.augment.transforms import EvalTransform
from data.cache.images import Images
from data.loading.loader import Loader
from data.sources.packed import Part
from data.streaming import shard_cache
from data.streaming.order import StreamOrder
from data.streaming.read_ahead import RemoteShards
from models.card import Preprocessing
from tests.unit import shards
from tests.unit.shards import SIDE, Store
from tests.unit.shards import cache as cache
from tests.unit.test_campaign import NEVER, StopAfter, final
from training import cli
from training.run import train_run

SHARDS, IMAGES = 12, 10
URL = "shards://{000..011}.tar"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = shards.write(tmp_path / "data", SHARDS, IMAGES)
    Store.fill(folder)
    return folder


def remote(**more: object) -> Data:
    return Data(root=Path(URL), streaming=True, **more)  # type: ignore[arg-type]


# The order.


def arranged(streams: int = 4, buffer: int = 20, epoch: int = 0, per: int = 50, count: int = 40) -> np.ndarray:
    shard = np.repeat(np.arange(count), per)
    return StreamOrder(shard, streams, buffer)(np.arange(len(shard)), 16, seed=3, epoch=epoch)


def test_an_epoch_draws_every_sample_once_in_an_order_of_its_own() -> None:
    first, again, next_one = arranged(), arranged(), arranged(epoch=1)
    np.testing.assert_array_equal(first, again)
    assert len(first) == 2000 // 16 * 16 and len(np.unique(first)) == len(first)
    assert (first != next_one).mean() > 0.95


def test_without_a_buffer_each_shard_is_read_front_to_back() -> None:
    order = arranged(streams=1, buffer=1)
    runs = np.split(order, np.flatnonzero(np.diff(order // 50)) + 1)
    assert len(runs) == 40 and all((np.diff(run) == 1).all() for run in runs)
    assert [run[0] // 50 for run in runs] != sorted(run[0] // 50 for run in runs)


def test_a_shuffle_buffer_mixes_neighbouring_shards_only() -> None:
    plain, mixed = arranged(streams=1, buffer=1, count=8), arranged(streams=1, buffer=100, count=8)
    turn = np.argsort(plain)[mixed[mixed < len(plain)]]
    assert np.abs(turn - np.arange(len(turn))).max() < 100
    assert (np.diff(mixed) == 1).mean() < 0.1


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_take_their_rows_of_each_batch_read_shards_of_their_own(ranks: int) -> None:
    rows = arranged().reshape(-1, 16)
    read = [set((rows[:, r * 16 // ranks : (r + 1) * 16 // ranks] // 50).ravel().tolist()) for r in range(ranks)]
    assert set.union(*read) == set(range(40))
    assert sum(map(len, read)) <= 40 + ranks - 1, "at most the shards on the border of two ranks are read twice"


def test_repeated_and_left_out_samples_stay_so() -> None:
    drawn = np.repeat(np.arange(0, 300, 2), 3)
    order = StreamOrder(np.arange(300) // 30, 2, 40)(drawn, 10, seed=0, epoch=0)
    counts = Counter(order.tolist())
    assert len(order) == 450 and set(counts) == set(range(0, 300, 2)) and set(counts.values()) == {3}


# What is read of a store.


def loader(table: sources.Table, limit: int = shard_cache.LIMIT, **more: object) -> Loader:
    prep = Preprocessing(size=SIDE)
    options = {"images": Images(cache_bytes=0), "shard_bytes": limit} | more
    return Loader(table.paths, EvalTransform(prep), SIDE, 8, 2, 0, **options)  # type: ignore[arg-type]


def streamed(table: sources.Table, buffer: int = 20) -> np.ndarray:
    files = [path.file for path in table.paths if isinstance(path, Part)]
    numbers = {file: i for i, file in enumerate(dict.fromkeys(files))}
    order = StreamOrder(np.array([numbers[file] for file in files]), 2, buffer)
    return order(np.arange(len(files)), 8, seed=0, epoch=0)


def test_shards_of_a_store_are_indexed_once_and_are_the_same_table_as_files(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, here = sources.load(remote()), sources.load(root)
    assert (there.ids, there.class_names) == (here.ids, here.class_names)
    np.testing.assert_array_equal(there.labels, here.labels)
    assert Store.bytes == {name: len(content) for name, content in Store.files.items()}
    Store.reset()
    assert sources.load(remote()).ids == here.ids and not Store.requests
    assert capsys.readouterr().out.count("indexing 12 shards") == 1
    assert there.columns["shard"][:11] == ["000.tar"] * 10 + ["001.tar"]


def test_braces_name_shards_as_in_bash() -> None:
    """Compared with bash itself, which Linux and macOS have."""
    for text in (
        "x/{00..03}.tar",
        "{a,b}/{8..10}",
        "s/{train-{000..002},val-{0..1}}.tar",
        "{a,{b,c}d}{1..2}e",
        "plain",
    ):
        found = subprocess.run(["bash", "-c", f"echo {text}"], capture_output=True, text=True, check=True).stdout
        assert sources.remote.expand(text) == found.split()


def test_a_folder_at_a_url_is_listed(root: Path) -> None:
    listed = sources.load(Data(root=Path("shards://bucket/train"), streaming=True))
    assert len(listed.ids) == SHARDS * IMAGES and listed.columns["shard"][-1] == "011.tar"


def test_an_epoch_reads_each_shard_once_in_large_requests_and_keeps_few_of_them(root: Path, cache: Path) -> None:
    table, local = sources.load(remote()), sources.load(root)
    largest, most = max(map(len, Store.files.values())), 0
    order = streamed(table)
    Store.reset()
    expected = loader(local).epoch(order)
    for batch, other in zip(loader(table, limit=6 * largest).epoch(order), expected, strict=True):
        np.testing.assert_array_equal(batch.images, other.images)
        most = max(most, sum(stat.st_size for path in cache.rglob("*.tar") if (stat := shard_cache._stat(path))))
    assert Store.bytes == {name: len(content) for name, content in Store.files.items()}
    assert set(Store.requests.values()) == {1}
    assert most <= 6 * largest < sum(map(len, Store.files.values()))


def test_a_resumed_epoch_fetches_only_the_shards_that_it_still_needs(root: Path) -> None:
    table = sources.load(remote())
    order = streamed(table, buffer=1)
    whole = [batch.images.copy() for batch in loader(table, limit=1).epoch(order)]
    Store.reset()
    rest = [batch.images.copy() for batch in loader(table, limit=1).epoch(order, first_batch=9)]
    np.testing.assert_array_equal(rest, whole[9:])
    assert 0 < len(Store.requests) <= 6 and set(Store.requests) <= {f"{i // 10:03d}.tar" for i in order[72:]}


def test_a_rank_fetches_the_shards_of_its_rows_alone(root: Path, cache: Path) -> None:
    table = sources.load(remote())
    order = streamed(table)
    fetched = []
    for rank in range(2):
        Store.reset()
        with RemoteShards(table.paths, 10**9).read_ahead(order, 0, 8, rank, 2) as shards_of_rank:
            shards_of_rank.wait(len(order))
        fetched.append(set(Store.requests))
        rows = order.reshape(-1, 8)[:, 4 * rank : 4 * rank + 4]
        assert fetched[-1] == {f"{i:03d}.tar" for i in np.unique(rows // IMAGES)}
        for file in cache.rglob("*.tar"):
            file.unlink()
    assert len(fetched[0] & fetched[1]) <= 1 and len(fetched[0] | fetched[1]) == SHARDS


def test_a_cache_with_room_for_all_keeps_all_for_the_next_epoch(root: Path) -> None:
    table = sources.load(remote())
    for _ in range(2):
        Store.reset()
        assert len(list(loader(table).epoch(streamed(table)))) == 15
    assert not Store.requests


@pytest.mark.parametrize("processes", [0, 2])
def test_worker_processes_read_images_inside_of_shards(root: Path, processes: int) -> None:
    for table in (sources.load(root), sources.load(remote())):
        made = loader(table, processes=processes)
        found = np.concatenate([batch.images.copy() for batch in made.epoch(np.arange(16))])
        expected = np.concatenate([batch.images.copy() for batch in loader(table).epoch(np.arange(16))])
        np.testing.assert_array_equal(found, expected)


def test_readers_of_one_shard_fetch_it_once(root: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    table = sources.load(remote())
    Store.reset()
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(Part.read_bytes, table.paths[:10] * 4))
    assert Store.requests == {"000.tar": 1} and read[:10] == read[10:20]


# Whole runs.


def settings(root: object, out: Path, *more: str) -> Settings:
    words = ["--data.root", str(root), "--out", str(out), "--model", "convnext_atto", "--weights", "none"]
    words += ["--data.image_size", "16", "--train.epochs", "2", "--train.batch_size", "8", "--optim.lr", "0.01"]
    words += ["--data.streaming", "true", "--data.streams", "2", "--data.shuffle_buffer", "20", "--data.workers", "2"]
    return load.parse([*words, *more], prog="test")


def losses(folder: Path) -> list[tuple[str, str]]:
    with (folder / "fold_0" / "history.csv").open(newline="") as stream:
        return [(row["train_loss"], row["log_loss"]) for row in csv.DictReader(stream)]


MORE = ("--mining.cap", "0.3", "--mining.start_epoch", "1", "--sampling.kind", "balanced", "--mix.mixup", "0.4")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on local shards that was never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    root = shards.write(folder / "data", SHARDS, IMAGES)
    return train_run.run_all("numpy", settings(root, folder / "runs", *MORE), NEVER)


@pytest.mark.parametrize("questions", [5, 17])
def test_a_run_that_was_stopped_inside_a_shard_ends_as_one_that_was_not(
    questions: int, straight: Path, root: Path, tmp_path: Path
) -> None:
    tight = ("--data.shard_cache_gb", "1e-6")  # no room: every shard is fetched when it is needed
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", settings(URL, tmp_path, *MORE, *tight), StopAfter(questions))
    resumed = train_run.run_all("numpy", settings(URL, tmp_path, *MORE), NEVER)
    assert losses(resumed) == losses(straight) and len(losses(straight)) == 2
    one, other = final(straight), final(resumed)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_shards_can_be_kept_whole_by_the_folds(root: Path, tmp_path: Path) -> None:
    words = ("--folds.strategy", "stratified_group", "--folds.group_column", "shard", "--folds.n_splits", "3")
    folder = train_run.run_all("numpy", settings(URL, tmp_path / "out", *words, "--folds.train", "[0]"), NEVER)
    with (folder / "folds.csv").open(newline="") as stream:
        folds = {(row["ID"].split("/")[0], row["fold"]) for row in csv.DictReader(stream)}
    assert len(folds) == SHARDS


def test_a_campaign_streams_its_own_splits_and_audits_nothing(root: Path, tmp_path: Path) -> None:
    for number, name in ((10, "val-000.tar"), (11, "test-000.tar")):
        (root / f"{number:03d}.tar").rename(root / name)
    Store.fill(root)
    words = ["--data.root", "shards://{{000..009},val-000,test-000}.tar", "--out", str(tmp_path / "runs")]
    words += ["--model", "convnext_atto", "--weights", "none", "--data.image_size", "16", "--train.epochs", "1"]
    assert cli.main("numpy", [*words, "--data.streaming", "true", "--mode", "full"]) == 0
    campaign = next((tmp_path / "runs").iterdir())
    assert not (campaign / "audit").exists()
    with next(campaign.glob("submissions/*[0-9].csv")).open(newline="") as stream:
        assert [row["ID"].split("/")[0] for row in csv.DictReader(stream)] == ["test-000.tar"] * IMAGES


def test_what_is_not_shards_cannot_be_streamed(digits: Path) -> None:
    with pytest.raises(DataError, match=r"data\.streaming reads tar shards \(WebDataset\) alone; set it to false"):
        sources.load(Data(root=digits, streaming=True))
    with pytest.raises(DataError, match=r"a\.parquet: data\.streaming reads tar shards"):
        sources.load(Data(root=Path("shards://b/a.parquet"), streaming=True))


def test_decoded_images_are_not_cached_beside_streaming() -> None:
    with pytest.raises(ConfigError, match=r"data\.cache_gb.*expected 0 where data\.streaming is true"):
        load.parse(["--data.root", URL, "--data.streaming", "true", "--data.cache_gb", "3"], prog="test")
