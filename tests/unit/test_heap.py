"""What a command frees it keeps: a thread that needs the same megabytes again gets pages that are there."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from typing import Any

import pytest

SCRIPT = """
import json, resource, threading
from config import heap
kept = {kept} and heap.retain_freed_memory()
import numpy as np

def work():
    for _ in range(50):
        blocks = [np.full(size << 20, 1, np.uint8) for size in (3, 11, 48)]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(json.dumps([kept, faults()]))
"""
ENVIRONMENT = {name: value for name, value in os.environ.items() if "MALLOC" not in name and "GLIBC" not in name}
# NumPy asks for huge pages, of which few cover much; torch and decoders do not.
SMALL_PAGES = {**ENVIRONMENT, "NUMPY_MADVISE_HUGEPAGE": "0"}


def run(kept: bool, **more: str) -> Any:
    words = [sys.executable, "-c", SCRIPT.format(kept=kept)]
    return json.loads(subprocess.run(words, env={**SMALL_PAGES, **more}, capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems keep freed memory by themselves")
def test_a_thread_gets_its_pages_back() -> None:
    plain, kept = run(False), run(True)
    assert kept[0]
    assert plain[1] > 200_000, "glibc as it comes gives them away: 50 times 62 MiB"
    assert kept[1] < plain[1] / 20


def test_what_the_user_chose_stays() -> None:
    assert run(True, MALLOC_ARENA_MAX="4")[0] is False
