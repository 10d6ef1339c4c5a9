"""Run as a process of its own by the doctor: what MLX says of itself."""

from __future__ import annotations

from importlib import metadata

from doctor.probe import steps


def _versions() -> dict[str, object]:
    import mlx.core as mx

    return {"version": metadata.version("mlx"), "metal": mx.metal.is_available()}


def _device() -> dict[str, object]:
    import mlx.core as mx

    product = float((mx.ones((8, 8)) @ mx.ones((8, 8))).sum())
    if product != 512:
        raise ArithmeticError("a product of ones is wrong on this device")
    return {"device": str(mx.default_device()), "info": mx.device_info() if mx.metal.is_available() else {}}


def _engine() -> dict[str, object]:
    import backends.mlx.session

    return {"engine": backends.mlx.session.__name__}


if __name__ == "__main__":
    steps([_versions, _device, _engine])
