"""`python -m infer fit`: its arguments, and what it prints. `ensemble.fit` fits."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.errors import ConfigError
from config.program.parser import Parser, fraction, whole
from config.text import counted
from ensemble import views
from infer.commands import INTERRUPTED, members

if TYPE_CHECKING:
    from ensemble.ensemble_fit import Plan
    from ensemble.member import Member

_ABOUT = (
    "Fit an ensemble on the out-of-fold answers of finished runs: weights, temperatures, calibration, labels."
    " Every printed figure but that of the line `fitted` is nested: it comes from folds that nothing had seen."
)
_METHODS = ("convex", "equal", "fixed", "greedy", "stacking")
_COMBINE = ("probabilities", "logits", "ranks")
_MERGES = ("probabilities", "logits", "geometric", "max")
_METRICS = ("log_loss", "macro_f1", "accuracy")
_CALIBRATIONS = ("none", "temperature", "vector", "isotonic")
_RULES = ("none", "prior", "thresholds")


def main(words: Sequence[str]) -> int:
    """Fit as the arguments say, write the ensemble and what belongs to it, print the scores; returns the exit code."""
    options = _parser().parse_args(words)
    from ensemble import aliases, ensemble_file, fit

    ensemble_file.refuse_existing(options.out)
    try:
        fitted = fit.fit(
            options.runs,
            views.expand(options.tta),
            dict(map(_replacement, options.replace)),
            plan=_plan(options),
            aliases=aliases.parse(options.alias),
            merge=options.merge,
        )
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return INTERRUPTED
    files = fit.write(options.out, fitted)
    print(fit.report(fitted))
    beside = ", ".join(file.name for file in files[1:])
    print(f"wrote {options.out}: {counted(len(fitted.ensemble.members), 'member')}; beside it {beside}")
    return 0


def _parser() -> Parser:
    parser = Parser("python -m infer fit", description=_ABOUT)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folder with fold_K/best and fold_K/oof.npz")
    add("--out", type=Path, required=True, metavar="FILE", help="the ensemble's new YAML file")
    add(
        *("--tta", "--views"),
        nargs="+",
        default=["none"],
        metavar="VIEW",
        help=f"what each member will see: presets ({', '.join(views.PRESETS)}) or views",
    )
    add("--merge", choices=_MERGES, help="how a member's views merge (default: as --combine; ranks: probabilities)")
    add(
        "--replace",
        nargs="+",
        default=[],
        metavar="RUN/fold_K=ARTEFACT",
        help=f"what stands for the best checkpoint of a fold: a {members.MEMBER}",
    )
    add("--method", choices=_METHODS, help="how weights are found (default: convex, or fixed with --weights)")
    add("--weights", nargs="+", type=float, metavar="W", help="one fixed weight a run, in the order of the runs")
    add("--combine", choices=_COMBINE, default="probabilities", help="what is averaged (default: %(default)s)")
    add("--metric", choices=_METRICS, default="log_loss", help="what greedy selection improves (default: %(default)s)")
    add("--rounds", type=whole(0), default=50, help="rounds of greedy selection (default: %(default)s)")
    add("--bags", type=whole(0), default=0, help="average the weights over so many bootstrap samples (default: none)")
    add("--soften", type=fraction, default=0.0, metavar="S", help="move the weights by this share towards equal ones")
    add(
        "--calibration",
        nargs="+",
        choices=_CALIBRATIONS,
        default=["temperature"],
        help="of several, the one with the lowest nested log loss is kept (default: temperature)",
    )
    add("--clip", action="store_true", help="fit a lowest probability too, for log loss")
    add(
        "--decision",
        nargs="+",
        choices=_RULES,
        help="class multipliers for labels, kept where the nested macro-F1 is higher"
        " (default: both with --metric macro_f1, else none)",
    )
    add("--alias", nargs="+", default=[], metavar="NAME=NAME", help="names of one class: they share its probability")
    add("--seed", type=int, default=0, help="of bags and resampling (default: %(default)s)")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    from ensemble.ensemble_fit import Plan

    if options.weights and options.method not in (None, "fixed"):
        raise ConfigError(f"--weights: are those of --method fixed, not of {options.method}; leave one of them out")
    rules: Sequence[Any] = options.decision or (("prior", "thresholds") if options.metric == "macro_f1" else ())
    return Plan(
        method=options.method or ("fixed" if options.weights else "convex"),
        combine=options.combine,
        metric=options.metric,
        given=tuple(options.weights or ()),
        rounds=max(options.rounds, 1),
        bags=options.bags,
        soften=options.soften,
        calibrations=tuple(dict.fromkeys(options.calibration)),
        clip=options.clip,
        rules=tuple(dict.fromkeys(rule for rule in rules if rule != "none")),
        seed=options.seed,
    )


def _replacement(text: str) -> tuple[Path, Member]:
    fold, equals, artefact = text.partition("=")
    if not equals or not fold or not artefact:
        raise ConfigError(f"--replace {text!r}: expected RUN/fold_K=ARTEFACT")
    from infer import member

    return Path(fold), member.parse(artefact)
