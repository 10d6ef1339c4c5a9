"""Device, precision and first line of a start on CUDA, with a faked CUDA: what torch says of a card and its driver."""

from __future__ import annotations

import warnings

import pytest
import torch

from backends.contract import OptimSpec, SessionConfig
from backends.group import ALONE
from backends.torch import devices
from backends.torch.memory import memory_errors
from backends.torch.precision import allow_tf32, of_inference, resolved
from backends.torch.session import Session
from config import load
from config.errors import BackendUnavailable, ConfigError
from tests import tiny
from tests.contract.cases import CLASSES, KNOBS, assert_same, batch
from training.run import prepare
from training.trackers import machine

WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]  # torch 2.15 for CUDA 13
CPU = torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Four GPUs of the capability `card["capability"]`; `card["current"]` is the device that was made current."""
    card: dict[str, object] = {"capability": (8, 6), "architectures": WHEEL}
    monkeypatch.delenv(devices.DEVICE_VARIABLE, raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: card["capability"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA Something")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: card["architectures"])
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: card.update(current=device))
    return card


@pytest.mark.parametrize(("rank", "expected"), [("", "cuda"), ("0", "cuda:0"), ("3", "cuda:3"), ("5", "cuda:1")])
def test_each_process_of_torchrun_takes_its_gpu(
    rank: str, expected: str, cuda: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert devices.best_device() == torch.device(expected)
    assert cuda.get("current") == (torch.device(expected) if rank else None)
    monkeypatch.setenv(devices.DEVICE_VARIABLE, "cuda:2")
    assert devices.best_device() == torch.device("cuda:2"), "what the user names is what he gets"
    assert cuda["current"] == torch.device("cuda:2"), "its memory is what is asked for near a full device"


def test_each_task_of_srun_takes_its_gpu(cuda: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PROCID": "6", "LOCALID": "2", "STEP_NUM_TASKS": "8", "STEP_TASKS_PER_NODE": "4(x2)"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NODEID", "1")
    assert devices.best_device() == torch.device("cuda:2")


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (WHEEL, (7, 5), True),
        (WHEEL, (8, 9), True),  # code for 8.0 runs on all of 8.x
        (WHEEL, (12, 1), True),
        (WHEEL, (7, 0), False),  # V100
        (WHEEL, (6, 0), False),  # P100
        (WHEEL, (11, 0), False),
        (["sm_90a"], (9, 0), True),
        (["sm_80", "compute_80"], (9, 0), True),  # the driver compiles PTX for later cards
        (["sm_80", "compute_80"], (7, 5), False),
        ([], (6, 0), True),  # torch says nothing
    ],
)
def test_a_card_without_kernels_is_one_line(
    architectures: list[str], capability: tuple[int, int], runs: bool, cuda: dict[str, object]
) -> None:
    cuda.update(architectures=architectures, capability=capability)
    if runs:
        assert devices.best_device() == torch.device("cuda")
        return
    text = rf"NVIDIA Something of compute capability {capability[0]}\.{capability[1]}.*no kernels.*{architectures[0]}"
    for opening in (devices.best_device, lambda: devices.named("cuda:1", "--device ")):
        with pytest.raises(BackendUnavailable, match=text):
            opening()


def test_a_driver_that_is_too_old_is_no_silent_cpu(cuda: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    words = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update"

    def available() -> bool:
        warnings.warn(words, stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", available)
    with pytest.raises(BackendUnavailable, match=r"driver on your system is too old \(found version 11040\).*=cpu"):
        devices.best_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # torch warns once a process
    with pytest.raises(BackendUnavailable, match="cannot use this machine's NVIDIA GPU: CUDA does not start"):
        devices.best_device()
    monkeypatch.setenv(devices.DEVICE_VARIABLE, "cpu")
    assert devices.best_device() == CPU
    monkeypatch.delenv(devices.DEVICE_VARIABLE)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices.best_device().type in ("cpu", "mps"), "no GPU is no fault"


@pytest.mark.parametrize(
    ("capability", "training", "inference"),
    [
        ((9, 0), "bf16", "tf32"),
        ((8, 0), "bf16", "tf32"),
        ((7, 5), "fp16", "fp32"),
        ((7, 0), "fp16", "fp32"),
        ((6, 1), "fp32", "fp32"),
    ],
)
def test_auto_is_what_the_session_s_own_card_is_fast_at(
    capability: tuple[int, int],
    training: str,
    inference: str,
    cuda: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    switched = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", switched.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    own = torch.device("cuda:1")
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: capability if device == own else pytest.fail("other card")
    )
    assert resolved("auto", own) == training
    assert of_inference(None, own) == inference
    assert switched == ["highest", "high" if inference == "tf32" else "highest"]
    assert of_inference(None, CPU) == resolved("auto", CPU) == "fp32"
    allow_tf32("tf32", CPU)
    assert len(switched) == 2
    for precision in ("bf16", "tf32"):
        if capability >= (8, 0):
            assert resolved(precision, own) == precision
            continue
        with pytest.raises(
            ConfigError, match=rf"precision {precision}: needs .* 8\.0 or later.*cuda:1 has {capability[0]}"
        ):
            resolved(precision, own)


def test_a_start_says_device_precision_and_whether_it_is_compiled() -> None:
    own = {"device": "cuda:0: NVIDIA H200", "precision": "bf16", "compiled": True, "compile_mode": "reduce-overhead"}
    assert machine.started(own) == "cuda:0: NVIDIA H200, bf16, compiled (reduce-overhead)"
    own |= {"compile_mode": "default", "deterministic": True}
    assert machine.started(own) == "cuda:0: NVIDIA H200, bf16, compiled, deterministic"
    assert machine.started({"device": "gpu: Apple M3", "precision": "fp32", "compiled": True}).endswith(
        "fp32, compiled"
    )
    told = machine.started(plain().describe())
    assert told.startswith("cpu: ") and told.endswith(", fp32, not compiled")


def test_a_torch_without_cuda_beside_an_nvidia_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(devices.DEVICE_VARIABLE, raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(devices.shutil, "which", lambda name: name)
    assert "(torch" in machine.started(plain().describe()) and "built without CUDA" in machine.started(
        plain().describe()
    )
    monkeypatch.setenv(devices.DEVICE_VARIABLE, "cpu")
    assert devices.remark(CPU) == "", "the user chose the CPU"


def plain(deterministic: bool = False) -> Session:
    spec = tiny.spec("convnext", num_classes=CLASSES)
    config = SessionConfig(OptimSpec(ema=True), precision="auto", compile=False, deterministic=deterministic)
    return Session(spec, None, config, CPU, ALONE)


def test_deterministic_is_torch_s_strict_mode_until_the_session_ends() -> None:
    exact, usual = plain(deterministic=True), plain()
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    for session in (exact, usual):
        session.read(session.train_step(batch(), None, KNOBS))
    assert_same(exact.state(), usual.state())  # the CPU is deterministic as it is
    with (
        pytest.raises(ConfigError, match=r"train\.deterministic: torch has no such .*put_.*set it to false"),
        memory_errors(),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    usual.close()
    assert torch.are_deterministic_algorithms_enabled()
    exact.close()
    assert not torch.are_deterministic_algorithms_enabled()
    wish = load.parse(["--data.root", "x", "--train.deterministic", "true"], prog="test")
    prepare.refuse(wish, "torch")
    with pytest.raises(ConfigError, match=r"train\.deterministic: torch alone"):
        prepare.refuse(wish, "mlx")
