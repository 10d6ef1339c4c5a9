"""How a member is run: device, precision, compute units, execution providers. Which runtime takes which option.

An option is given for all members that take it (`--device`), or for one of them (`options` of a member in the
ensemble's file, `--override`), which wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from config.errors import ConfigError
from config.sections.train import Precision

ComputeUnit = Literal["ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
COMPUTE_UNITS: tuple[str, ...] = get_args(ComputeUnit)
TAKES: dict[str, tuple[str, ...]] = {
    "torch": ("device", "precision", "compile", "channels_last"),
    "mlx": ("device", "precision", "compile"),
    "numpy": (),
    "onnx": ("provider",),
    "coreml": ("compute_unit",),
    "mil_reference": (),
}


class RunOptions(BaseModel):
    """What is given; None leaves the choice to the runtime.

    `device`: torch's `cpu`, `cuda`, `cuda:1`, `mps`, or MLX's `cpu`, `gpu`. `compile`: torch.compile or mx.compile.
    `channels_last`: torch's memory format. `provider`: ONNX Runtime's, the preferred first, in short (`cuda`) or whole
    (`CUDAExecutionProvider`). `compute_unit`: Core ML's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str | None = None
    precision: Precision | None = None
    compile: bool | None = None
    channels_last: bool | None = None
    provider: tuple[str, ...] | None = None
    compute_unit: ComputeUnit | None = None

    @field_validator("provider", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def given(self) -> dict[str, Any]:
        """The options that are not None."""
        return self.model_dump(exclude_none=True)


NONE_GIVEN = RunOptions()


def given(named: Mapping[str, Any], source: str = "options") -> RunOptions:
    """Options by name, checked; `ConfigError`, with `source`, for an unknown name or a wrong value."""
    unknown = [name for name in named if name not in RunOptions.model_fields]
    if unknown:
        raise ConfigError(f"{source}: {unknown[0]!r} is not known; there are {', '.join(RunOptions.model_fields)}")
    try:
        return RunOptions.model_validate(named)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(
            f"{source}: {fault['loc'][0]}: {fault['msg'][0].lower()}{fault['msg'][1:]}, found {fault['input']!r}"
        ) from error


def for_member(name: str, runtime: str, own: RunOptions, shared: RunOptions = NONE_GIVEN) -> dict[str, Any]:
    """The options that the member `name` is opened with; its own win.

    `ConfigError` for one of its own that its runtime does not take; shared ones that it does not take are left out.
    """
    takes = TAKES[runtime]
    wrong = [key for key in own.given() if key not in takes]
    if wrong:
        raise ConfigError(f"{name}: {runtime} takes no option {wrong[0]!r}; it takes {', '.join(takes) or 'none'}")
    return {key: value for key, value in shared.given().items() if key in takes} | own.given()


def check_used(shared: RunOptions, runtimes: Iterable[str]) -> None:
    """`ConfigError` when an option is given for all members and no member's runtime takes it."""
    found = sorted(set(runtimes))
    for key in shared.given():
        if not any(key in TAKES[runtime] for runtime in found):
            fitting = " or ".join(runtime for runtime, takes in TAKES.items() if key in takes)
            raise ConfigError(
                f"--{key}: is for members on {fitting}, and these run on {', '.join(found)}; leave it out"
            )


def parse_overrides(texts: Sequence[str], count: int) -> dict[int, RunOptions]:
    """`N:key=value[,key=value]` for members 1 to `count`, as places from 0; several values of `provider` by `+`.

    `ConfigError` for anything else.
    """
    found: dict[int, dict[str, Any]] = {}
    for text in texts:
        number, colon, rest = text.partition(":")
        if not colon or not number.isdecimal() or not 1 <= int(number) <= count:
            raise ConfigError(f"--override {text!r}: expected N:key=value with N the number of a member, 1 to {count}")
        found.setdefault(int(number) - 1, {}).update(_pairs(text, rest))
    return {place: given(named, f"--override {place + 1}") for place, named in found.items()}


def _pairs(text: str, rest: str) -> dict[str, Any]:
    pairs = [pair.partition("=") for pair in rest.split(",")]
    for key, equals, value in pairs:
        if not equals or not value or key not in RunOptions.model_fields:
            raise ConfigError(
                f"--override {text!r}: expected key=value; the keys: {', '.join(RunOptions.model_fields)}"
            )
    return {key: value.split("+") if key == "provider" else value for key, _, value in pairs}
