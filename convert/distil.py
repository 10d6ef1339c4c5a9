"""Prepares the training of one small student on an ensemble's probabilities: its predictions, and a recipe.

`infer.teacher` predicts, fold by fold, so that no student learns of its validation images. `train_torch.py` and
`train_mlx.py` train with the recipe.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml

from config import load
from config.errors import ConvertError
from config.schema import Settings
from config.text import counted
from ensemble import ensemble_file as ensembles
from ensemble.ensemble_file import Ensemble
from ensemble.member import Member
from ensemble.oof import oof_files, teacher_file
from infer import teacher
from models import registry

ANSWERS, RECIPE = "teacher.npz", "student.yaml"
# The settings of a run that determine its images; the student gets the same.
_DATA = (
    *("root", "table", "images", "id_column", "target_column", "label_pattern", "follow_links"),
    *("resize_mode", "image_size", "on_bad_image", "icc_to_srgb", "pixel_limit"),
)
# A student is trained longer than its teachers: "a good teacher is patient" (Beyer et al. 2022).
_LONGER = 3


def prepare(path: Path, folder: Path, student: str) -> Path:
    """Write the predictions of an ensemble file or a run, and the student's recipe, into `folder`, new or empty.

    Every member must be a run's best checkpoint, all runs of one split. Raises `ConfigError`, `ConvertError` or
    `CheckpointError`; then nothing is left.
    """
    registry.get(student)
    mixture = _mixture(path)
    runs = _runs(path, mixture)
    if folder.exists() and any(folder.iterdir()):
        raise ConvertError(f"{folder}: is not empty; give --distil a new folder")
    settings = load.read(runs[0] / "config.yaml")
    predictions = teacher.predict(runs, None, mixture=mixture, on_bad_image=settings.data.on_bad_image)
    recipe = _recipe(settings, runs[0], folder.resolve(), student)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            unfinished = Path(scratch) / folder.name
            teacher_file.write(unfinished / ANSWERS, predictions)
            (unfinished / RECIPE).write_text(_text(recipe, path), encoding="utf-8")
            unfinished.replace(folder)
    except OSError as error:
        raise ConvertError(f"{folder}: cannot be written ({error.strerror or error}); give another --distil") from error
    members = counted(len(mixture.members), "member")
    print(f"wrote {folder / ANSWERS}: {counted(len(predictions.ids), 'answer')} of {members}")
    print(f"wrote {folder / RECIPE}; train the student: python train_torch.py --config {folder / RECIPE}")
    return folder / RECIPE


def _mixture(path: Path) -> Ensemble:
    if path.suffix in (".yaml", ".yml"):
        return ensembles.read(path)
    best = sorted(path.glob(f"fold_*/{oof_files.BEST}"))
    if not best:
        raise ConvertError(f"{path}: is neither an ensemble file nor a run; only these have answers to distil")
    return Ensemble(members=tuple(Member(path=fold) for fold in best))


def _runs(path: Path, mixture: Ensemble) -> list[Path]:
    runs: dict[Path, None] = {}
    for member in mixture.members:
        path_of = member.path.resolve()
        run = path_of.parent.parent
        if path_of.name != oof_files.BEST or not (run / "folds.csv").is_file():
            raise ConvertError(
                f"{path}: its member {member.path} is not the best checkpoint of a run's fold, so that nobody knows "
                "which images it has seen; make the ensemble with `python -m infer fit RUN ...`"
            )
        runs[run] = None
    return list(runs)


def _recipe(settings: Settings, run: Path, folder: Path, student: str) -> dict[str, Any]:
    data = settings.data.model_dump(mode="json", include=set(_DATA), exclude_defaults=True)
    data["root"] = str(Path(settings.data.root).resolve())
    return {
        "model": student,
        "weights": "none" if settings.weights == "none" else "pretrained",
        "data": data,
        "folds": {**settings.folds.model_dump(mode="json", exclude_defaults=True), "file": str(run / "folds.csv")},
        "augment": settings.augment.model_dump(mode="json", exclude_defaults=True),
        "train": {"epochs": _LONGER * settings.train.epochs},
        "teacher": {"file": str(folder / ANSWERS), "weight": 0.7, "temperature": 2.0},
    }


def _text(recipe: dict[str, Any], path: Path) -> str:
    """The recipe as YAML, checked by loading it."""
    comment = f"# One small student, taught by {path}; its answers are in {ANSWERS}. See docs/guide/teacher.md.\n"
    text = comment + yaml.safe_dump({k: v for k, v in recipe.items() if v}, sort_keys=False)
    with tempfile.TemporaryDirectory() as scratch:
        tried = Path(scratch) / RECIPE
        tried.write_text(text, encoding="utf-8")
        load.read(tried)
    return text
