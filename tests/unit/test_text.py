"""Numbers of things and durations, as every command prints them."""

from __future__ import annotations

import pytest

from config.text import counted, duration


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [(0, "image", "0 images"), (1, "image", "1 image"), (1, "class", "1 class"), (33137, "class", "33,137 classes")],
)
def test_a_number_of_things_has_its_plural(count: int, noun: str, text: str) -> None:
    assert counted(count, noun) == text


def test_verbs_follow_the_number() -> None:
    assert [counted(count, "ID is", "IDs are") for count in (1, 2)] == ["1 ID is", "2 IDs are"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (12.3, "12 s"),
        (59.7, "1 min"),
        (60, "1 min"),
        (75.2, "1 min 15"),
        (3599.7, "1 h"),
        (7325, "2 h 02"),
        (100 * 3600, "100 h"),
    ],
)
def test_a_duration_is_short_and_has_its_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text
