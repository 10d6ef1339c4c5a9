"""README and docs: generated pages are current, links resolve, and the commands that they show are understood."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import importlib.util
import re
import shlex
import tomllib
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from config import load

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = [
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "guide").glob("*.md")),
    *sorted((ROOT / "docs" / "reference").glob("*.md")),
]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SHELL = ("", "sh", "bash")
# In the text, what has an option is a whole command; others are names of commands.
INLINE = re.compile(r"`(python [^`]*--[^`.]+)`")
# Programs of others, which are shown and not parsed.
FOREIGN = {"cat", "curl", "gunicorn", "rsync", "tensorboard", "uvicorn"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_those_of_the_code() -> None:
    for path, text in generator().pages().items():
        # Words only: versions of Python wrap the usage of a command at other places.
        assert path.read_text().split() == text.split(), f"{name(path)} is out of date: run python docs/generate.py"


def prose(path: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.+)$", prose(path), flags=re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        kept = (c for c in text if c in " -_" or unicodedata.category(c)[0] in "LN")
        slug = "".join(kept).strip().replace(" ", "-")
        found[slug] = found.get(slug, 0) + 1
    return {f"{slug}-{n}" if n else slug for slug, count in found.items() for n in range(count)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_anchors_resolve(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        target, _, anchor = link.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name(page)} links to {link}"
        assert not anchor or anchor in anchors(path), f"{name(page)}: {name(path)} has no heading #{anchor}"


def test_every_page_is_linked_from_the_table_of_contents() -> None:
    contents = ROOT / "docs" / "README.md"
    linked = {(contents.parent / link.partition("#")[0]).resolve() for link in LINK.findall(contents.read_text())}
    missing = {path for path in PAGES if path.is_relative_to(ROOT / "docs")} - linked - {contents}
    assert not missing, f"docs/README.md does not link {sorted(map(name, missing))}"


def test_files_that_the_code_names_in_docs_exist() -> None:
    files = (
        p
        for folder in ("config", "data", "models", "infer", "training", "convert", "benchmarks", "tests")
        for p in (ROOT / folder).rglob("*")
    )
    made = {"docs/engineering/benchmarks_gpu.md"}  # by `make bench-gpu`, once a GPU is at hand
    for path in [ROOT / "Makefile", *(p for p in files if p.suffix in (".py", ".yaml"))]:
        for link in set(re.findall(r"\bdocs/[\w/]+\.md\b", path.read_text())) - made:
            assert (ROOT / link).exists(), f"{name(path)} names {link}"


def blocks(page: Path) -> list[tuple[str, str]]:
    """The code blocks of a page: their language, which is "" where none is named, and their text."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def lines(block: str) -> Iterator[str]:
    """The command lines of a shell block, whole, with the comments at their ends."""
    for line in block.replace("\\\n", " ").splitlines():
        yield from (part.strip() for part in line.split(" | ") if part.strip() and not part.strip().startswith("#"))


def commands(page: Path) -> Iterator[str]:
    """The command lines of a page: of its shell blocks, scripts for SLURM and containers, and those in its text."""
    for language, block in blocks(page):
        if language in SHELL:
            yield from lines(block)
        elif language == "slurm":
            yield from (line.partition(" & ")[0] for line in lines(block) if line.startswith("srun "))
        elif language == "yaml":
            yield from (shlex.join(yaml.safe_load(words)) for words in re.findall(r"command: (\[.+\])", block))
    yield from INLINE.findall(prose(page))


SHOWN_COMMANDS = sorted({(name(page), line) for page in SHOWN for line in commands(page)})


class UnderstoodError(Exception):
    """Raised in place of the work of a command whose words were read."""


def stop_after(function: Callable[..., object]) -> Callable[..., object]:
    def call(*words: object, **options: object) -> None:
        function(*words, **options)
        raise UnderstoodError

    return call


@pytest.fixture
def parsing_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands stop where their words are understood, in a folder that has the files of the docs' examples."""
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_after(argparse.ArgumentParser.parse_args))
    monkeypatch.setattr(load, "parse", stop_after(load.parse))
    monkeypatch.setattr(load, "parse_command", stop_after(load.parse_command))
    monkeypatch.chdir(tmp_path)


def test_the_pages_show_commands() -> None:
    assert len(SHOWN_COMMANDS) > 40


@pytest.mark.parametrize(("page", "line"), SHOWN_COMMANDS)
def test_shown_commands_are_understood(page: str, line: str, parsing_only: None, tmp_path: Path) -> None:
    program, *words = shlex.split(line.replace("/shared/", f"{tmp_path}/shared/"), comments=True)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), f"{page}: {line}"
        return
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = re.findall(r"\.\[(\w+)\]", line)
        assert wanted and set(wanted) <= set(extras), f"{page}: {line}"
        return
    if program in FOREIGN:
        return
    if program in ("torchrun", "srun", "mlx.launch"):  # what they start
        first = next(i for i, word in enumerate(words) if word == "-m" or word.endswith(".py"))
        program, words = "python", words[first:]
    assert program == "python", f"{page}: {line}: neither of Tandem nor known to this test"
    for word in words:
        if word.endswith((".yaml", ".yml")):
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word).write_text("data: {root: .}\n")
    if "--resume" in words:
        run = tmp_path / words[words.index("--resume") + 1]
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text("data: {root: .}\n")
    if "--campaign" in words:
        folder = tmp_path / words[words.index("--campaign") + 1]
        folder.mkdir(parents=True)
        (folder / "campaign.yaml").write_text("data: {root: .}\n")
    if words[0].endswith(".py"):
        assert (ROOT / words[0]).exists(), f"{page}: {line}"
        module, words = "training.cli", [words[0].removeprefix("train_").removesuffix(".py"), words[1:]]
    else:
        module, words = words[1], [words[2:]]
        module += ".__main__" if importlib.util.find_spec(module).submodule_search_locations else ""
    if module.split(".")[0] in ("benchmarks", "examples") or module == "data.demo":
        assert importlib.util.find_spec(module), f"{page}: {line}"
        return
    with pytest.raises((UnderstoodError, SystemExit)) as stopped:
        importlib.import_module(module).main(*words)
    is_help = "--help" in line or "--print_config" in line
    assert isinstance(stopped.value, UnderstoodError) or (is_help and stopped.value.code == 0), f"{page}: {line}"


@pytest.mark.parametrize("page", SHOWN, ids=name)
def test_python_examples_import_what_exists(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (ROOT / node.module.partition(".")[0]).is_dir():
                exec(ast.unparse(node), {})  # an ImportError names what is missing
