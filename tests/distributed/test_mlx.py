"""The processes of mlx.launch, over a ring on this machine: one update, and whole runs."""

from __future__ import annotations

import numpy as np
import pytest

from backends.group import ALONE
from tests.distributed import cases
from tests.distributed.cases import CASES, Trained
from tests.distributed.ranks import together

SESSIONS = [name for name in CASES if not CASES[name].config.fsdp]
# BatchNorm takes the statistics of each process's own images, so that only the processes can be compared.
EXACT = [name for name in SESSIONS if name != "running statistics"]


@pytest.fixture(scope="module")
def trained() -> list[dict[str, Trained]]:
    return together(2, cases.all_cases, "mlx", engine="mlx")


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_train_as_one(name: str, trained: list[dict[str, Trained]]) -> None:
    alone, several = cases.train(ALONE, CASES[name], "mlx"), trained[0][name]
    for one, other in zip(alone.results, several.results, strict=True):
        np.testing.assert_allclose(other.losses, one.losses, rtol=1e-5)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    assert several.state.step == alone.state.step == len(CASES[name].knobs)
    assert several.state.frozen_steps == alone.state.frozen_steps
    for part in ("weights", "ema"):
        held, expected = getattr(several.state, part) or {}, getattr(alone.state, part) or {}
        assert held.keys() == expected.keys()
        for key in held:
            np.testing.assert_allclose(held[key], expected[key], rtol=1e-4, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", SESSIONS)
def test_all_processes_hold_the_same_bits_and_report_the_same(name: str, trained: list[dict[str, Trained]]) -> None:
    first, second = (each[name] for each in trained)
    assert first.digest == second.digest
    np.testing.assert_array_equal(first.logits, second.logits)
    for one, other in zip(first.results, second.results, strict=True):
        np.testing.assert_array_equal(one.losses, other.losses)
        assert (one.grad_norm, one.finite) == (other.grad_norm, other.finite)
