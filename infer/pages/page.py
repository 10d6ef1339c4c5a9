"""Pages made of `templates`: self-contained HTML that needs no network.

The scripts of a page are named by hash, so that the browser runs no other one.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from config.places import atomic_write
from config.text import counted

_TEMPLATES = Path(__file__).parent / "templates"
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["counted"] = counted


def write(out: Path, template: str, **values: Any) -> Path:
    """Write a page with these values atomically; returns its path."""
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, page(template, **values))
    return out


def page(
    template: str, scripts: Sequence[str] = ("report.js",), styles: Sequence[str] = ("report.css",), **values: Any
) -> str:
    """A page with these values, its styles and scripts inside, and the time."""
    script = "\n".join(map(_source, scripts))
    return fragment(
        template,
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
        style="".join(map(_source, styles)),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )


def fragment(template: str, **values: Any) -> str:
    """A fragment of a page."""
    return _ENVIRONMENT.get_template(template).render(**values)


def prediction(title: str, views: Sequence[str], limit: int, post: str, back: str = "") -> bytes:
    """The page that posts images of at most `limit` bytes to the address `post` and shows what they are."""
    values = {"title": title, "views": views, "limit": limit, "post": post, "back": back}
    return page("predict.html", ("predict.js",), ("report.css", "board.css"), **values).encode()


@functools.cache
def _source(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")
