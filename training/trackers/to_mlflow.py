"""MLflow: a tracking server where MLFLOW_TRACKING_URI names one, else `mlflow.db` in the folder of the runs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from training.trackers import Title

logging.getLogger("mlflow").setLevel(logging.WARNING)  # its news about its database are none of the training
_LONGEST = 500  # characters of a value that every MLflow store takes


class Mlflow:
    """A run of MLflow, whose id is stored so that it can be resumed."""

    rewinds = False

    def __init__(self, title: Title, state: Mapping[str, Any]):
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{title.home.resolve() / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        known = state.get("run") if state.get("uri") == uri else None
        if known is None:
            known = self._begin(title, local=uri.startswith("sqlite:"))
        else:
            self._client.update_run(known, status="RUNNING")
        self.state = {"run": known, "uri": uri}
        self._run: str = known

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """The figures, in one request."""
        now = time.time_ns() // 1_000_000
        metrics = [Metric(name, value, timestamp=now, step=number) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def picture(self, name: str, image: NDArray[np.uint8], epoch: int) -> None:
        """An artifact NAME_EPOCH.png."""
        self._client.log_image(self._run, image, f"{name}_{epoch}.png")

    def close(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._run)

    def _begin(self, title: Title, local: bool) -> str:
        artifacts = (title.home.resolve() / "mlflow_artifacts").as_uri() if local else None
        run = self._client.create_run(
            self._experiment(title.project, artifacts), run_name=title.name, tags={"group": title.group}
        )
        settings = [Param(name, str(value)[:_LONGEST]) for name, value in title.settings.items()]
        for start in range(0, len(settings), 100):  # MLflow's limit for one request
            self._client.log_batch(run.info.run_id, params=settings[start : start + 100])
        return str(run.info.run_id)

    def _experiment(self, name: str, artifacts: str | None) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=artifacts))
            except MlflowException:  # another process has just made it
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return str(experiment.experiment_id)


open = Mlflow
