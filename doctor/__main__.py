"""`python -m doctor`: what Tandem finds on this machine, what can run, and the remedy for what cannot.

Each framework is asked in a process of its own, so that a broken one is a line of the report and not its end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from config.program import entry
from config.program.parser import Parser
from doctor import engines, host, packages
from doctor.check import BAD, NOTE, Check, guarded

_EPILOG = "Exit codes: 0 an engine can run and nothing is wrong, 1 something is wrong, 2 a wrong command line."
_CHECKS = {
    "python": host.python,
    "platform": host.system,
    "chip": host.chip,
    "memory": host.memory,
    "packages": packages.required,
    "torch": engines.torch,
    "mlx": engines.mlx,
    "onnx": engines.onnx,
    "coreml": engines.coreml,
    "extras": packages.extras,
    "combinations": packages.combinations,
    "compiler": host.compiler,
    "disk": host.disk,
    "hub": host.hub,
    "environment": host.environment,
}
_WIDTH = 11  # of the names
_REPORT = """In a bug report: the command and all that it printed with --verbose, config.yaml of the run folder, the
smallest input that shows it, and the output of `python -m doctor --json`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; the exit code is 1 where something is wrong."""
    return entry.run(_run, argv, "python -m doctor")


def _run(words: list[str]) -> int:
    parser = Parser(
        prog="python -m doctor",
        description="Say what this machine and this installation can run, and the remedy for what they cannot.",
        epilog=_EPILOG,
    )
    entry.add_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, for a bug report")
    parser.add_argument(
        "--print_completion",
        choices=("bash", "zsh", "fish"),
        help="print what completes the options of every command, to be read at the start of that shell; check nothing",
    )
    options = parser.parse_args(words)
    if options.print_completion:
        from doctor import completion  # of the settings, and so of packages that may be broken

        print(completion.script(options.print_completion))
        return 0
    checks: list[Check] = []
    if not options.json:
        print(f"{_version()} {host.commit()} in {host.home(str(host.ROOT))}\n", flush=True)
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda name: guarded(name, _CHECKS[name]), _CHECKS):
            checks += results
            for check in results if not options.json else ():
                remedy = f"\n{'':{_WIDTH + 8}}remedy: {check.remedy}" if check.remedy else ""
                print(f"{check.status:4}  {check.name:{_WIDTH}}  {check.found}{remedy}", flush=True)
    able = [name for name in ("torch", "mlx") if any(c.name == name and "engine" in c.details for c in checks)]
    bad, notes = (sum(check.status == status for check in checks) for status in (BAD, NOTE))
    if options.json:
        rows = [{name: value for name, value in vars(check).items() if value} for check in checks]
        report = {"version": _version(), "commit": host.commit(), "engines": able, "checks": rows}
        print(json.dumps(report, indent=1))
    else:
        runs = " and ".join(f"train_{name}.py" for name in able)
        verdict = f"{runs} can run" if able else "no engine can run: mend what is marked bad, or run make install"
        print(f"\n{verdict}; bad: {bad}, notes: {notes}\n{_REPORT}")
    return int(not able or bad > 0)


def _version() -> str:
    try:
        from config.program import version  # needs tomllib, of Python 3.11
    except ImportError:
        return "tandem"
    return version.line()


if __name__ == "__main__":
    sys.exit(main())
