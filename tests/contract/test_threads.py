"""A program whose MLX work is done in a thread ends as it should, however often."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import os, subprocess, sys, threading
import numpy as np
from backends.contract import SessionConfig
from backends.mlx import session
from tests import tiny

def use():
    opened = session.open(tiny.spec("convnext"), None, SessionConfig(compile=False))
    opened.logits(np.zeros((1, 32, 32, 3), np.uint8))
    opened.close()

def in_a_thread():
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    sys.exit()  # as a program ends, with all that C++ does then

if sys.argv[1:]:
    in_a_thread()
ended = []
for _ in range(6 if sys.platform == "darwin" else 24):
    if sys.platform == "darwin":  # nothing may fork there after Metal's libraries were loaded
        ended.append(subprocess.call([sys.executable, "-c", os.environ["PROGRAM"], "child"]))
        continue
    child = os.fork()
    if not child:
        in_a_thread()
    ended.append(os.waitpid(child, 0)[1])
print(ended)
sys.exit(any(ended))
"""


def test_a_thread_that_used_mlx_ends_without_aborting_the_program() -> None:
    command, environment = [sys.executable, "-c", PROGRAM], {**os.environ, "PROGRAM": PROGRAM}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
