"""Measures the speed of ONNX files on this machine, in turn, so that other load affects all alike."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convert.verification import pictures
from infer.runtimes import onnx as onnx_runtime

# Less than this and int8 is not worth its loss.
PAYS = 1.5
_ROUNDS, _SECONDS = 15, 20.0


def in_turn(paths: Sequence[Path], count: int) -> list[float]:
    """Milliseconds an image of each file on the CPU with `count` black images at a time: the best of up to 15 rounds.

    The best and not the median, since other work on the machine only adds, and adds more to the longer call.
    """
    with contextlib.ExitStack() as held:
        opened = [
            held.enter_context(contextlib.closing(onnx_runtime.open(path, ("CPUExecutionProvider",)))) for path in paths
        ]
        images = [np.zeros((count, prep.size, prep.size, 3), np.uint8) for prep in opened[0].card.inputs]
        seconds: list[list[float]] = [[] for _ in paths]
        end = time.perf_counter() + _SECONDS
        while len(seconds[0]) <= _ROUNDS and (len(seconds[0]) < 3 or time.perf_counter() < end):
            for predictor, taken in zip(opened, seconds, strict=True):
                start = time.perf_counter()
                predictor.logits(*images)
                taken.append(time.perf_counter() - start)
    return [1e3 * min(taken[1:]) / count for taken in seconds]  # the first allocates


def line(plain: Path, small: Path) -> str:
    """The speed of the int8 file `small` relative to `plain` in fp32, and whether that pays, as text."""
    card = onnx_runtime.open(small, ("CPUExecutionProvider",)).card
    ratios, texts = [], []
    for count in sorted({1, pictures.batch_size(card)}):
        before, after = in_turn([plain, small], count)
        ratios.append(before / after)
        images = f"{count} image" + "s" * (count > 1)
        texts.append(f"{before / after:.2f} x with {images} at a time ({before:.1f} to {after:.1f} ms an image)")
    verdict = "" if min(ratios) >= PAYS else f"; int8 does not pay on this machine, {PAYS} x would"
    return f"{small.name}: fp32's speed {' and '.join(texts)}{verdict}"
