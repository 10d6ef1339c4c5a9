"""One update in several processes is the update of one: losses, gradient norm, weights, moments, averages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backends.group import ALONE
from backends.torch import model
from backends.torch.distributed.group import join
from backends.torch.distributed.replicas import synchronised
from config.errors import ConfigError
from config.launch import Launch
from tests import tiny
from tests.contract.cases import assert_same
from tests.distributed import cases
from tests.distributed.cases import CASES, Trained
from tests.distributed.ranks import together

# BatchNorm takes the statistics of each process's own images, so that only the processes can be compared.
EXACT = [name for name in CASES if name != "running statistics"]


@pytest.fixture(scope="module")
def trained() -> list[dict[str, Trained]]:
    return together(2, cases.all_cases)


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_train_as_one(name: str, trained: list[dict[str, Trained]]) -> None:
    cases.assert_trained_alike(trained[0][name], cases.train(ALONE, CASES[name]), CASES[name])


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].config.fsdp])
def test_a_state_of_spread_parameters_is_whole_and_goes_back(name: str, trained: list[dict[str, Trained]]) -> None:
    state, again = trained[0][name].state, trained[0][name].again
    assert again is not None
    assert_same(state, again)
    assert trained[1][name].state.weights == {}, "rank 0 alone holds it"


@pytest.mark.parametrize("name", CASES)
def test_all_processes_hold_the_same_bits_and_report_the_same(name: str, trained: list[dict[str, Trained]]) -> None:
    first, second = (each[name] for each in trained)
    assert first.digest == second.digest
    np.testing.assert_array_equal(first.logits, second.logits)
    for one, other in zip(first.results, second.results, strict=True):
        np.testing.assert_array_equal(one.losses, other.losses)
        assert (one.grad_norm, one.finite) == (other.grad_norm, other.finite)


def test_synchronised_batch_norm_keeps_all_names_and_is_refused_where_torch_has_none() -> None:
    network = model.build(tiny.spec("resnet"))
    names = list(network.state_dict())
    converted = synchronised(network, torch.device("cuda"))
    assert list(converted.state_dict()) == names
    assert sum(isinstance(m, torch.nn.SyncBatchNorm) for m in converted.modules()) > 5
    with pytest.raises(ConfigError, match=r"train\.sync_batch_norm: torch has it for NVIDIA GPUs, not for cpu"):
        synchronised(network, torch.device("cpu"))


def test_processes_without_a_place_to_meet_are_told_how_to_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what join sets is taken back
        monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match=r"srun: 2 processes and no MASTER_ADDR .*srun torchrun"):
        join(Launch(0, 0, 2, 2, "srun"))
    assert join(Launch()) is ALONE
