"""What many tests share: a small piece of the digits as image files."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import backends.mlx  # noqa: F401 - before any test imports MLX, so that it finds the fast and accurate BLAS
import tests.numpy_engine  # noqa: F401 - which registers it
from config import heap

PER_CLASS = 8
# What tests look at is not kept in the user's own cache; set here, so that programs that tests start see it too.
os.environ["TANDEM_CACHE"] = tempfile.mkdtemp(prefix="tandem_cache_")


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["TANDEM_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def memory_is_given_back() -> Iterator[None]:
    """A command that a test runs in this process must not have it keep what all other tests free."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heap, "retain_freed_memory", lambda: False)
        yield


@pytest.fixture(scope="session")
def all_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole demo data set."""
    from data import demo

    root = tmp_path_factory.mktemp("digits")
    demo.write(root)
    return root


@pytest.fixture(scope="session")
def digits(all_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`PER_CLASS` training digits of each class, in the competition layout."""
    root = tmp_path_factory.mktemp("few_digits")
    (root / "train").mkdir()
    counts: dict[str, int] = {}
    kept = []
    with (all_digits / "train.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            if counts.setdefault(row["target"], 0) < PER_CLASS:
                counts[row["target"]] += 1
                kept.append(row)
                shutil.copy(all_digits / "train" / row["ID"], root / "train" / row["ID"])
    with (root / "train.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["ID", "target"])
        writer.writeheader()
        writer.writerows(kept)
    return root
