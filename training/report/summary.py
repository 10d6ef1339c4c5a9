"""What a run has when its folds are trained: `fold_results.yaml`, plots, the audit of its labels, `report.html`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from training import report
from training.report import plots
from training.run import audit, results, run_dir


def reported_folds(folder: Path) -> set[int]:
    """The folds in the summary of the run in `folder`; none where there is no summary yet."""
    file = folder / run_dir.FINISHED
    return {row["fold"] for row in results.read_yaml(file)["folds"]} if file.exists() else set()


def sum_up(folder: Path, metric: str) -> None:
    """Summary, plots and report of all folds that are finished, whichever process trained them."""
    rows = [results.read_yaml(path) for path in results.fold_files(folder, run_dir.RESULT)]
    run_dir.write_yaml(folder / run_dir.FINISHED, summarise(rows, metric))
    plots.write(folder)
    audit.after(folder)
    report.write([folder], folder / "report.html")


def summarise(rows: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """`fold_results.yaml`: each fold, and mean, standard deviation (n - 1), best and worst fold by `metric`."""
    names = ["macro_f1", "accuracy", "log_loss"]
    names += [f"corrupted_{name}" for name in names if all(f"corrupted_{name}" in r for r in rows)]
    values = {name: np.array([r[name] for r in rows], dtype=np.float64) for name in names}
    ranked = sorted(rows, key=lambda r: r[metric], reverse=metric != "log_loss")
    return {
        "metric": metric,
        "folds": rows,
        "mean": {name: float(v.mean()) for name, v in values.items()},
        "std": {name: float(v.std(ddof=1)) if len(v) > 1 else 0.0 for name, v in values.items()},
        "best_fold": ranked[0]["fold"],
        "worst_fold": ranked[-1]["fold"],
    }
