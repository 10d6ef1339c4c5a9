"""A program whose MLX work is done in a thread ends as it should, however often."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, sys, threading
import numpy as np
from backends.contract import LossSpec, OptimSpec
from backends.mlx import session
from tests import tiny

def use():
    opened = session.open(tiny.spec("convnext"), None, OptimSpec(), LossSpec(), compile=False)
    opened.logits(np.zeros((1, 32, 32, 3), np.uint8))
    opened.close()

ended = []
for _ in range(24):
    child = os.fork()
    if not child:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        sys.exit()  # as a program ends, with all that C++ does then
    ended.append(os.waitpid(child, 0)[1])
print(ended)
sys.exit(any(ended))
"""


def test_a_thread_that_used_mlx_ends_without_aborting_the_program() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
