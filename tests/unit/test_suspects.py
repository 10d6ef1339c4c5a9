"""Wrong labels that mining suspects reach a table of the fold and the report."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

from tests.unit.test_campaign import NEVER, settings
from training.run import results, train_run


def test_a_wrong_label_is_listed_and_shown(digits: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(digits, root)
    with (root / "train.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    wrong = next(row for row in rows if row["target"] == "0")
    wrong["target"] = "4"
    with (root / "train.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["ID", "target"])
        writer.writeheader()
        writer.writerows(rows)
    more = ("--mining.noise_share", "0.1", "--train.epochs", "12", "--optim.lr", "0.1", "--augment.level", "none")
    folder = train_run.run_all("numpy", settings(root, tmp_path / "runs", *more), NEVER)
    found = results.suspects(folder)
    mine = [row for row in found if row["id"] == wrong["ID"]]
    assert [(row["target"], row["folds"]) for row in mine] == [("4", 1)], "one of the two folds trains on it"
    with (folder / "fold_0" / "suspects.csv").open(newline="") as stream:
        assert next(csv.reader(stream)) == ["id", "target", "loss"]
    page = (folder / "report.html").read_text()
    assert "Labels worth a look" in page
    assert f'alt="{found[0]["id"]}"' in page
