"""What the schema says of each setting, for people: `--help`, and the `expected ...` of an error.

Everything is read from the JSON schema of `Settings`, so that a new section needs nothing here. A setting is named by
its dotted path, at most `section.key`.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass
from typing import Any

from config.schema import Settings
from config.sections import described
from config.text import plain

# The stages of a campaign in their order, and the two words for several of them.
MODES = {
    "audit": "look for damaged, repeated and mislabelled images",
    "tune": "search for better settings, as tune.space says",
    "train": "train every member on every fold",
    "fit": "fit the ensemble on the out-of-fold answers",
    "predict": "answer the test images and write the submission",
    "report": "write report.html",
    "full": "all of them that are not done yet (tune with --tune alone)",
}
_ABOUT = "A setting on the command line wins over the file, the file over its recipe, the recipe over the default."


@dataclass(frozen=True)
class Leaf:
    """One setting: its dotted path, meaning, the values it takes, and its default as YAML would write it."""

    path: str
    description: str
    accepts: str
    default: str


@functools.cache
def sections() -> dict[str, str]:
    """Each section's name and its one-line meaning, in the schema's order."""
    schema, descriptions = _schema(), {}
    for name, node in schema["properties"].items():
        if "$ref" in node:
            descriptions[name] = str(described.definition(node, schema)["description"]).partition("\n")[0]
    return descriptions


@functools.cache
def leaves() -> dict[str, Leaf]:
    """Every setting by its dotted path, in the schema's order."""
    schema = _schema()
    by_path: dict[str, Leaf] = {}
    for name, node in schema["properties"].items():
        if "$ref" in node:
            for key, inner in described.definition(node, schema)["properties"].items():
                by_path[f"{name}.{key}"] = _leaf(f"{name}.{key}", inner)
        else:
            by_path[name] = _leaf(name, node)
    return by_path


def is_setting(path: str) -> bool:
    """Whether a dotted path is a setting, or an entry of one that is a mapping, such as augment.ops.rotate."""
    mapping = leaves().get(path.rpartition(".")[0])
    return path in leaves() or (mapping is not None and mapping.accepts == described.MAPPING)


def keys_of(section: str) -> list[str]:
    """The keys of a section; for "" those of the top level, sections included."""
    if section:
        return [path.partition(".")[2] for path in leaves() if path.startswith(f"{section}.")]
    return [path for path in leaves() if "." not in path] + list(sections())


def help_text(prog: str) -> str:
    """The whole `--help`, wrapped to the terminal."""
    parser = argparse.ArgumentParser(
        prog=prog, usage="%(prog)s [--config FILE] [--SECTION.KEY VALUE ...]", description=_ABOUT, add_help=False
    )
    general = parser.add_argument_group("general")
    general.add_argument("--config", metavar="FILE", help="a YAML file, or the bare name of a shipped recipe")
    modes = "; ".join(f"{mode}: {meaning}" for mode, meaning in MODES.items())
    general.add_argument("--mode", help=f"work on a campaign, all members on all folds ({modes}); without it, one run")
    general.add_argument(
        "--member", metavar="NAME", help="which of the file's members to train, where it lists several"
    )
    general.add_argument("--fold", metavar="K", help="train this fold alone, as folds.train [K]")
    general.add_argument("--tune", action="store_true", help="search for better settings first (--mode full)")
    general.add_argument(
        "--spread",
        metavar="folds",
        help="under torchrun, srun or mlx.launch: each process takes folds, or trials, of its own, on a GPU of its own "
        "(--mode train, tune, full)",
    )
    general.add_argument(
        "--dry_run",
        action="store_true",
        help="measure a few updates, print folds, updates, time, memory, disk and what would be written, and stop",
    )
    general.add_argument("--print_config", action="store_true", help="print the resolved settings as YAML and stop")
    general.add_argument("--verbose", action="store_true", help="show tracebacks of errors and warnings of libraries")
    general.add_argument("--version", action="store_true", help="print the version and stop")
    general.add_argument("--help", action="store_true", help="print this and stop")
    groups = {"": parser.add_argument_group("run")}
    groups |= {name: parser.add_argument_group(name, text.replace("%", "%%")) for name, text in sections().items()}
    for leaf in leaves().values():
        text = f"{leaf.description} ({leaf.accepts}; {leaf.default})"
        section = leaf.path.rpartition(".")[0]
        groups[section].add_argument(f"--{leaf.path}", metavar="VALUE", help=text.replace("%", "%%"))
    return parser.format_help()


@functools.cache
def _schema() -> dict[str, Any]:
    return Settings.model_json_schema()


def _leaf(path: str, node: dict[str, Any]) -> Leaf:
    default = f"default {plain(node['default'])}" if "default" in node else "required"
    return Leaf(path, node.get("description", ""), described.accepted(node), default)
