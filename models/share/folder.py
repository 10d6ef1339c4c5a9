"""The folder that is shared: timm's `config.json`, the weights under timm's names, and README.md, the model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from config.errors import ConfigError
from config.places import atomic_folder
from models import registry
from models.share import readme
from models.share.trained import Trained
from models.weights import files

CONFIG, WEIGHTS, README = "config.json", "model.safetensors", "README.md"
_CROP_MODES = {"crop": "center", "squash": "squash", "letterbox": "border"}


def write(out: Path, trained: Trained, repo: str, facts: readme.Facts) -> list[Path]:
    """Write the three files into the new folder `out`, which is complete or absent; their paths.

    `repo` is what the model card calls the model. Raises `ConfigError` where `out` exists or cannot be written.
    """
    if out.exists():
        raise ConfigError(f"--out {out}: is there already; name a new folder")
    try:
        with atomic_folder(out) as folder:
            weights, _ = files.read(trained.weights_file)
            files.write(folder / WEIGHTS, weights, {"format": "pt"})
            text = json.dumps(config(trained), indent=2, ensure_ascii=False) + "\n"
            (folder / CONFIG).write_text(text, encoding="utf-8")
            (folder / README).write_text(readme.text(trained, repo, facts), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror}); give another --out") from error
    return [out / name for name in (CONFIG, WEIGHTS, README)]


def config(trained: Trained) -> dict[str, Any]:
    """What `timm.create_model("local-dir:...")` and `("hf-hub:...")` read: architecture, labels, preprocessing."""
    spec, prep, names = trained.spec, trained.card.preprocessing, trained.card.class_names
    return {
        "architecture": spec.arch,
        "num_classes": len(names),
        "label_names": list(names),
        "model_args": registry.timm_args(spec),
        "pretrained_cfg": {
            "tag": "tandem",
            "custom_load": False,
            "input_size": [spec.in_chans, prep.size, prep.size],
            "fixed_input_size": spec.fixed_input_size,
            "interpolation": prep.interpolation,
            "crop_pct": prep.crop_pct if prep.fit == "crop" else 1.0,
            "crop_mode": _CROP_MODES[prep.fit],
            "mean": list(prep.mean),
            "std": list(prep.std),
            "num_classes": len(names),
            "first_conv": spec.first_conv,
            "classifier": spec.classifier,
        },
    }
