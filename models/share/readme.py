"""README.md of a shared model: the Hub's metadata with the measured scores, and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from config.text import counted
from models.card import Preprocessing
from models.share.trained import Scores, Trained

# Licences that the Hub knows by these names; others are its `other` with a name.
_HUB_LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-nc-4.0", "apple-ascl", "apple-amlr")
_METRICS = {"accuracy": ("accuracy", "Accuracy"), "macro_f1": ("f1", "Macro F1"), "log_loss": ("log_loss", "Log loss")}
_FITS = {
    "crop": "the short side is resized to the size over {crop_pct:g}, and the centre is taken",
    "squash": "the whole image is resized to the square, whatever its shape",
    "letterbox": "the long side is resized to the square, and the rest is padded",
}


class Facts(NamedTuple):
    """What the user says: a name for the data set and a licence; "" takes the run's folder and the base weights'."""

    dataset: str = ""
    license: str = ""


def text(trained: Trained, repo: str, facts: Facts) -> str:
    """The whole file."""
    from huggingface_hub import ModelCardData

    # Of the data set's path only the last component: the rest is the user's own.
    dataset = facts.dataset or (trained.settings.data.root.resolve().name if trained.settings else "not said")
    license = facts.license or _license_of_base(trained)
    is_known = not license or license in _HUB_LICENSES
    metadata = ModelCardData(
        model_name=repo.rpartition("/")[2],
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "tandem"],
        eval_results=_results(trained.scores, dataset),
        base_model=_base(trained) or None,
        license=(license or None) if is_known else "other",
        license_name=None if is_known else license,
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{_body(trained, repo, dataset, facts)}"


def _results(scores: tuple[Scores, ...], dataset: str) -> list[Any] | None:
    from huggingface_hub import EvalResult

    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="imagefolder",
            dataset_name=dataset,
            dataset_split=each.split,
            dataset_args={"images": each.images, "of": each.of},
            metric_type=_METRICS[name][0],
            metric_name=_METRICS[name][1],
            metric_value=round(value, 6),
            metric_args={"average": "macro"} if name == "macro_f1" else None,
        )
        for each in scores
        for name, value in each.values.items()
    ]
    return results or None


def _weights(trained: Trained) -> str:
    """What training started from, as the setting `weights` has it; of a network that was not trained, its own."""
    return trained.settings.weights if trained.settings else "pretrained"


def _base(trained: Trained) -> str:
    """The repository of the weights that training started from; "" where they are of none."""
    weights = _weights(trained)
    if weights.startswith(("hf:", "hf-hub:")):
        return weights.partition(":")[2].partition("@")[0]
    return trained.spec.hub_id if weights == "pretrained" else ""


def _license_of_base(trained: Trained) -> str:
    """That of the weights that training started from; "" where it is not known."""
    return trained.spec.license if _weights(trained) in ("pretrained", "pip") else ""


def _body(trained: Trained, repo: str, dataset: str, facts: Facts) -> str:
    names = trained.card.class_names
    shown = ", ".join(f"`{name}`" for name in names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    sections = [
        f"# {repo.rpartition('/')[2]}",
        f"{trained.spec.arch} for {len(names)} classes: {shown}. Trained with Tandem.",
        _usage(repo),
        _scores(trained.scores, dataset),
        _training(trained, dataset),
        _preprocessing(trained.card.preprocessing),
        _terms(trained, facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _usage(repo: str) -> str:
    return f"""## Use

```python
import timm
import torch
from PIL import Image

model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config({{}}, model=model))
with torch.inference_mode():
    probabilities = model(transform(Image.open("a.jpg").convert("RGB"))[None]).softmax(-1)[0]
model.pretrained_cfg["label_names"][probabilities.argmax()]
```

Tandem takes it as `--weights hf:{repo}` to fine-tune it, and as `--member hf:{repo}` to predict with it."""


def _scores(scores: tuple[Scores, ...], dataset: str) -> str:
    if not scores:
        return ""
    rows = [
        f"| {each.of} | {each.images} | {each.values['accuracy']:.4f} | {each.values['macro_f1']:.4f} "
        f"| {each.values['log_loss']:.4f} |"
        for each in scores
    ]
    chosen = (
        "\n\nThe best epoch was chosen by the validation images, so that their scores are slightly high."
        if any(each.split == "validation" for each in scores)
        else ""
    )
    head = "| images of | n | accuracy | macro-F1 | log loss |\n|---|---|---|---|---|"
    return f"## Scores\n\nData set: {dataset}.\n\n{head}\n" + "\n".join(rows) + chosen


def _training(trained: Trained, dataset: str) -> str:
    settings = trained.settings
    if settings is None:
        return ""
    start = {"none": "random weights", "pretrained": f"the weights {trained.spec.name}", "pip": trained.spec.name}
    source = settings.weights
    weights = start.get(source, source if source.startswith("hf") else f"`{Path(source).name}`")
    images = f" ({counted(sum(trained.card.class_counts), 'labelled image')})" if trained.card.class_counts else ""
    return (
        f"## Training\n\nData set: {dataset}{images}. Started from {weights}; at most "
        f"{counted(settings.train.epochs, 'epoch')}, batches of {settings.train.batch_size}, {settings.optim.name} "
        f"with a peak learning rate of {settings.optim.lr:g}, augmentation {settings.augment.level}, seed "
        f"{settings.seed}, on {trained.card.trained_with}."
    )


def _preprocessing(prep: Preprocessing) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (prep.mean, prep.std))
    lines = [
        f"## Preprocessing\n\n{prep.size} x {prep.size} pixels, {prep.interpolation}; "
        f"{_FITS[prep.fit].format(crop_pct=prep.crop_pct)}. Mean {mean}; standard deviation {std}."
    ]
    if prep.fit == "letterbox":
        lines.append(f"timm pads with the mean colour, training padded with {prep.pad}: near, not equal.")
    if prep.resampling == "area":
        lines.append("timm resizes by Pillow's filters, training resized by areas (OpenCV): near, not equal.")
    if prep.icc_to_srgb:
        lines.append("Training converted embedded ICC profiles to sRGB, which timm does not.")
    return " ".join(lines)


def _terms(trained: Trained, facts: Facts) -> str:
    base, of_base = _base(trained), _license_of_base(trained)
    lines = []
    if of_base or base:
        lines.append(f"The base weights, {base or trained.spec.name}: {of_base or 'see their page'}.")
    if facts.license:
        lines.append(f"This model: {facts.license}.")
    return "\n\n".join(["## License", " ".join(lines)]) if lines else ""
