"""The networks behind the prediction page: one run's at a time, opened at its first image, on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ensemble import ensemble_file
from ensemble.ensemble_file import Ensemble
from ensemble.options import NONE_GIVEN, RunOptions
from infer.member import ensemble_of
from infer.model_cache import choose_runtimes
from infer.runner import Runner
from infer.runtimes import RUNTIMES
from models import manifest
from training import report
from training.board.runs import Run
from training.loop import checkpoint


class Predictors:
    """Gives the runner of a run to one thread at a time; the one before is closed when another run is asked for.

    They compute on the CPU, so that a training on the same machine keeps its device's memory to itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: tuple[object, Runner] | None = None

    @contextmanager
    def runner(self, run: Run) -> Iterator[Runner]:
        """The runner of the weights that the run has now; the `TandemError`s of opening it pass."""
        files = artefacts(run)
        wanted = run.path, [(path, path.stat().st_mtime_ns) for path in files]
        with self._lock:
            if self._open and self._open[0] != wanted:
                self._open[1].close()
                self._open = None
            if self._open is None:
                paths = list(map(str, files))
                ensemble: Ensemble = ensemble_file.read(files[0]) if files[0].is_file() else ensemble_of(paths)
                on_cpu = any("device" in RUNTIMES[runtime].options for runtime in choose_runtimes(ensemble.members))
                self._open = wanted, Runner(ensemble, RunOptions(device="cpu") if on_cpu else NONE_GIVEN)
            yield self._open[1]


def artefacts(run: Run) -> list[Path]:
    """What predicts for a run: a campaign's ensemble file, or the best checkpoints of a run's finished folds."""
    if run.kind == "campaign":
        chosen, _ = report.made_of(run.path)
        return [chosen] if chosen else []
    folders = [run.path / f"fold_{fold.number}" / checkpoint.BEST for fold in run.done]
    return [folder for folder in folders if (folder / manifest.NAME).exists()]
