"""The addresses of the board and what each shows; the pages themselves are in `infer.pages`.

`/` all runs, `/rows` the same without the page around it, `/run` one run or campaign, `/live` what changes of it while
it trains, `/file` a report, audit or picture of it, `/predict` its prediction page, where alone POST is allowed.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from config import load, streams
from config.errors import TandemError
from data.names import of_path
from infer.commands.page import Limits, predict
from infer.pages import page
from infer.web import TEXT, App, Refused, Request, Response, as_json
from training.board import tables
from training.board.predictors import Predictors, artefacts
from training.board.runs import Run, Runs
from training.report import figures

# What `/file` gives of a run; a name that is not matched, or a link that leads out of the run, is not there.
_FILES = {
    "report.html": "Report",
    "audit.html": "Audit of the data",
    "audit/audit.html": "Audit of the data",
    "plots/confusion.png": "Confusion matrix",
    "tune/*/study.png": "Search",
    streams.LOG: "Warnings of libraries",
}
_TYPES = {".html": "text/html; charset=utf-8", ".png": "image/png"}
# Pages of a run may run their own scripts, but as an origin of their own that can ask this server for nothing.
_SANDBOX = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def app(roots: Sequence[Path]) -> App:
    """The board about what lies below `roots`; `CheckpointError` where one of them is no folder."""
    return _Board(Runs(roots))


class _Board:
    def __init__(self, runs: Runs):
        self.runs, self.predictors = runs, Predictors()

    def __call__(self, request: Request) -> Response:
        try:
            return self._respond(request)
        except Refused as error:
            if request.method == "POST":
                raise
            text = _page("message.html", "Not found" if error.status == 404 else "Refused", text=str(error))
            return Response(text.encode(), status=error.status)

    def _respond(self, request: Request) -> Response:
        if request.method == "POST":
            if request.path != "/predict":
                raise Refused(405, "the board is read-only")
            return self._predicted(request, self._run(request))
        match request.path:
            case "/":
                return Response(_page("board.html", "Runs", **self._rows()).encode())
            case "/rows":
                if "run" in request.query:
                    return Response(page.fragment("board_members.html", **self._members(self._run(request))).encode())
                return Response(page.fragment("board_rows.html", **self._rows()).encode())
            case "/run":
                return Response(self._run_page(self._run(request)).encode())
            case "/live":
                run = self._run(request)
                if run.fault:
                    raise Refused(404, f"{run.key}: {run.fault}")
                status, panels = self._status(run)
                return as_json({"status": status, "panels": panels, "state": run.state})
            case "/file":
                return _file(self._run(request), request.query.get("file", ""))
            case "/predict":
                run = self._run(request)
                if not artefacts(run):
                    raise Refused(404, f"{run.key}: has no finished fold with weights to predict with yet")
                query = urlencode({"run": run.key})
                return Response(page.prediction(run.key, (), Limits().size, f"predict?{query}", f"run?{query}"))
        raise Refused(404, f"there is no page {request.path}")

    def _run(self, request: Request) -> Run:
        key = request.query.get("run", "")
        run = self.runs.all().get(key)
        if run is None:
            raise Refused(404, f"there is no run {key!r} here, or no more")
        return run

    def _rows(self) -> dict[str, Any]:
        every = list(self.runs.all().values())
        runs = tables.ranked([run for run in every if run.kind == "run" and not run.fault])
        return {
            "roots": [str(root) for root in self.runs.roots],
            "rows": tables.rows(runs),
            "live": [tables.live(run) for run in every if run.state == "training" and run.kind != "campaign"],
            "campaigns": [tables.campaign(run, self.runs.members(run)) for run in every if run.kind == "campaign"],
            "broken": [run for run in every if run.fault and run.kind != "campaign"],
            "splits": len({run.split for run in runs if run.split}) > 1,
        }

    def _run_page(self, run: Run) -> str:
        if run.fault and run.kind != "campaign":
            raise Refused(404, f"{run.key}: {run.fault}")
        shared = {"files": _files(run), "predicts": bool(artefacts(run)), "command": self._command(run)}
        if run.kind == "campaign":
            return _page("board_campaign.html", run.key, **shared, **self._members(run))
        best = self._best(run)
        differences = tables.differences(best, run) if best else []
        config = (run.path / load.RUN).read_text(errors="replace")
        status, panels = self._status(run)
        return _page(
            "board_run.html", run.key, run=run, status=status, panels=panels, best=best, differences=differences,
            config=config, **shared,
        )  # fmt: skip

    def _members(self, run: Run) -> dict[str, Any]:
        members, trials = (self.runs.members(run, kind) for kind in ("run", "trial"))
        return {
            "run": run,
            "rows": tables.rows(tables.ranked([member for member in members if not member.fault])),
            "searches": tables.searches([trial for trial in trials if not trial.fault]),
            "live": [tables.live(each) for each in (*members, *trials) if each.state == "training"],
            "broken": [each for each in (*members, *trials) if each.fault],
        }

    def _command(self, run: Run) -> str:
        """The command that resumes a run or campaign that has stopped."""
        engines = [each.engine for each in (run, *self.runs.members(run)) if each.engine in ("torch", "mlx")]
        if run.campaign or not engines or run.state not in ("interrupted", "failed"):
            return ""
        mode = "--mode full " if run.kind == "campaign" else ""
        return f"python train_{engines[0]}.py {mode}--resume {shlex.quote(str(run.path))}"

    def _best(self, run: Run) -> Run | None:
        """The best run of the same kind and campaign, unless it is this one."""
        others = [each for each in self.runs.all().values() if (each.kind, each.campaign) == (run.kind, run.campaign)]
        best = next((each for each in tables.ranked(others) if each.done), run)
        return best if best.key != run.key else None

    def _status(self, run: Run) -> tuple[str, list[dict[str, Any]]]:
        """What changes while a run trains: the part above its curves, and the curves."""
        fault, panels = "", list[dict[str, Any]]()
        try:
            panels = figures.curves(run.path)
        except Exception as error:  # as in `runs`: whatever a foreign folder holds
            fault = f"The curves cannot be read: {type(error).__name__}: {error}"
        values = {"run": run, "live": tables.live(run), "folds": tables.folds(run), "fault": fault}
        return page.fragment("board_status.html", **values), panels

    def _predicted(self, request: Request, run: Run) -> Response:
        idle = all(each.state != "training" for each in self.runs.all().values())
        try:
            with self.predictors.runner(run) as runner:
                return predict(runner, request, Limits(), gradcam=idle)
        except TandemError as error:
            return as_json({"error": str(error)}, 500)


def _page(template: str, title: str, **values: Any) -> str:
    return page.page(template, ("report.js", "board.js"), ("report.css", "board.css"), title=title, **values)


def _files(run: Run) -> list[dict[str, str]]:
    """Name and title of the files of a run that `/file` gives."""
    return [
        {
            "name": path.relative_to(run.path).as_posix(),
            "title": f"{title}: {of_path(path.parent.name)}" if "*" in pattern else title,
        }
        for pattern, title in _FILES.items()
        for path in sorted(run.path.glob(pattern))
    ]


def _file(run: Run, name: str) -> Response:
    here = run.path.resolve()
    path = (here / name).resolve()
    if name not in [file["name"] for file in _files(run)] or not path.is_relative_to(here) or not path.is_file():
        raise Refused(404, f"{run.key}: there is no {name!r} to show")
    policy = {"Content-Security-Policy": _SANDBOX} if path.suffix == ".html" else {}
    return Response(path.read_bytes(), _TYPES.get(path.suffix, TEXT), headers=policy)
