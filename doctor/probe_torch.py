"""Run as a process of its own by the doctor: what torch, torchvision and timm say of themselves."""

from __future__ import annotations

from doctor.probe import steps


def _versions() -> dict[str, object]:
    import torch

    return {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}


def _libraries() -> dict[str, object]:
    import timm
    import torchvision

    return {"torchvision": torchvision.__version__, "timm": timm.__version__}


def _device() -> dict[str, object]:
    import torch

    from backends.torch import devices

    device = devices.best_device()
    product = torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)
    if float(product.sum()) != 512:
        raise ArithmeticError("a product of ones is wrong on this device")
    report: dict[str, object] = {"device": str(device), "threads": torch.get_num_threads()}
    report["remark"] = devices.remark(device)
    if device.type == "cuda":
        gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        report["gpus"] = [
            {"name": gpu.name, "capability": f"{gpu.major}.{gpu.minor}", "gib": round(gpu.total_memory / 2**30, 1)}
            for gpu in gpus
        ]
        report["cudnn"] = torch.backends.cudnn.version()
    return report


def _engine() -> dict[str, object]:
    import backends.torch.session
    from backends.torch import compiling, devices

    device = devices.best_device()
    refused = compiling.refusal(device) if device.type in ("cuda", "cpu") else "not on this kind of device"
    return {"engine": backends.torch.session.__name__, "compile": refused}


if __name__ == "__main__":
    steps([_versions, _libraries, _device, _engine])
