"""The page of `infer serve`, made with Gradio. It loads nothing from other machines and reports to none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from config.errors import DataError, Diverged
from infer.explain.report import Explanation, explain, looks
from infer.runner import Runner

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
_MOST = 16  # images at a time


def look() -> dict[str, Any]:
    """The theme, with the fonts of the machine."""
    import gradio as gr

    return {"theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])}


def build(runner: Runner, pixel_limit: int) -> Any:
    """The page for one ensemble."""
    import gradio as gr

    def answer(files: list[str] | None) -> tuple[Any, ...]:
        given = [Path(file) for file in files or []]
        if len(given) > _MOST:
            raise gr.Error(f"{len(given)} images: give {_MOST} at the most, or use python -m infer --images")
        said = {path.name: _try(runner, path, pixel_limit) for path in given}
        good = [name for name, (one, _) in said.items() if isinstance(one, Explanation)]
        rows = [[name, *_row(one)] for name, (one, _) in said.items()]
        faults = "\n".join(f"- {name}: {one}" for name, (one, _) in said.items() if isinstance(one, str))
        return rows, faults, gr.Dropdown(choices=good, value=good[0] if good else None), said

    def show(name: str | None, said: dict[str, Any]) -> tuple[Any, ...]:
        if not name or name not in said:
            return "", None, [], [], []
        one, data = said[name]
        probabilities = dict(zip(one.class_names, map(float, one.probabilities), strict=True))
        table = [[member, *_best(one.class_names, rows)] for member, rows in one.members.items()]
        seen = [(image, view) for view, image in one.views.items()]
        where = looks(runner, data, pixel_limit, one.label)
        return one.certainty(), probabilities, table, seen, [(image, member) for member, image in where.items()]

    with gr.Blocks(title="Tandem") as made:
        gr.Markdown(f"## Tandem\n{runner.name}; views: {', '.join(runner.ensemble.views)}")
        with gr.Row():
            with gr.Column(scale=2):
                files = gr.File(label="Images", file_count="multiple", file_types=["image"])
                every = gr.Dataframe(headers=["image", "label", "probability", "margin", "agree"], label="Answers")
                faults = gr.Markdown()
            with gr.Column(scale=3):
                chosen = gr.Dropdown(label="Shown", choices=[])
                words = gr.Markdown()
                label = gr.Label(label="Ensemble", num_top_classes=5)
                alone = gr.Dataframe(headers=["member", "label", "probability"], label="Each member alone")
                seen = gr.Gallery(label="Views", columns=4, height=260)
                where = gr.Gallery(label="Where each member looks (Grad-CAM; red counts most)", columns=4, height=260)
        said = gr.State({})
        files.change(answer, files, [every, faults, chosen, said], api_name=False)
        chosen.change(show, [chosen, said], [words, label, alone, seen, where], api_name=False)
    return made


def _try(runner: Runner, path: Path, pixel_limit: int) -> tuple[Explanation | str, bytes]:
    """The answer or the fault, and the file's bytes."""
    data = path.read_bytes()
    try:
        return explain(runner, data, pixel_limit), data
    except (DataError, Diverged) as error:
        return str(error), data


def _row(said: Explanation | str) -> list[str]:
    if isinstance(said, str):
        return ["unreadable", "", "", ""]
    agree = f"{said.agreeing} of {len(said.members)}"
    return [said.label, f"{said.probabilities.max():.1%}", f"{said.margin:.1%}", agree]


def _best(names: tuple[str, ...], rows: Any) -> list[str]:
    return [names[int(rows.argmax())], f"{rows.max():.1%}"]
