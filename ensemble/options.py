"""Run options of a member: device, precision, compute units, execution providers.

An option is given for all members that take it (`--device`), or for one of them (`options` of a member in the
ensemble's file, `--override`), which wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from config.errors import ConfigError
from config.sections import described
from config.sections.train import Precision
from config.text import shown

ComputeUnit = Literal["ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
COMPUTE_UNITS: tuple[str, ...] = get_args(ComputeUnit)


class RunOptions(BaseModel):
    """The options of a member; None leaves the choice to the runtime.

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
        text = f"found {shown(fault['input'])}; expected {described.expected(RunOptions, fault['loc'])}"
        raise ConfigError(f"{source}: {fault['loc'][0]}: {text}") from error


def parse_overrides(texts: Sequence[str], count: int) -> dict[int, RunOptions]:
    """`N:key=value[,key=value]` for members 1 to `count`, as indices from 0; several values of `provider` by `+`.

    `ConfigError` for anything else.
    """
    by_member: dict[int, dict[str, Any]] = {}
    for text in texts:
        number, colon, rest = text.partition(":")
        if not colon or not number.isdecimal() or not 1 <= int(number) <= count:
            raise ConfigError(f"--override {text!r}: expected N:key=value with N the number of a member, 1 to {count}")
        for pair in rest.split(","):
            key, equals, value = pair.partition("=")
            if not equals or not value or key not in RunOptions.model_fields:
                raise ConfigError(
                    f"--override {text!r}: expected key=value; the keys: {', '.join(RunOptions.model_fields)}"
                )
            by_member.setdefault(int(number) - 1, {})[key] = value.split("+") if key == "provider" else value
    return {member: given(named, f"--override {member + 1}") for member, named in by_member.items()}
