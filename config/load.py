"""From recipe, file and command line to `Settings`, the later over the earlier, with all faults in one `ConfigError`.

Settings that none of them names come from the run that `--resume PATH` resumes.

The schema is in `schema`, reading YAML in `yaml_file`, the texts in `usage` and `faults`. pydantic-settings layers and
validates. Its own command-line source is not used: it reads JSON and not YAML values (`null` becomes a list of one),
appends repeated lists, and stops at the first unknown option.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from config import command, faults, members, renamed, usage, yaml_file
from config.command import RunRequest
from config.errors import ConfigError
from config.members import Member
from config.program import version
from config.schema import Settings
from config.sections import described
from config.text import choices, plain, shown
from config.yaml_file import Key, Layer, put

RECIPES = Path(__file__).parent / "recipes"
RUN, CAMPAIGN = "config.yaml", "campaign.yaml"  # the settings in the folder of a run, or of a campaign
_LINE = "command line"


@dataclass
class _CommandLine:
    layer: Layer = field(default_factory=Layer)
    options: dict[str, list[str]] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Command:
    """A command line: what it wishes for, and all members of its file (a nameless one where it lists none)."""

    request: RunRequest
    members: tuple[Member, ...]

    @property
    def settings(self) -> Settings:
        """The settings of the single run that it asks for; `ConfigError` where one of several is to be chosen."""
        return members.choose(self.members, self.request.member)


def parse(argv: Sequence[str], prog: str) -> Settings:
    """The settings of a command line (without the program's name), such as `--config demo --train.epochs 3`.

    Where the file lists members, they are those of the one that `--member` names. Raises `ConfigError`, whose text has
    one line for each fault, and `SystemExit(0)` after `--help`, `--version` and `--print_config`, which print and
    stop.
    """
    return parse_command(argv, prog).settings


def parse_command(argv: Sequence[str], prog: str) -> Command:
    """All that a command line says; `ConfigError` and `SystemExit` as `parse`."""
    line = _read_command_line(argv)
    if "help" in line.flags:
        print(usage.help_text(prog), end="")
        raise SystemExit(0)
    if "version" in line.flags:
        print(version.line())
        raise SystemExit(0)
    request, wrong = command.request(line.options, line.flags)
    line.faults += wrong
    if request.fold is not None and not request.mode:  # a campaign must not remember what one process was asked for
        line.layer.where[("folds", "train")] = _LINE
        put(line.layer.values, ("folds", "train"), [str(request.fold)])
    parsed = Command(request, _resolve(_line_layers(line), line.faults))
    if "print_config" in line.flags:
        print(members_yaml(parsed.members) if request.mode else to_yaml(parsed.settings), end="")
        raise SystemExit(0)
    return parsed


def _of_run(line: Layer) -> list[Layer]:
    """The settings of the run or campaign that `--resume PATH` names, so that nobody has to repeat them; but those
    that hold for one start only."""
    resume = line.values.get("resume")
    if not isinstance(resume, str) or resume in ("auto", "never"):
        return []
    file = next((Path(resume) / name for name in (CAMPAIGN, RUN) if (Path(resume) / name).is_file()), None)
    if file is None:
        raise ConfigError(f"resume: found {shown(resume)} ({_LINE}), which has no {RUN}; give the folder of a run")
    layer = renamed.upgrade(yaml_file.read(file, str(file)))
    # A file of --config replaces the members of a campaign; what those say is no old default all the same.
    of_members = {key[2:] for key in layer.where if key[0] == "members"}
    return [
        Layer({k: v for k, v in layer.values.items() if k not in ("resume", "resume_anyway", "profile")}, layer.where),
        _old_defaults(of_members),
    ]


def read(path: Path) -> Settings:
    """The settings in a YAML file, on top of the recipe that it names and the defaults; `ConfigError` as `parse`."""
    return members.choose(read_members(path), "")


def read_members(path: Path) -> tuple[Member, ...]:
    """The members in a YAML file such as a campaign's, a nameless one where it lists none; `ConfigError` as `parse`."""
    of_run = path.stem.partition("_")[0] in (Path(RUN).stem, Path(CAMPAIGN).stem)
    if not of_run:
        return _resolve(_layers(path, str(path)), [])
    return _resolve([*map(renamed.upgrade, _layers(path, str(path))), _old_defaults()], [])


def of_checkpoint(values: Mapping[str, Any]) -> Settings:
    """The settings that a checkpoint keeps, nested as `Settings.model_dump` gives them; raises `ValidationError`."""
    return _validated([renamed.upgrade_values(values), _old_defaults().values])


def _old_defaults(named: Container[Key] = ()) -> Layer:
    """The defaults of earlier versions, where they were others, of settings that are not `named`."""
    layer = Layer()
    for path, value in renamed.OLD_DEFAULTS.items():
        if tuple(path.split(".")) not in named:
            put(layer.values, tuple(path.split(".")), value)
    return layer


def changed(settings: Settings, values: Mapping[str, Any], where: str) -> Settings:
    """The settings with others at dotted names; `ConfigError` as `parse`, with `where` as the place of the new ones."""
    keys = [tuple(name.split(".")) for name in values]
    layer = Layer(
        where={key[:end]: where for key in keys for end in range(2 if len(key) > 2 else len(key), len(key) + 1)}
    )
    for name, value in values.items():
        put(layer.values, tuple(name.split(".")), value)
    unknown = [faults.unknown(key, where) for key in keys if not usage.is_setting(".".join(key))]
    if unknown:
        raise faults.several(unknown)
    (member,) = _resolve([layer, Layer(settings.model_dump(mode="json"))], [])
    return member.settings


def of_values(values: Iterable[tuple[str, Any]], config: str | os.PathLike[str] | None, where: str) -> Settings:
    """The settings of a program, over the recipe or file that `config` names: pairs of a dotted name and a value, or of
    a section and a mapping.

    `resume` among them goes on with a run, as on the command line. `where` is what faults call the place of the values.
    Raises `ConfigError` as `parse`.
    """
    line = _CommandLine()
    for name, value in _dotted(values):
        key = tuple(name.split("."))
        if key in line.layer.where:
            line.faults.append(f"{name}: given twice ({where}); give it once")
        elif not usage.is_setting(name):
            line.faults.append(faults.unknown(key, where))
        elif not yaml_file.writable(str(value)):
            line.faults.append(
                f"{name}: found {faults.shown(value)} ({where}); expected text that a UTF-8 file can hold"
            )
        else:
            line.layer.where[key] = where
            put(line.layer.values, key, _plain(value))
    if config is not None:
        line.options["config"] = [str(config)]
    return members.choose(_resolve(_line_layers(line), line.faults), "")


def _dotted(values: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Values by dotted name: those of a section that is given as a mapping one by one."""
    for name, value in values:
        if name in usage.sections() and isinstance(value, Mapping):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield name, value


def _plain(value: Any) -> Any:
    """A value as a YAML file would hold it: paths as text, NumPy's numbers and arrays as Python's, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if hasattr(value, "tolist") else value


def members_yaml(members_listed: Sequence[Member]) -> str:
    """All settings of all members as YAML; `read_members` gives them back equal."""
    return yaml_file.dump(members.dump(members_listed))


def to_yaml(settings: Settings) -> str:
    """All settings as YAML in the schema's order; `read` gives them back equal."""
    return yaml_file.dump(settings.model_dump(mode="json"))


def recipes() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def _line_layers(line: _CommandLine) -> list[Layer]:
    """The command line, its file with the recipes below it, and the run that it resumes."""
    configs = line.options.get("config", [])
    if len(configs) > 1:
        line.faults.append(f"config: given {len(configs)} times ({_LINE}); give one, its `recipe:` can name a base")
    try:
        return [line.layer, *(_layers(*_locate(configs[0])) if configs else []), *_of_run(line.layer)]
    except ConfigError as error:
        raise faults.several([*line.faults, str(error)]) from error


def _read_command_line(argv: Sequence[str]) -> _CommandLine:
    line = _CommandLine()
    rest = list(argv)[::-1]
    while rest:
        token = rest.pop()
        if token in command.FLAGS:
            line.flags.add(command.FLAGS[token])
        elif not token.startswith("--"):
            line.faults.append(f"{shown(token)} ({_LINE}): belongs to no option; write --section.key VALUE")
        else:
            name, equals, text = token[2:].partition("=")
            takes_next = not equals and rest and not rest[-1].startswith("--")
            _take(line, name, text if equals else rest.pop() if takes_next else None)
    return line


def _take(line: _CommandLine, name: str, value: str | None) -> None:
    key = tuple(name.split("."))
    leaf = usage.leaves().get(name)
    if leaf is None and name not in command.OPTIONS:
        line.faults.append(faults.unknown(key, _LINE))
    elif value is None:
        line.faults.append(
            f"{name}: no value given ({_LINE}); expected {leaf.accepts if leaf else command.OPTIONS[name]}"
        )
    elif not yaml_file.writable(value):
        line.faults.append(f"{name}: found {shown(value)} ({_LINE}); expected text that a UTF-8 file can hold")
    elif name in command.OPTIONS:
        line.options.setdefault(name, []).append(value)
    else:
        line.layer.where[key] = _LINE
        put(line.layer.values, key, yaml_file.parse_value(value))


def _locate(config: str) -> tuple[Path, str]:
    """The file that `--config` means and how to call it: a path, or the bare name of a recipe."""
    path = Path(config)
    if path.suffix in (".yaml", ".yml") or len(path.parts) != 1:
        return path, plain(config or ".")
    return _recipe(config, _LINE)


def _recipe(name: str, where: str) -> tuple[Path, str]:
    known = recipes()
    if name in known:
        return known[name], f"recipe {name}"
    raise ConfigError(f"{shown(name)} ({where}) is no recipe{choices(name, known)}; a file's name ends in .yaml")


def _layers(path: Path, name: str) -> list[Layer]:
    """The file's layer, then that of the recipe it builds on, and so on."""
    layers: list[Layer] = []
    visited: set[Path] = set()
    while True:
        layer = yaml_file.read(path, name)
        layers.append(layer)
        visited.add(path.resolve())
        if "recipe" not in layer.values:
            return layers
        where = layer.where[("recipe",)]
        base = layer.values.pop("recipe")
        path, name = _recipe(base if isinstance(base, str) else plain(base), where)
        if path.resolve() in visited:
            raise ConfigError(f"recipe: {name} builds on itself ({where}); name another or none")


def _resolve(layers: Sequence[Layer], faults_of_line: Sequence[str]) -> tuple[Member, ...]:
    """The members, or a nameless one where none are listed; one `ConfigError` for all faults and `faults_of_line`."""
    entries, wrong = members.take(layers)
    examined = [(entry, *_examine(entry.layers)) for entry in entries]
    # Faults above the members are reported again with each of them.
    of_members = (fault for *_, of_member in examined for fault in of_member)
    messages = list(dict.fromkeys([*faults_of_line, *wrong, *of_members]))
    if messages:
        raise faults.several(messages)
    return tuple(Member(entry.name, entry.weight, settings) for entry, settings, _ in examined if settings)


def _examine(layers: Sequence[Layer]) -> tuple[Settings | None, list[str]]:
    """The settings of layers, or all that is wrong with them."""
    problems = [problem for layer in layers for problem in (*_open_sections(layer), *_unknown_in_space(layer))]
    try:
        return _validated([layer.values for layer in layers]), problems
    except ValidationError as error:
        return None, [*problems, *_explain(error, layers)]


def _open_sections(layer: Layer) -> Iterator[str]:
    """Take out of a layer each section that is empty, and each that is no mapping, which is a fault."""
    for name in [name for name in layer.values if name in usage.sections()]:
        if isinstance(layer.values[name], dict):
            continue
        value = layer.values.pop(name)
        if value is not None:
            text, keys = f"{shown(value)} ({layer.where[(name,)]})", ", ".join(usage.keys_of(name))
            yield f"{layer.prefix}{name}: found {text}; expected a section with the keys {keys}"


def _unknown_in_space(layer: Layer) -> Iterator[str]:
    """A line for each name in `tune.space` that is no setting, whether or not this command searches."""
    tune = layer.values.get("tune")
    space = tune.get("space") if isinstance(tune, dict) else None
    for name in space if isinstance(space, dict) else ():
        if not usage.is_setting(str(name)):
            yield f"{layer.prefix}{faults.unknown(tuple(str(name).split('.')), 'tune.space')}"


def _validated(values: Iterable[Mapping[str, Any]]) -> Settings:
    """The settings of nested values, of which the first wins. The environment is no source."""
    layers = [*_whole_entries(values), {name: {} for name in usage.sections()}]

    class Layered(BaseSettings):
        model_config = SettingsConfigDict(case_sensitive=True)
        settings: Settings

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: Any, **__: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return tuple(InitSettingsSource(settings_cls, {"settings": layer}) for layer in layers)

    return Layered.model_validate({}).settings


def _whole_entries(values: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The values, of which an entry of a setting that is a mapping (tune.space) replaces a later one as a whole."""
    mappings = [leaf.path.split(".") for leaf in usage.leaves().values() if leaf.accepts == described.MAPPING]
    taken: set[Key] = set()
    for layer in values:
        for section, key in mappings:
            inner = layer.get(section)
            entries = inner.get(key) if isinstance(inner, dict) else None
            if isinstance(inner, dict) and isinstance(entries, dict):
                remaining = {name: entry for name, entry in entries.items() if (section, key, name) not in taken}
                taken |= {(section, key, name) for name in entries}
                layer = {**layer, section: {**inner, key: remaining}}
        yield layer


def _explain(error: ValidationError, layers: Sequence[Layer]) -> list[str]:
    """A line for each fault. The schema compares settings only where each is right by itself, so the others are
    looked at once more without the wrong ones."""
    errors = faults.by_key(error, ("settings",))
    if not all(faults.is_cross(details) for details in errors.values()):
        errors |= _cross_errors(errors, layers)
    return [faults.of(key, details, layers) for key, details in errors.items()]


def _cross_errors(wrong: faults.Errors, layers: Sequence[Layer]) -> faults.Errors:
    values = [_without(layer.values, wrong) for layer in layers]
    for key, details in wrong.items():
        if faults.is_absent(key, details, layers):
            put(values[0], key, "missing")
    try:
        _validated(values)
    except ValidationError as error:
        return {
            key: details
            for key, details in faults.by_key(error, ("settings",)).items()
            if faults.is_cross(details) and not {key, tuple(details["ctx"]["other"].split("."))} & wrong.keys()
        }
    return {}


def _without(values: Mapping[str, Any], keys: Container[Key], prefix: Key = ()) -> dict[str, Any]:
    return {
        name: _without(value, keys, (*prefix, name)) if isinstance(value, dict) else value
        for name, value in values.items()
        if (*prefix, name) not in keys
    }
