"""Out of memory: the run goes on in smaller parts of the same batch, or says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.contract import Batch, MixPlan, StepHyperparams
from config import load
from config.errors import ConfigError, Interrupted, OutOfMemory
from tests.numpy_engine import session
from tests.unit.test_campaign import NEVER, final, settings
from training.loop import memory
from training.run import prepare, train_run

PLAIN = ("--folds.train", "[0]", "--mining.cap", "0", "--sampling.oversample_to", "0", "--sampling.kind", "plain")
LONG = (*PLAIN, "--train.epochs", "21", "--checkpoint.every_epochs", "7")  # 105 updates


class Small:
    """A device that holds `most` images at a time, from the `since`-th update on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int, since: int = 0):
        self.sizes: list[tuple[int, int]] = []
        self.steps = 0
        train_step = session.Session.train_step

        def step(this: session.Session, batch: Batch, mix: MixPlan | None, knobs: StepHyperparams) -> Any:
            size = this._memory.size(len(batch.images))
            self.steps += 1
            if size > most and self.steps > since:
                raise OutOfMemory(f"no room for {size} images")
            self.sizes.append((len(batch.images), size))
            return train_step(this, batch, mix, knobs)

        monkeypatch.setattr(session.Session, "train_step", step)


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What the same run gives where the memory suffices."""
    return final(train_run.run_all("numpy", settings(digits, tmp_path_factory.mktemp("whole"), *LONG), NEVER))


@pytest.mark.parametrize(("since", "more"), [(0, ()), (99, ()), (0, ("--train.micro_batch", "auto"))])
def test_the_batch_stays_and_the_run_goes_on(since, more, whole, digits, tmp_path, monkeypatch, capsys) -> None:
    small = Small(monkeypatch, most=2, since=since)
    folder = train_run.run_all("numpy", settings(digits, tmp_path, *LONG, *more), NEVER)
    assert {batch for batch, _ in small.sizes} == {8}
    assert small.sizes[-1] == (8, 2)
    assert "2 of the batch's 8 images at a time" in capsys.readouterr().out
    assert memory.remembered(folder / "fold_0") == 2
    now = final(folder)
    assert now.keys() == whole.keys()
    for name, value in whole.items():  # the numpy engine computes the whole batch at once whatever the micro-batch
        np.testing.assert_array_equal(now[name], value, err_msg=name)


def test_trying_leaves_no_trace(whole, digits, tmp_path) -> None:
    folder = train_run.run_all("numpy", settings(digits, tmp_path, *LONG, "--train.micro_batch", "auto"), NEVER)
    assert memory.remembered(folder / "fold_0") == 0, "on a device that holds it the batch passes whole"
    for name, value in final(folder).items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


def test_a_run_that_is_started_again_knows_its_micro_batch(digits, tmp_path, monkeypatch) -> None:
    Small(monkeypatch, most=4)
    wanted = settings(digits, tmp_path, *PLAIN)
    with pytest.raises(Interrupted):
        train_run.run_all("numpy", wanted, lambda: len(list(tmp_path.glob("*/fold_0/step_*"))) > 1)
    again = Small(monkeypatch, most=4)
    train_run.run_all("numpy", wanted, NEVER)
    assert {size for _, size in again.sizes} == {4}
    assert again.steps == len(again.sizes), "nothing had to fail again"


def test_not_even_one_image_is_an_error_that_says_what_to_do(digits, tmp_path, monkeypatch) -> None:
    Small(monkeypatch, most=0)
    with pytest.raises(OutOfMemory, match=r"not even one image.*no room for 1 images.*checkpoint_gradients"):
        train_run.run_all("numpy", settings(digits, tmp_path, *PLAIN), NEVER)


@pytest.mark.parametrize(("size", "batch", "expected"), [(64, 64, 32), (20, 20, 10), (5, 20, 2), (3, 9, 1)])
def test_halves_divide_the_batch(size: int, batch: int, expected: int) -> None:
    assert memory.halved(size, batch, OutOfMemory("x")) == expected


def test_batch_size_auto_is_the_models_own_batch_in_parts_that_fit(digits: Path, tmp_path: Path) -> None:
    words = ["--data.root", str(digits), "--out", str(tmp_path), "--model", "test_convnext"]
    words += ["--train.batch_size", "auto"]
    resolved, spec, _ = prepare.prepare(load.parse(words, prog="test"))
    plain, _, _ = prepare.prepare(load.parse(words[:-2], prog="test"))
    assert resolved.train.batch_size == plain.train.batch_size
    assert resolved.train.micro_batch == "auto"
    assert spec.name
    with pytest.raises(ConfigError, match=r"train\.batch_size"):
        load.parse([*words[:-1], "many"], prog="test")


def test_torchs_out_of_memory_is_recognised_and_other_errors_pass() -> None:
    import torch

    from backends.torch.memory import memory_errors

    with pytest.raises(OutOfMemory, match=r"micro_batch"), memory_errors():
        torch.empty(1 << 50, dtype=torch.uint8)
    with pytest.raises(OutOfMemory), memory_errors():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(RuntimeError, match="shape"), memory_errors():
        torch.zeros(3).view(2)


# The texts are torch's own, CUDA's, cuBLAS's and cuDNN's; True: out of memory whatever is free, None: where it is full.
MESSAGES = {
    "CUDA error: out of memory": True,
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139.8 GiB": True,
    "MPS backend out of memory (MPS allocated: 17.9 GB, other allocations: 1.2 GB, max allowed: 18.1 GB)": True,
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": True,
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED": True,
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED": True,
    "CUFFT_ALLOC_FAILED": True,
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory": True,
    "GET was unable to find an engine to execute this computation": None,
    "FIND was unable to find an engine to execute this computation": None,
    "Unable to find an engine to execute this computation": None,
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`": None,
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`": None,
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED": None,
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED": None,
    "CUDA error: an illegal memory access was encountered": False,
    "mat1 and mat2 shapes cannot be multiplied (4x3 and 4x3)": False,
    "CUDA error: device-side assert triggered": False,
}


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize(("message", "meant"), MESSAGES.items())
def test_errors_of_cudas_libraries_are_out_of_memory_only_on_a_full_device(
    message: str, meant: bool | None, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from backends.torch.memory import memory_errors

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**28 if full else 2**33, 24 * 2**30))
    expected = OutOfMemory if (full if meant is None else meant) else RuntimeError
    with pytest.raises(expected) as raised, memory_errors():
        raise RuntimeError(message)
    assert type(raised.value) is expected and message[:40] in str(raised.value)


def test_mlxs_out_of_memory_is_recognised() -> None:
    import mlx.core as mx

    from backends.mlx.memory import memory_errors

    # Texts of Metal's allocator: MLX on a CPU ends the process where the memory does.
    for text in ("[metal::malloc] Unable to allocate 9 bytes.", "[metal::malloc] Attempting to allocate 9 bytes which"):
        with pytest.raises(OutOfMemory, match=r"micro_batch"), memory_errors():
            raise RuntimeError(text)
    with pytest.raises(ValueError, match="shape"), memory_errors():
        mx.zeros(3).reshape(2)
