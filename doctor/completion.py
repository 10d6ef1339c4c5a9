"""Shell completion of every command's options: `python -m doctor --print_completion bash`.

The options come from `docs/reference/commands.md`, which a test holds to the commands, and those of a training from the
schema. So the script is static: no TAB waits for Python.
"""

from __future__ import annotations

import re
from pathlib import Path

from config import usage

_PAGE = Path(__file__).parents[1] / "docs" / "reference" / "commands.md"
_SECTION = re.compile(r"^###? (python -m [\w ]+|train_torch\.py[^\n]*)\n\n```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
_BASH = """_tandem() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command= sub= words= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
            -m) command=${{COMP_WORDS[i+1]}}; sub=${{COMP_WORDS[i+2]}}; break ;;
            *train_torch.py|*train_mlx.py) command=train; break ;;
        esac
    done
    case "$command $sub" in
{words}
    esac
    case "$command $previous" in
        *" -m") words="{modules}" ;;
{values}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -o bashdefault -F _tandem python python3"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit"
_FISH = """function __tandem_command
    set -l tokens (commandline -opc)
    for i in (seq (count $tokens))
        switch $tokens[$i]
            case -m
                echo $tokens[(math $i + 1)] $tokens[(math $i + 2)]
                return
            case '*train_torch.py' '*train_mlx.py'
                echo train
                return
        end
    end
end
function __tandem_words
    switch (__tandem_command)
{words}
    end
end
complete -c python -c python3 -a '(__tandem_words)'"""


def script(shell: str) -> str:
    """What bash, zsh or fish reads at its start. Files are completed where no option fits."""
    table = sorted(options().items(), reverse=True)  # subcommands before their command
    if shell == "fish":
        lines = [
            f"        case '{command} {sub or '*'}' {command}\n            string split ' ' -- '{' '.join(words)}'"
            for (command, sub), words in table
        ]
        return _FISH.format(words="\n".join(lines))
    text = _BASH.format(
        words="\n".join(
            f'        "{command} "{sub or "*"}) words="{" ".join(words)}" ;;' for (command, sub), words in table
        ),
        modules=" ".join(dict.fromkeys(command for command, _ in options() if command != "train")),
        values="\n".join(
            f'        "{command} {flag}") words="{" ".join(few)}" ;;' for (command, flag), few in choices().items()
        ),
    )
    return f"{_ZSH}\n{text}" if shell == "zsh" else text


def options() -> dict[tuple[str, str], list[str]]:
    """What may follow each command and subcommand ("" for none): options, and the names of subcommands."""
    words: dict[tuple[str, str], list[str]] = {}
    for title, text in _SECTION.findall(_PAGE.read_text(encoding="utf-8")):
        flags = re.findall(r"(?:^  |, )(--[\w-]+)", text, re.MULTILINE)
        if title.startswith("train"):
            words["train", ""] = [*flags, *(f"--{path}" for path in usage.leaves())]
            continue
        command, _, sub = title.removeprefix("python -m ").partition(" ")
        words[command, sub] = list(dict.fromkeys([*flags, "--help", "--verbose", "--version"]))
        if sub:
            words[command, ""].append(sub)
    return words


def choices() -> dict[tuple[str, str], list[str]]:
    """The values of options that take one of a few, by command and option; those of settings are `train`'s."""
    values = {("train", "--mode"): list(usage.MODES)}
    for path, leaf in usage.leaves().items():
        if few := re.findall(r"one of ([\w, .-]+)", leaf.accepts):
            values["train", f"--{path}"] = few[0].partition(" or ")[0].split(", ")
    for title, text in _SECTION.findall(_PAGE.read_text(encoding="utf-8")):
        command = title.removeprefix("python -m ").partition(" ")[0]
        for flag, few in re.findall(r"^  (--[\w-]+) \{([^}\s]+)\}", text, re.MULTILINE):
            values[command, flag] = few.split(",")
    return values
