"""A trained model for others: a folder that timm loads, its model card, and the upload to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from config.errors import ConfigError


def share(
    path: Path,
    repo: str = "",
    out: Path | None = None,
    fold: int | None = None,
    evaluation: Path | None = None,
    dataset: str = "",
    license: str = "",
    private: bool = False,
) -> list[str]:
    """Write the trained model `path` as the new folder `out`, or upload it to `repo`; what was done, in sentences.

    `path`, `fold` and `evaluation` are those of `trained.read`; `dataset` and `license` go into the model card. Raises
    `ConfigError`, `CheckpointError`, and `WeightsError` where the hub is not reached or refuses.
    """
    from models.share import folder, readme, trained, upload

    if out is None and not repo:
        raise ConfigError("nothing to do; name the repository (USER/NAME), or a folder with --out DIR")
    if out is None:
        upload.check(repo)
    model = trained.read(path, fold, evaluation)
    facts = readme.Facts(dataset, license)
    if out is not None:
        folder.write(out, model, repo or f"USER/{out.resolve().name}", facts)
        return [f"{model.path}: written to {out}", f"load it: timm.create_model('local-dir:{out}', pretrained=True)"]
    with tempfile.TemporaryDirectory() as temporary:
        written = Path(temporary) / "shared"
        folder.write(written, model, repo, facts)
        address = upload.upload(written, repo, private)
    return [f"{model.path}: uploaded to {address}", f"load it: timm.create_model('hf-hub:{repo}', pretrained=True)"]
