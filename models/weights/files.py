"""Weights files: read into canonical arrays, and written. safetensors only; `torch_files` reads pickles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from config.errors import WeightsError
from config.places import atomic_path

Weights = dict[str, NDArray[np.float32]]
# What timm recomputes from the architecture, or keeps for itself: never part of the canonical weights.
DERIVED = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask")


def read(path: Path) -> tuple[Weights, dict[str, str]]:
    """The canonical float32 weights of a safetensors file, and its metadata.

    fp16, bf16 and fp64 entries become float32; entries that only timm keeps (`num_batches_tracked`, ...) are left
    out. Raises `WeightsError` when the file is missing, truncated, damaged, or not safetensors.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
            names = [n for n in file.keys() if n.rpartition(".")[2] not in DERIVED]  # noqa: SIM118
            has_bf16 = any(file.get_slice(n).get_dtype() == "BF16" for n in names)
            weights = {} if has_bf16 else {n: _float32(n, file.get_tensor(n)) for n in names}
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file; name a .safetensors file or a checkpoint folder") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: damaged or no safetensors file ({error}); download or copy it again, or convert a .pth with timm"
        ) from error
    except TypeError as error:
        raise WeightsError(f"{path}: {error}") from error
    return (dict(_read_bf16(path, names)) if has_bf16 else weights), metadata


def write(path: Path, weights: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str]) -> None:
    """Write float32 weights as safetensors; the file is complete or absent."""
    arrays = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()}
    with atomic_path(path) as unfinished:
        safetensors.numpy.save_file(arrays, unfinished, metadata=dict(metadata))


def _float32(name: str, array: NDArray) -> NDArray[np.float32]:
    if array.dtype.kind != "f":
        raise TypeError(f"{name} is {array.dtype}, weights are floating point; is this a file of weights?")
    return array.astype(np.float32)


def _read_bf16(path: Path, names: list[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    # NumPy has no bfloat16: its 16 bits are the upper half of a float32.
    for name, entry in safetensors.deserialize(path.read_bytes()):
        if name not in names:
            continue
        if entry["dtype"] == "BF16":
            wide = np.frombuffer(entry["data"], dtype="<u2").astype(np.uint32) << np.uint32(16)
            yield name, wide.view(np.float32).reshape(entry["shape"])
        else:
            dtype = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}.get(entry["dtype"])
            if dtype is None:
                raise WeightsError(f"{path}: {name} is {entry['dtype']}, weights are floating point")
            yield name, np.frombuffer(entry["data"], dtype=dtype).reshape(entry["shape"]).astype(np.float32)
