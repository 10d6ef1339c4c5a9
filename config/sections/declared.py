"""What modules of other rooms declare, read from their source: importing them would import what only their work needs.

So an operation, a schedule or a runtime is added in the one file that implements it, and the settings know its name.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def literal(path: str | Path, name: str) -> Any:
    """The literal that the file `path` of the checkout assigns to `name` at its top level; None where it does not."""
    node = _assigned(path, name)
    return None if node is None else ast.literal_eval(node)


def keys(path: str | Path, name: str) -> tuple[str, ...]:
    """The keys, strings, of the dict that the file `path` of the checkout assigns to `name` at its top level."""
    node = _assigned(path, name)
    assigned = node.keys if isinstance(node, ast.Dict) else []
    return tuple(str(key.value) for key in assigned if isinstance(key, ast.Constant))


def _assigned(path: str | Path, name: str) -> ast.expr | None:
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return node.value
    return None
