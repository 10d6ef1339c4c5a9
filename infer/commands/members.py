"""The options of a command line that name members, and say how they run and with which views."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble import views
from ensemble.options import COMPUTE_UNITS, PRECISIONS, RunOptions, given, parse_overrides

if TYPE_CHECKING:
    from ensemble.ensemble_file import Ensemble

MEMBER = (
    "checkpoint folder, .onnx, .mlpackage, a model's name such as convnext_base, or a weights file; "
    "PATH@RUNTIME chooses among torch, mlx, onnx, coreml, mil_reference"
)
_TTA = (
    f"presets ({', '.join(views.PRESETS)}) or views; or `adaptive`: all of the ensemble's views for unsure images only"
)
ADAPTIVE = "adaptive"


def add_members(parser: argparse.ArgumentParser) -> None:
    """Add the options that name members, and say how they run and with which views."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--member", nargs="+", metavar="PATH", help=f"members of equal weight: each a {MEMBER}")
    source.add_argument(
        "--ensemble", type=Path, metavar="FILE", help="an ensemble's YAML file, as `infer fit` writes it"
    )
    parser.add_argument("--tta", nargs="+", metavar="VIEW", help=_TTA)
    parser.add_argument("--merge", help="how views merge: probabilities, logits, geometric or max (the ensemble's own)")
    run = parser.add_argument_group("how members run")
    run.add_argument("--device", help="torch: cpu, cuda, cuda:1, mps; MLX: cpu, gpu (default: the best there is)")
    run.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of torch and MLX members (default: fp32; tf32 on NVIDIA GPUs that have it)",
    )
    run.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile and mx.compile")
    run.add_argument("--channels_last", action=argparse.BooleanOptionalAction, help="torch's memory format")
    run.add_argument(
        "--provider", nargs="+", help="ONNX Runtime's: tensorrt, cuda, coreml, cpu (default: what is there)"
    )
    run.add_argument("--compute_unit", choices=COMPUTE_UNITS, help="of Core ML members (default: ALL)")
    run.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="N:KEY=VALUE",
        help="an option for member N (from 1) alone, such as 2:device=cpu,precision=bf16",
    )
    run.add_argument(
        "--in_memory",
        choices=("auto", "all", "one"),
        default="auto",
        help="members in memory: all that fit, all, or one",
    )


def chosen(options: argparse.Namespace) -> Ensemble:
    """The ensemble that the options name; `ConfigError` where it cannot be read."""
    from ensemble import ensemble_file
    from infer.member import ensemble_of

    asked = ensemble_file.read(options.ensemble) if options.ensemble else ensemble_of(options.member)
    names = None if options.tta == [ADAPTIVE] else options.tta
    return with_overrides(ensemble_file.with_views(asked, names, options.merge), options.override)


def with_overrides(chosen: Ensemble, texts: Sequence[str]) -> Ensemble:
    """The ensemble whose members have the options of `--override` before their own."""
    changed = parse_overrides(texts, len(chosen.members))
    members = tuple(
        member.model_copy(update={"options": given(member.options.given() | changed.get(m, RunOptions()).given())})
        for m, member in enumerate(chosen.members)
    )
    return chosen.model_copy(update={"members": members})


def shared_options(options: argparse.Namespace) -> RunOptions:
    """The options for all members."""
    return given({name: getattr(options, name) for name in RunOptions.model_fields})
