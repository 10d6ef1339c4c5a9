"""`python -m training`: what can be done with runs after training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from config.errors import ConfigError
from config.program import entry
from config.program.parser import Parser, whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return entry.run(_run, argv, "python -m training")


def _run(words: list[str]) -> int:
    parser = _parser()
    if "worker" in words[:1]:  # which takes settings, too
        from training import cli

        arguments, settings = parser.parse_known_args(words)
        return cli.work_on(arguments.campaign, arguments.engine, settings)
    arguments = parser.parse_args(words)
    return int(arguments.run(arguments))


def _parser() -> Parser:
    parser = Parser(prog="python -m training", description="What can be done with runs after training.")
    entry.add_options(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    checkpoints = commands.add_parser("checkpoint", help="look at checkpoints, verify them, remove old ones")
    checkpoints.add_argument("action", choices=("info", "verify", "prune"), help="what to do")
    checkpoints.add_argument("path", type=Path, metavar="PATH", help="a checkpoint, a fold folder or a run")
    from config.sections.train import Checkpoint  # pydantic, which takes a third of a second

    keep = Checkpoint().keep
    checkpoints.add_argument("--keep", type=whole(1), default=keep, help=f"how many prune leaves (default {keep})")
    checkpoints.set_defaults(run=_checkpoint)
    page = commands.add_parser("report", help="write report.html about one or more finished runs")
    page.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs, or campaigns")
    page.add_argument("--ensemble", type=Path, help="an ensemble file made of these runs")
    page.add_argument("--submission", type=Path, help="a submission made with that ensemble")
    page.add_argument("--out", type=Path, help="the page (default: report.html in the first run)")
    page.set_defaults(run=_report)
    page.add_argument(
        "--no-gradcam", action="store_true", help="leave out where the networks looked (saves opening them)"
    )
    _leaderboard_options(commands.add_parser("leaderboard", help="rank runs, and say in which settings they differ"))
    board = commands.add_parser("board", help="a page on this machine about all runs, live while they train")
    folders = "folders that hold runs and campaigns (default: runs)"
    board.add_argument("runs", nargs="*", type=Path, default=[Path("runs")], metavar="DIR", help=folders)
    board.add_argument("--port", type=int, default=7870, help="the port, or 0 for any free one (default: %(default)s)")
    board.set_defaults(run=_board)
    worker = commands.add_parser(
        "worker", help="take folds or trials of a campaign until none is left", passes=lambda _: True
    )
    _worker_options(worker)
    mixed = commands.add_parser("soup", help="average a fold's checkpoints as far as its score does not fall")
    mixed.add_argument("fold", type=Path, metavar="RUN/fold_K", help="a trained fold; its `soup` is written there")
    mixed.set_defaults(run=_soup)
    return parser


def _leaderboard_options(parser: Parser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="runs, or folders that hold runs")
    parser.add_argument("--diff", nargs=2, type=Path, metavar=("A", "B"), help="two runs side by side, in place of all")
    parser.add_argument(
        "--metric",
        choices=("macro_f1", "accuracy", "log_loss"),
        default="macro_f1",
        help="what ranks (default macro_f1)",
    )
    parser.set_defaults(run=_leaderboard)


def _worker_options(parser: Parser) -> None:
    parser.usage = "%(prog)s --campaign RUN [--engine ENGINE] [--SECTION.KEY VALUE ...]"
    parser.description = (
        "Any number of processes and machines that share the folder work on it. Beside these options it takes those of "
        "train_torch.py, such as --data.root where the images lie elsewhere on this machine, or --member."
    )
    parser.add_argument("--campaign", type=Path, required=True, metavar="RUN", help="the campaign's folder")
    parser.add_argument(
        "--engine",
        choices=("torch", "mlx"),
        default="",
        help="default: the one that is installed; of both, MLX on a Mac",
    )


def _checkpoint(arguments: argparse.Namespace) -> int:
    """The exit code is 1 when a checkpoint is damaged."""
    from training.run import inventory  # after --help, which must not wait for these imports

    if arguments.action == "prune":
        for path in inventory.prune(arguments.path, arguments.keep):
            print(f"removed {path}")
        return 0
    entries = [inventory.look(path) for path in inventory.find(arguments.path)]
    for saved in entries:
        print(inventory.line(saved) if arguments.action == "info" else saved.fault or f"{saved.path}: whole")
    return int(any(saved.fault for saved in entries))


def _report(arguments: argparse.Namespace) -> int:
    from training import report

    out = arguments.out or arguments.runs[0] / "report.html"
    runs = [run for path in arguments.runs for run in report.runs_in(path)]
    ensemble, submission = report.made_of(arguments.runs[0]) if len(arguments.runs) == 1 else (None, None)
    ensemble, submission = arguments.ensemble or ensemble, arguments.submission or submission
    report.write(runs, out, ensemble, submission, explain=not arguments.no_gradcam)
    print(out)
    return 0


def _leaderboard(arguments: argparse.Namespace) -> int:
    from training.campaign import leaderboard

    if bool(arguments.runs) == bool(arguments.diff):
        raise ConfigError("leaderboard: give RUN... to rank them, or --diff A B to compare two")
    if arguments.diff:
        print(leaderboard.versus(*(leaderboard.only(path) for path in arguments.diff)))
    else:
        entries = leaderboard.ranked(leaderboard.read(arguments.runs), arguments.metric)
        print(leaderboard.table(entries, arguments.metric))
    return 0


def _board(arguments: argparse.Namespace) -> int:
    from infer import web
    from training.board import app

    return web.Server(app.app(arguments.runs), "127.0.0.1", arguments.port).run()


def _soup(arguments: argparse.Namespace) -> int:
    from training.loop import checkpoint
    from training.run import inventory, train_run

    soup = train_run.soup(arguments.fold)
    print(inventory.line(inventory.look(soup)))
    print(f"ingredients: {', '.join(checkpoint.read_state(soup)['members'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
