"""ONNX files of `convert.onnx.export` in ONNX Runtime: uint8 NHWC or float NCHW in, logits out, with a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends import installed
from config.errors import BackendUnavailable, CheckpointError, WeightsError
from config.places import cache_folder
from infer.runtimes import images as pixels
from infer.runtimes import onnx_cuda
from models.card import CARD_KEY, Card

SUFFIX = ".onnx"
OPTIONS = ("provider",)

_COREML = "CoreMLExecutionProvider"
# TensorRT is for those who ask for it: it builds an engine for minutes first. So is Core ML, whose default format
# computes fp32 files in fp16.
_PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")
_COREML_BATCH = 16  # Core ML takes one size of batch, which is compiled for; the last part is filled up
# What the files are made for.
PROVIDERS = ("CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider", "CoreMLExecutionProvider")


class OnnxPredictor:
    """A session of ONNX Runtime; see `infer.runtimes.Predictor`."""

    runtime = "onnx"

    def __init__(self, card: Card, session: Any, batch: int = 0):
        self.card = card
        self._session, self._batch = session, batch
        self._floats = session.get_inputs()[0].type == "tensor(float)"

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that the session uses, the preferred first."""
        return tuple(self._session.get_providers())

    def logits(self, *images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 `[N, C]` of uint8 `[N, S, S, 3]` for each input."""
        arrays = pixels.checked(images, self.card)
        if not len(arrays[0]):
            return np.zeros((0, len(self.card.class_names)), np.float32)
        feeds: dict[str, NDArray[Any]] = dict(zip(pixels.names(self.card), arrays, strict=True))
        if self._floats:
            feeds = {name: np.moveaxis(array, 3, 1) / np.float32(255) for name, array in feeds.items()}
        if self.providers[0] == onnx_cuda.TENSORRT:
            starts = range(0, len(arrays[0]), onnx_cuda.TENSORRT_BATCH)
            chunks = [{n: a[i : i + onnx_cuda.TENSORRT_BATCH] for n, a in feeds.items()} for i in starts]
            return np.concatenate([self._bound(chunk, "cuda") for chunk in chunks])
        if self.providers[0] == onnx_cuda.CUDA:
            return self._bound(feeds, "cuda")
        if not self._batch:
            return np.asarray(self._session.run(["logits"], feeds)[0], np.float32)
        blocks = zip(*(pixels.split(array, (self._batch,)) for array in feeds.values()), strict=True)
        rows = [self._session.run(["logits"], dict(zip(feeds, block, strict=True)))[0] for block in blocks]
        return np.concatenate(rows)[: len(arrays[0])].astype(np.float32)

    def _bound(self, feeds: dict[str, NDArray[Any]], device: str) -> NDArray[np.float32]:
        """One run with its inputs and output bound to `device`: one copy there and one back."""
        import onnxruntime

        binding, number = self._session.io_binding(), onnx_cuda.device_number() if device == "cuda" else 0
        for name, array in feeds.items():
            there = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, number)
            binding.bind_ortvalue_input(name, there)
        binding.bind_output("logits", device, number)
        self._session.run_with_iobinding(binding)
        return np.asarray(binding.copy_outputs_to_cpu()[0], np.float32)

    def close(self) -> None:
        """Free the session."""
        self._session = None


def available(path: Path) -> tuple[str, ...]:
    """The providers of `PROVIDERS` that run the file here without being waited for: TensorRT builds engines first, and
    CUDA's libraries may be listed and not load."""
    import onnxruntime

    listed = [p for p in PROVIDERS if p in onnxruntime.get_available_providers() and p != onnx_cuda.TENSORRT]
    return tuple(p for p in listed if p != onnx_cuda.CUDA or p in _try(path, (p,)).get_providers())


def version() -> str:
    """ONNX Runtime's name and version."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def open(path: Path, providers: tuple[str, ...] | None = None) -> OnnxPredictor:
    """Open an `.onnx` file; `providers` are whole names or `cuda`, `tensorrt`, `coreml`, `cpu`, the preferred first.

    Without them: CUDA, else the CPU, as far as this ONNX Runtime has them; one that is listed and does not load is a
    warning then. Core ML gets batches of one size, and keeps what it compiled in the user's cache folder.

    Raises `CheckpointError` for a missing file, `WeightsError` for a damaged one, one without a card or one with other
    inputs and outputs than `convert.onnx.export` writes, `BackendUnavailable` without ONNX Runtime, or for a provider
    that is absent or does not load.
    """
    if not installed("onnxruntime"):
        raise BackendUnavailable(f'{path}: needs onnxruntime, not installed here; run: pip install -e ".[convert]"')
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such ONNX file")
    session = _session(path, providers)
    card = Card.from_json(session.get_modelmeta().custom_metadata_map.get(CARD_KEY), str(path))
    _check_signature(session, card, path)
    return OnnxPredictor(card, session, _COREML_BATCH if session.get_providers()[0] == _COREML else 0)


def _session(path: Path, providers: tuple[str, ...] | None) -> Any:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    full_names = {provider.removesuffix("ExecutionProvider").lower(): provider for provider in PROVIDERS}
    wanted = providers or [p for p in _PREFERRED if p in available]
    chosen = tuple(full_names.get(name.lower(), name) for name in wanted)  # an unknown name stays as it is
    absent = [p for p in chosen if p not in available]
    if absent:
        what = f"{path}: ONNX Runtime has no {', '.join(absent)} here; it has {', '.join(available)}"
        raise BackendUnavailable(f"{what}{onnx_cuda.remedy(absent)}")
    session = _try(path, chosen)
    onnx_cuda.check(chosen, session.get_providers(), bool(providers), path)
    return session


def _try(path: Path, chosen: tuple[str, ...]) -> Any:
    """A session with as many of these providers as load."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    # What it raises for a damaged or foreign file; these have no common base.
    faults = errors.InvalidProtobuf, errors.InvalidGraph, errors.InvalidArgument, errors.Fail, errors.NotImplemented
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    onnx_cuda.preload(chosen)
    configured = [(p, _coreml_options()) if p == _COREML else p for p in onnx_cuda.with_options(chosen, path)]
    if _COREML in chosen:
        options.add_free_dimension_override_by_name("batch", _COREML_BATCH)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=configured)
    except faults as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path}: ONNX Runtime cannot load it ({reason}); convert it again") from error


def _coreml_options() -> dict[str, str]:
    """An ML Program keeps fp32, which the default format does not; static shapes, since others stay on the CPU."""
    compiled = cache_folder() / "onnx_coreml"
    compiled.mkdir(parents=True, exist_ok=True)
    return {"ModelFormat": "MLProgram", "RequireStaticInputShapes": "1", "ModelCacheDirectory": str(compiled)}


def _check_signature(session: Any, card: Card, path: Path) -> None:
    sizes, classes = [prep.size for prep in card.inputs], len(card.class_names)
    inputs = [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()]
    size_of = dict(zip(pixels.names(card), sizes, strict=True))
    wanted = [(name, "tensor(uint8)", [size, size, 3]) for name, size in size_of.items()]
    floats = [(name, "tensor(float)", [3, size, size]) for name, size in size_of.items()]
    outputs = [(o.name, o.shape[1:]) for o in session.get_outputs()]
    known = [("logits", [classes]), ("probabilities", [classes])]
    if inputs not in (wanted, floats) or outputs not in (known[:1], known):
        raise WeightsError(
            f"{path}: takes {inputs} and gives {outputs}, its card says {wanted} and {classes} logits; convert it again"
        )
