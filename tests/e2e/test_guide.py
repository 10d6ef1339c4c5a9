"""README.md and the guide: their commands and examples run, page by page, on tiny data, as a reader would type them.

A page is run from its first block to its last in a folder that holds the files its examples name. Trainings get the
settings of `QUICK` besides, and those of `SMALL`, except on the page that has a model chosen. There is no hub.

A command whose comment begins with `needs` is not run: the test has no such hardware, host or account. `test_docs`
parses these, too. Installations and `make` are run by the workflow files.
"""

from __future__ import annotations

import csv
import functools
import importlib
import importlib.util
import re
import shlex
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from config import load
from doctor import probe
from infer import web
from models.weights import hub
from tests.unit import shards
from tests.unit.test_docs import INLINE, ROOT, SHELL, blocks, lines, name, prose
from training import api, cli

AUTO = ROOT / "docs" / "guide" / "first_hour.md"
LONG = ("README.md", "docs/guide/convert_and_ship.md")  # conversions
PAGES = [
    pytest.param(page, marks=pytest.mark.slow if name(page) in LONG else (), id=name(page))
    for page in (ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md")))
]
# Pages that begin with runs and an ensemble.
AFTER_TRAINING = ("board.md", "convert_and_ship.md", "teacher.md")
NOT_RUN = re.compile(r"\s# needs \S")
PER_CLASS, CLASSES = 10, "147"
QUICK = """--train.epochs 1 --train.batch_size 8 --train.micro_batch null --data.workers 1 --auto_hours 1e-6
    --schedule.warmup_epochs 0 --mix.off_epochs 0 --augment.off_epochs 0 --folds.n_splits 2 --tune.trials 1"""
SMALL = "--model test_convnext --weights none --data.image_size 32 --train.compile off"
ask = functools.cache(probe.process)  # which starts the frameworks, once for all pages
IN_PYTHON = {"epochs": 1, "batch_size": 8, "weights": "none", "image_size": 32, "data.workers": 1, "engine": "torch"}
MEMBERS = """
recipe: modern_finetune
members: [{name: convnext, model: convnext_base_384}, {name: swin, model: swin_base_patch4_window12_384}]
"""


def _table(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _write_files(digits: Path, root: Path) -> None:
    """What a reader has: `DIR`, a few digits in class folders with a labelled test split, `TABLES`, the same as a
    competition gives them, and the other files that pages name."""
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    with (digits / "train.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            label = f"digit_{row['target']}"
            before = sum(r["target"] == label for r in (*rows["train"], *rows["test"]))
            if row["target"] not in CLASSES or before == PER_CLASS + 2:
                continue
            split = "train" if before < PER_CLASS else "test"
            for folder in (root / "DIR" / split / label, root / "TABLES" / split):
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(digits / "train" / row["ID"], folder)
            rows[split].append({**row, "target": label, "patient": str(before // 2)})
    _table(root / "TABLES" / "train.csv", ["ID", "target", "patient"], rows["train"])
    _table(root / "TABLES" / "test.csv", ["ID"], rows["test"])
    _table(root / "TABLES" / "sample_submission.csv", ["ID", "target"], rows["test"])
    for folder in ("test", "photos", "EXTRA"):
        shutil.copytree(root / "TABLES" / "test", root / folder)
    for file in ("test.csv", "sample_submission.csv"):
        shutil.copy(root / "TABLES" / file, root)
    for file in ("a.jpg", "b.png"):
        shutil.copy(root / "test" / rows["test"][0]["ID"], root / file)
    (root / "my.yaml").write_text(MEMBERS)
    shards.write(root / "flowers", 2)


@pytest.fixture(scope="module")
def files(all_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files that pages name, two runs and their ensemble."""
    root = tmp_path_factory.mktemp("reader")
    _write_files(all_digits, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for run_name in ("mine", "other"):
            run(f"python train_torch.py --data.root DIR --name {run_name}", f"{QUICK} {SMALL}")
        run("python -m infer fit runs/mine runs/other --out ensemble.yaml")
    shutil.copytree(root / "runs", root / "other" / "runs")
    yield root


@pytest.fixture
def place(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a page's commands are run: a copy of `files`, where servers end after a page."""
    root = shutil.copytree(files, tmp_path / "reader")
    monkeypatch.chdir(root)
    for asked in ("is_reached", "is_cached"):
        monkeypatch.setattr(hub, asked, lambda _: False)
    monkeypatch.setattr(probe, "process", ask)
    monkeypatch.setattr(web.Server, "serve_forever", _serve_one_page)
    train = api.train
    monkeypatch.setattr(api, "train", lambda model, **given: train("test_convnext", **given | IN_PYTHON))
    return root


def _serve_one_page(server: web.Server) -> None:
    """A visitor, and then Ctrl-C."""
    seen: list[int] = []
    address = f"http://127.0.0.1:{server.server_port}/"
    visitor = threading.Thread(target=lambda: seen.append(urllib.request.urlopen(address, timeout=60).status))
    visitor.start()
    server.handle_request()
    visitor.join()
    assert seen == [200], address
    raise KeyboardInterrupt


@functools.cache
def _program(module: str) -> str:
    package = importlib.util.find_spec(module).submodule_search_locations
    return f"{module}.__main__" if package else module


def run(line: str, settings: str = "") -> None:
    """Run a command line in this process, a training with further `settings`; it succeeds and leaves what it names."""
    program, *words = shlex.split(line, comments=True)
    assert program == "python", f"{line}: not run by this test, so say what it needs"
    try:
        if words[0] == "-m":
            port = ["--port", "0"] if {"board", "serve"} & set(words) else []
            code = importlib.import_module(_program(words[1])).main([*words[2:], *port])
        else:
            assert (ROOT / words[0]).is_file(), line
            engine = words[0].removeprefix("train_").removesuffix(".py")
            more = shlex.split(settings.replace("--weights none", "") if "--weights" in words else settings)
            code = cli.main(engine, [*words[1:], *more])
    except SystemExit as stopped:  # of --help, --print_config and the like
        code = stopped.code
    succeeded = (0, 1) if words[:2] == ["-m", "doctor"] else (0,)  # the doctor's 1 is about the machine
    assert (code or 0) in succeeded, f"{line}: exit code {code}"
    for flag, left in (("--out", "{}"), ("--name", "runs/{}/report.html")):
        if flag in words:
            path = Path(left.format(words[words.index(flag) + 1]))
            assert path.exists(), f"{line}: left no {path}"


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs_from_its_first_block_to_its_last(page: Path, place: Path) -> None:
    if page.name not in AFTER_TRAINING:
        shutil.rmtree("runs")
        for path in Path().glob("ensemble*"):
            path.unlink()
    if "DIR/test.csv" in page.read_text():
        shutil.rmtree("DIR")
        Path("TABLES").rename("DIR")
    settings = QUICK if page == AUTO else f"{QUICK} {SMALL}"
    names: dict[str, object] = {}
    for language, block in blocks(page):
        if language == "yaml":
            if "apiVersion" not in yaml.safe_load(block):
                Path("my.yaml").write_text(block)
                load.parse_command(["--config", "my.yaml", "--data.root", "DIR"], prog="test")
        elif language == "python":
            exec(compile(block, name(page), "exec"), names)
        elif language in SHELL:
            for line in lines(block):
                if not NOT_RUN.search(line) and line.split()[0] not in ("make", "pip"):
                    run(line, settings)
    for line in INLINE.findall(prose(page)):
        run(line, settings)


def test_the_plan_of_the_first_hour_names_a_model_and_writes_nothing(place: Path, capsys) -> None:
    before = sorted(place.iterdir())
    plan = next(line for language, block in blocks(AUTO) for line in lines(block) if "--dry_run" in line)
    run(plan, QUICK)
    out = capsys.readouterr().out
    assert "model tf_efficientnet_lite0 at 64 pixels" in out and "nothing was written" in out
    assert sorted(place.iterdir()) == before
