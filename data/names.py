"""Names of files, images and classes in one normal form, so that what one command writes the next one reads."""

from __future__ import annotations

import unicodedata


def normal(name: str) -> str:
    """Unicode NFC without surrounding blanks: macOS writes file names in NFD, and tables lose trailing blanks."""
    return unicodedata.normalize("NFC", name).strip() if not name.isascii() else name.strip()


def of_path(path: str) -> str:
    """A relative POSIX path as text: `normal`, and bytes that are no UTF-8 as backslash escapes."""
    if not path.isprintable():
        path = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return normal(path)


def key(name: str) -> str:
    """What is compared of a path in a table: `normal`, forward slashes, no leading `./`, without regard to case."""
    text = normal(name).replace("\\", "/")
    while text.startswith("./"):
        text = text[2:]
    return text.casefold()
