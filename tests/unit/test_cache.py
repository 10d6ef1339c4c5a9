import io
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import filelock
import numpy as np
import pytest
from PIL import Image

from config.errors import ConfigError, DataError, Interrupted
from config.sections.data import Data
from data import file_hashes
from data.__main__ import main as command
from data.augment import transforms
from data.cache import disk, store
from data.cache.images import Images
from data.decode.image import decode
from data.loading.loader import Loader
from models.card import Preprocessing
from tests.unit.pictures import difference, photograph
from tests.unit.test_campaign import StopAfter, final, settings
from training.run import train_run

PREP = Preprocessing(size=32, crop_pct=0.9)
SHAPES = [(90, 160), (160, 90), (400, 500), (20, 30), (64, 64), (700, 50)]


def never() -> bool:
    return False


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, shape in enumerate(SHAPES):
        smooth = cv2.GaussianBlur(photograph(*shape), (0, 0), 2)
        Image.fromarray(smooth).save(folder / f"{i}.{'jpg' if i % 2 else 'png'}", quality=95)
    return sorted(folder.iterdir())


def sources(paths, images=None, stop=never, prep=PREP, **settings):
    data = Data(root=Path(), **{"cache_gb": 1.0, "workers": 2, **settings})
    return disk.sources(data, prep, paths, images or Images(0), stop)


@contextmanager
def counted(monkeypatch):
    """The files that are read inside, by their names."""
    read, original = [], Path.read_bytes
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", lambda path: read.append(path.name) or original(path))
        yield read


def test_what_judges_is_what_evaluation_makes_to_the_bit(paths):
    for prep in (PREP, Preprocessing(size=32, fit="letterbox", pad="background"), Preprocessing(size=32, fit="squash")):
        judged, transform = sources(paths, prep=prep).judged, transforms.EvalTransform(prep)
        plain = Loader(paths, transform, 32, 3, 2).epoch(np.arange(len(paths)))
        kept = Loader(paths, transforms.as_it_is, 32, 3, 2, images=judged).epoch(np.arange(len(paths)))
        for one, other in zip(plain, kept, strict=True):
            np.testing.assert_array_equal(one.images, other.images)


def test_what_is_trained_on_is_small_whole_and_never_enlarged(paths):
    train = sources(paths).train
    for path, (height, width) in zip(paths, SHAPES, strict=True):
        kept, whole = train(path), decode(path)
        scale = min(1, 37 / min(height, width))  # 1.15 x 32, rounded up
        assert kept.shape == (round(scale * height), round(scale * width), 3) and not kept.flags.writeable
        wanted = np.asarray(Image.fromarray(whole).resize(kept.shape[1::-1], Image.Resampling.BILINEAR))
        assert difference(kept, wanted).mean() < 0.4 * difference(np.roll(wanted, 1, 1), wanted).mean()


def test_a_letterbox_keeps_the_long_side(paths):
    train = sources(paths, prep=Preprocessing(size=32, fit="letterbox")).train
    assert [max(train(path).shape) for path in paths] == [37, 37, 37, 30, 37, 37]


def test_the_second_start_reads_no_image_and_a_changed_one_is_made_anew(paths, monkeypatch, capsys):
    first = [sources(paths).train(path).copy() for path in paths]
    assert "6 images into" in capsys.readouterr().out
    with counted(monkeypatch) as read:
        again = [sources(paths).train(path) for path in paths]
    assert not [name for name in read if name in {path.name for path in paths}] and not capsys.readouterr().out
    assert all((one == other).all() for one, other in zip(first, again, strict=True))
    Image.fromarray(photograph(300, 300)[:, ::-1]).save(paths[0])
    with counted(monkeypatch) as read:
        changed = sources(paths).train(paths[0])
    assert changed.shape == (37, 37, 3) and set(read) & {path.name for path in paths} == {paths[0].name}


def test_images_are_known_by_their_content_wherever_they_lie(paths, tmp_path, capsys):
    sources(paths)
    capsys.readouterr()
    other = tmp_path / "moved"
    other.mkdir()
    moved = [other / f"x{path.name}" for path in paths]
    for path, target in zip(paths, moved, strict=True):
        target.write_bytes(path.read_bytes())
    found = sources(moved)
    assert not capsys.readouterr().out, "nothing was made"
    np.testing.assert_array_equal(found.train(moved[2]), sources(paths).train(paths[2]))


def test_turned_images_are_kept_turned_beside_the_others(paths):
    plain = sources(paths).train(paths[0])
    turns = {paths[0]: cv2.ROTATE_90_CLOCKWISE}
    turned = sources(paths, Images(0, turns=turns))
    np.testing.assert_array_equal(turned.train(paths[0]), cv2.rotate(plain, cv2.ROTATE_90_CLOCKWISE))
    np.testing.assert_array_equal(sources(paths).train(paths[0]), plain)


def test_little_room_takes_jpegs_and_less_takes_none(paths, tmp_path, capsys):
    raw = sources(paths)
    taken = sum(store.size(folder) for folder in disk.folders(tmp_path / "cache" / "images"))
    jpeg = sources(paths, cache_gb=0.9 * taken / 1e9, cache_dir=tmp_path / "small")
    assert sum(store.size(folder) for folder in disk.folders(tmp_path / "small")) <= 0.9 * taken
    packed = io.BytesIO()
    Image.fromarray(raw.train(paths[2])).save(packed, "JPEG", quality=95, subsampling=0)
    assert difference(jpeg.train(paths[2]), np.asarray(Image.open(packed))).max() <= 2
    capsys.readouterr()
    images = Images(0)
    none = sources(paths, images, cache_gb=1e-6, cache_dir=tmp_path / "none")
    assert none == (images, None) and not (tmp_path / "none").exists()
    assert "cache: 6 images need" in capsys.readouterr().out
    assert sources(paths, images, cache_gb=0) == (images, None)


def test_the_room_is_for_all_that_is_kept_there(paths, place, capsys):
    sources(paths)
    taken = sum(store.size(folder) for folder in disk.folders(place))
    assert sources(paths, prep=Preprocessing(size=48), cache_gb=1.02 * taken / 1e9).judged is None
    assert "there is room for 0.00 GB" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_says_so_when_it_is_used(paths):
    paths[3].write_bytes(paths[3].read_bytes()[:300])
    paths[4].write_text("no image")
    paths[5].unlink()
    found = sources(paths)
    assert found.train(paths[2]).shape
    for path in paths[3:]:
        for source in found:
            with pytest.raises(DataError, match=path.name):
                source(path)


def test_a_stop_keeps_what_was_made_and_the_next_start_goes_on(paths, place, monkeypatch, capsys):
    monkeypatch.setattr(disk, "_TURN", 2)
    asked = iter([False, True])
    with pytest.raises(disk.Stopped):
        sources(paths, stop=lambda: next(asked))
    (folder,) = disk.folders(place)
    assert len(store.Store(folder, "raw")) == 4
    capsys.readouterr()
    whole = sources(paths)
    assert "cache: 2 images into" in capsys.readouterr().out
    assert all(whole.train(path).size for path in paths)


def test_a_torn_store_is_mended(paths, place):
    expected = [sources(paths).train(path).copy() for path in paths]
    folder = next(folder for folder in disk.folders(place) if folder.name.startswith("reduced"))
    pixels, index = folder / "pixels", folder / "index"
    whole = {file: file.read_bytes() for file in (pixels, index)}
    torn = [
        {pixels: whole[pixels] + b"half an image", index: whole[index]},  # died before the records
        {pixels: whole[pixels], index: whole[index][:-7]},  # within a record
        {pixels: whole[pixels][:-9], index: whole[index]},  # the disk lost what it had promised
        {pixels: b"", index: whole[index]},
    ]
    for state in torn:
        for file, content in state.items():
            file.unlink()
            file.write_bytes(content)
        found = sources(paths).train
        assert all((found(path) == pixels).all() for path, pixels in zip(paths, expected, strict=True))


def test_what_was_lost_never_shows_the_pixels_of_what_came_after(paths, place):
    expected = [sources(paths).train(path).copy() for path in paths]
    folder = next(folder for folder in disk.folders(place) if folder.name.startswith("reduced"))
    (folder / "pixels").write_bytes(b"")
    sources(paths[3:])
    found = sources(paths).train
    assert all((found(path) == pixels).all() for path, pixels in zip(paths, expected, strict=True))


def test_another_process_that_makes_it_is_waited_for_and_ctrl_c_ends_the_wait(paths, place):
    sources(paths[:2])
    folder = next(folder for folder in disk.folders(place) if folder.name.startswith("reduced"))
    with filelock.FileLock(folder / "lock"):
        with pytest.raises(disk.Stopped):
            sources(paths, stop=lambda: True)
        waited = threading.Event()
        late = threading.Thread(target=lambda: sources(paths, stop=waited.set))
        late.start()
        assert waited.wait(20)
        assert len(store.Store(folder, "raw")) == 2
    late.join(20)
    assert len(store.Store(folder, "raw")) == 6


def test_a_folder_that_cannot_be_written_is_one_line(paths, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written .*data.cache_dir"):
        sources(paths, cache_dir=tmp_path / "file" / "below")


def test_the_command_lists_and_clears_what_is_kept(paths, place, tmp_path, capsys):
    assert command(["cache"]) == 0 and "keeps no images" in capsys.readouterr().out
    sources(paths)
    capsys.readouterr()
    assert command(["cache"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 3 and "reduced_37_raw" in listed[0] and listed[-1].endswith("in all")
    with filelock.FileLock(disk.folders(place)[0] / "lock"):
        assert command(["cache", "--clear"]) == 1 and "stop that first" in capsys.readouterr().err
    assert command(["cache", "--dir", str(place), "--clear"]) == 0 and not disk.folders(place)
    with pytest.raises(SystemExit):
        command(["cache", "--data.root", "x"])
    assert "--data.root: no such option" in capsys.readouterr().err


def test_the_memory_of_contents_may_be_damaged_or_unwritable(paths, tmp_path, monkeypatch, capsys):
    memory = tmp_path / "cache" / "contents.json"
    expected = file_hashes.of(paths, 2)
    assert {(c.height, c.width) for c in expected.values()} == set(SHAPES)
    memory.write_text("{")
    assert file_hashes.of(paths, 2) == expected
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "file"))
    assert file_hashes.of(paths, 2) == expected
    assert "read again next time" in capsys.readouterr().err


def test_a_run_from_the_cache_is_stopped_while_it_is_made_and_goes_on(digits, tmp_path, monkeypatch):
    one = ("--folds.train", "[0]", "--data.cache_gb", "1")
    undisturbed = settings(digits, tmp_path / "undisturbed", *one, "--data.cache_dir", str(tmp_path / "first"))
    expected = final(train_run.run_all("numpy", undisturbed, never))
    monkeypatch.setattr(disk, "_TURN", 16)
    wanted = settings(digits, tmp_path / "cached", *one)
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", wanted, StopAfter(1))
    folder = train_run.run_all("numpy", wanted, never)
    for name, value in final(folder).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    elsewhere = ("--resume", str(folder), "--data.cache_gb", "2", "--data.cache_dir", str(tmp_path / "other"))
    train_run.run_all("numpy", settings(digits, tmp_path / "cached", *one[:2], *elsewhere), never)
    with pytest.raises(ConfigError, match=r"data\.cache_gb"):
        without = (*one[:2], *elsewhere[:2], "--data.cache_gb", "0")
        train_run.run_all("numpy", settings(digits, tmp_path / "cached", *without), never)


def test_no_more_threads_prepare_what_is_in_memory_than_there_are_cores(paths, monkeypatch):
    monkeypatch.setattr("data.loading.loader.cores", lambda: 2)

    def threads(source):
        seen = set[str]()

        def transform(image, _rng):
            seen.add(threading.current_thread().name)
            time.sleep(0.01)
            return np.zeros((32, 32, 3), np.uint8)

        list(Loader(paths, transform, 32, len(paths), workers=6, images=source).epoch(np.arange(len(paths))))
        return len(seen)

    assert threads(Images(0)) > 2
    assert threads(sources(paths).train) <= 2
