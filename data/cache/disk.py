"""A cache on disk of decoded images: small enough to be read at once, large enough for every crop.

It has two stores (see `data.cache.store`): images to train on, whose short side is 1.15 times the model's, and images
to evaluate on, the squares that `EvalTransform` makes, bit-equal. The key of an image is its content and how it was
made, so folds, members, data sets and machines share entries. What a store lacks, such as a damaged file, is read from
the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import filelock

from config.errors import DataError
from config.places import cache_folder, once_a_host
from config.sections.data import Data
from config.text import counted
from data import file_hashes
from data.augment.transforms import EvalTransform
from data.cache import store
from data.cache.images import Images, Source
from data.cache.store import Encoding, Packed, Record, Store
from data.cores import cores
from data.decode.image import Shrink, shrinkage, whole
from data.pixels import Pixels
from data.progress_bar import bar
from data.resize import resize
from data.sources.packed import Address, of_address
from models.card import Preprocessing

_VERSION = 2  # of what is made of an image; raise it when that changes
_MARGIN = 1.15
_TURN = 256  # images that are written at a time
_TRIED = 48  # images that tell how large JPEGs become
_SIDEWAYS = (cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_90_COUNTERCLOCKWISE)


class Stopped(Exception):
    """The user asked to stop; what was made is kept."""


class Sources(NamedTuple):
    """Where a training's pixels come from, each as `Images` gives them: those that it trains on, and the squares that
    judge it; None where these are to be made of the files."""

    train: Source
    judged: Source | None


class Known(NamedTuple):
    """An image by its content and its turn, and its sides as it is shown."""

    key: bytes
    height: int
    width: int


@dataclass(frozen=True)
class Reduced:
    """An image whose short side, with `long` its long one, is at most `side` pixels; never enlarged."""

    side: int
    long: bool = False

    def __call__(self, image: Pixels) -> Pixels:
        """uint8 `[H, W, 3]`, as it is where it is small already."""
        return resize(image, *self.sides(*image.shape[:2]))

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what is made of an image."""
        scale = min(1.0, self.side / (max(height, width) if self.long else min(height, width)))
        return max(1, round(scale * height)), max(1, round(scale * width))

    def shrink(self, height: int, width: int) -> int:
        """As `EvalTransform.shrink`."""
        return shrinkage(max(height, width) if self.long else min(height, width), 2 * self.side)


class Square(EvalTransform):
    """What evaluation makes of an image."""

    def sides(self, _height: int, _width: int) -> tuple[int, int]:
        """The model's."""
        return self.prep.size, self.prep.size


class StoreSpec(NamedTuple):
    """A form of the images and how it is stored."""

    form: Reduced | Square
    encoding: Encoding

    def folder(self, root: Path) -> Path:
        """The store's folder below `root`; its name ends in a digest of all that its pixels depend on."""
        form = asdict(self.form)
        prep = form.get("prep", {})
        for name in ("mean", "std", "icc_to_srgb"):  # applied on the device; the last is part of an image's key
            prep.pop(name, None)
        if prep.get("resampling") == "area":  # older caches do not name it
            del prep["resampling"]
        name = type(self.form).__name__.lower()
        text = json.dumps([_VERSION, name, self.encoding, form], sort_keys=True)
        side = max(self.form.sides(2**30, 2**30))
        return root / f"{name}_{side}_{self.encoding}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def sources(
    data: Data, prep: Preprocessing, paths: Sequence[Path], images: Images, stop: Callable[[], bool]
) -> Sources:
    """The sources for a training at up to `prep.size` pixels, judged by `prep`; `images` where there is no cache.

    Fills the stores with what they lack of `paths`, behind a progress bar. Raises `Stopped` where `stop` returns true,
    and `DataError` where the cache cannot be written.
    """
    if not data.cache_gb:
        return Sources(images, None)
    root, workers = cache_root(data.cache_dir), data.workers or cores()
    with once_a_host(f"caching {counted(len(paths), 'image')} in {root}", f"{min(paths, default='')} {prep}", stop):
        with bar("looking", len(paths)) as progress:
            known = _known(paths, images, workers, progress)
        files = Images(0, images.pixel_limit, images.turns, images.to_srgb)
        reduced = Reduced(math.ceil(_MARGIN * prep.size), long=prep.fit == "letterbox")
        opened = {}
        for spec in _plan(data, root, known, files, (reduced, Square(prep))):
            maker = _Maker(spec, spec.folder(root), files, workers, stop)
            opened[type(spec.form)] = _Cached(maker.filled(known), known, _FromFile(spec.form, images))
    return Sources(opened.get(Reduced, images), opened.get(Square))


def _known(paths: Sequence[Path], images: Images, workers: int, progress: Callable[[int], None]) -> dict[Path, Known]:
    known = {}
    colours = "|srgb" if images.to_srgb else ""
    for path, (digest, height, width) in file_hashes.of(paths, workers, progress).items():
        turn = images.turns.get(path)
        key = hashlib.blake2b(f"{digest}|{turn}{colours}".encode(), digest_size=16).digest()
        known[path] = Known(key, width, height) if turn in _SIDEWAYS else Known(key, height, width)
    return known


def _plan(
    data: Data, root: Path, known: Mapping[Path, Known], files: Images, forms: tuple[Reduced, Square]
) -> list[StoreSpec]:
    """The best stores for which there is room; none, and a line that says so, where there is too little."""
    reduced, judged = forms
    used = sum(store.size(folder) for folder in folders(root))
    free = shutil.disk_usage(next(parent for parent in (root, *root.parents) if parent.exists())).free
    room = min(data.cache_gb * 1e9 - used, 0.95 * free)
    for specs in (
        [StoreSpec(reduced, "raw"), StoreSpec(judged, "raw")],
        [StoreSpec(reduced, "jpeg"), StoreSpec(judged, "raw")],
        [StoreSpec(reduced, "jpeg")],
    ):
        needed = sum(_bytes(spec, spec.folder(root), known, files) for spec in specs)
        if needed <= room:
            return specs
    print(
        f"cache: {counted(len(known), 'image needs', 'images need')} {needed / 1e9:.2f} GB more as JPEGs, there is "
        f"room for {max(room, 0) / 1e9:.2f} GB; training decodes the files (raise data.cache_gb, or see: python -m "
        "data cache)"
    )
    return []


def _bytes(spec: StoreSpec, folder: Path, known: Mapping[Path, Known], files: Images) -> float:
    """How much the images that a store lacks will take."""
    stored = Store(folder, spec.encoding) if folder.exists() else ()
    lacking = {image.key: (path, image) for path, image in known.items() if image.key not in stored}
    pixels = sum(3 * math.prod(spec.form.sides(image.height, image.width)) for _, image in lacking.values())
    if spec.encoding == "raw" or not lacking:
        return pixels
    sample = [path for path, _ in list(lacking.values())[:: max(1, len(lacking) // _TRIED)]]
    images = [image for path in sample if (image := _attempt(spec.form, files, path)) is not None]
    ratio = sum(len(store.encode(image, "jpeg")) for image in images) / max(1, sum(image.size for image in images))
    return 1.1 * ratio * pixels


def cache_root(cache_dir: Path | None) -> Path:
    """The folder of all stores: `data.cache_dir`, or by default one in the user's cache folder."""
    return cache_dir or cache_folder() / "images"


def folders(root: Path) -> list[Path]:
    """The stores below `root`."""
    return sorted(file.parent for file in root.glob("*/index"))


def remove(folder: Path) -> None:
    """Delete a store; `DataError` where a process is filling it."""
    try:
        with filelock.FileLock(folder / "lock", timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
    except filelock.Timeout:
        raise DataError(f"{folder}: is being filled by another process; stop that first") from None


@dataclass(frozen=True)
class _Maker:
    """Fills one store; one process at a time does."""

    spec: StoreSpec
    folder: Path
    files: Images
    workers: int
    stop: Callable[[], bool]

    def filled(self, known: Mapping[Path, Known]) -> Store:
        """The store, with all of the images that can be read."""
        try:
            opened = Store(self.folder, self.spec.encoding)
            if all(image.key in opened for image in known.values()):
                return opened
            with self._locked():
                opened = Store(self.folder, self.spec.encoding)
                self._add(opened, {image.key: path for path, image in known.items() if image.key not in opened})
            return Store(self.folder, self.spec.encoding)
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot be written ({error.strerror}); make room, give another data.cache_dir, or "
                "set data.cache_gb to 0"
            ) from error

    def _locked(self) -> filelock.AcquireReturnProxy:
        lock = filelock.FileLock(self.folder / "lock")
        while True:
            try:
                return lock.acquire(timeout=0.5)
            except filelock.Timeout:
                if self.stop():
                    raise Stopped from None

    def _add(self, opened: Store, missing: Mapping[bytes, Path]) -> None:
        wanted, before = list(missing.items()), len(opened)
        with bar("cache", len(wanted)) as progress, ThreadPoolExecutor(self.workers) as pool:
            for start in range(0, len(wanted), _TURN):
                opened.append([*filter(None, pool.map(self._encoded, wanted[start : start + _TURN]))])
                progress(min(start + _TURN, len(wanted)))
                if self.stop():
                    raise Stopped
        if len(opened) > before:
            added, size = counted(len(opened) - before, "image"), store.size(self.folder) / 1e9
            print(f"cache: {added} into {self.folder} ({size:.2f} GB)")

    def _encoded(self, item: tuple[bytes, Path]) -> tuple[bytes, tuple[int, int], bytes] | None:
        key, path = item
        image = _attempt(self.spec.form, self.files, path)
        return None if image is None else (key, image.shape[:2], store.encode(image, self.spec.encoding))


def _attempt(form: Reduced | Square, files: Images, path: Path) -> Pixels | None:
    """What is stored of a file; None where that cannot be read, which its use will say."""
    try:
        return form(files(path, form.shrink))
    except DataError:
        return None


@dataclass(frozen=True)
class _FromFile:
    """What a store holds of a file, made of the file."""

    form: Reduced | Square
    files: Images

    def __call__(self, path: Path, _shrink: Shrink = whole) -> Pixels:
        return self.form(self.files(path, self.form.shrink))


@dataclass(frozen=True)
class _Reader:
    """Images by where they lie in a store, and by the addresses of their paths what it lacks."""

    packed: Packed
    otherwise: _FromFile

    def __call__(self, address: Any, shrink: Shrink = whole) -> Pixels:
        if isinstance(address[0], int):
            return self.packed(Record(*address))
        return self.otherwise(of_address(address), shrink)


@dataclass(frozen=True, eq=False)
class _Cached:
    """A store as a source by path, as `data.cache.images.Shared`; `otherwise` for what it lacks."""

    store: Store
    known: Mapping[Path, Known] = field(repr=False)
    otherwise: _FromFile = field(repr=False)
    mapped = True  # into memory: the loader's threads do not wait for files

    def __call__(self, path: Path, shrink: Shrink = whole) -> Pixels:
        record = self._record(path)
        return self.otherwise(path, shrink) if record is None else self.store.packed(record)

    def reader(self, workers: int) -> _Reader:
        """The same by address, for one of so many processes."""
        return _Reader(self.store.packed, replace(self.otherwise, files=self.otherwise.files.share(workers)))

    def address(self, path: Path) -> Address | Record:
        """Where the reader finds it."""
        return self._record(path) or self.otherwise.files.address(path)

    def _record(self, path: Path) -> Record | None:
        image = self.known.get(path)
        return None if image is None else self.store.find(image.key)
