"""The 17 layouts of the synthetic document data set, drawn with the DejaVu fonts that Debian and matplotlib ship.

A layout is `draw(sheet)`; words, numbers and places come from the sheet's own generator, so no two pages are alike.
Writing the data set is `examples.documents.__main__`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
_FACES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono")
_WORDS = (  # noqa: SIM905
    "account address agree amount annual answer bank board budget call card case city claim code contract copy cost "
    "date delivery detail director due email fund grant house issue item letter limit list market member month name "
    "note notice number office order owner page paid part payment period person phone plan post price product rate "
    "receipt record report return review sale send service share sign state street sum tax term test time title total "
    "transfer travel unit value visit week work year"
).split()
_INK = (25, 25, 30)
_LINE = (90, 90, 95)


class Sheet:
    """A page to draw on: `width` x `height` pixels, a generator, and a face of its own; text sizes are in pixels."""

    def __init__(self, rng: np.random.Generator, width: int, height: int):
        paper = tuple(int(level) for level in rng.integers(238, 256, 3))
        self.rng, self.width, self.height = rng, width, height
        self.image = Image.new("RGB", (width, height), paper)
        self.draw = ImageDraw.Draw(self.image)
        self.face = _FACES[rng.integers(len(_FACES))]
        self.margin = int(width * rng.uniform(0.06, 0.1))

    def text(self, x: float, y: float, words: str, size: float, bold: bool = False, anchor: str = "la") -> None:
        """One line of text at (x, y)."""
        self.draw.text((x, y), words, _INK, _font(self.face, round(size), bold), anchor=anchor)

    def words(self, count: int) -> str:
        """`count` words, the first with a capital."""
        return " ".join(self.rng.choice(_WORDS, count)).capitalize()

    def number(self, digits: int = 4) -> str:
        """A number of so many digits."""
        return str(int(self.rng.integers(10 ** (digits - 1), 10**digits)))

    def money(self) -> str:
        """An amount."""
        return f"{self.rng.integers(1, 999)}.{self.rng.integers(10, 99)}"

    def paragraph(self, x: float, y: float, width: float, lines: int, size: float) -> float:
        """Lines of text as wide as `width`, the last one shorter; where the next may begin."""
        for line in range(lines):
            share = 1.0 if line < lines - 1 else float(self.rng.uniform(0.3, 0.8))
            fitting = self.words(24)
            font = _font(self.face, round(size), False)
            while fitting and font.getlength(fitting) > width * share:
                fitting = fitting.rpartition(" ")[0]
            self.text(x, y, fitting, size)
            y += size * 1.45
        return y + size * 0.6

    def rule(self, x: float, y: float, length: float, thick: int = 1) -> None:
        """A horizontal line."""
        self.draw.line((x, y, x + length, y), _LINE, thick)

    def box(self, x: float, y: float, width: float, height: float, fill: tuple[int, int, int] | None = None) -> None:
        """A rectangle's outline, or a filled one."""
        self.draw.rectangle((x, y, x + width, y + height), fill, _LINE)

    def grid(self, x: float, y: float, widths: list[float], rows: int, height: float, numbers: bool = True) -> float:
        """A table with lines around its cells; the first column holds words. Where it ends."""
        for row in range(rows):
            left = x
            for column, width in enumerate(widths):
                self.box(left, y, width, height)
                cell = self.words(2) if column == 0 or row == 0 or not numbers else self.money()
                self.text(left + 3, y + height * 0.2, cell[: int(width / height * 1.9)], height * 0.55, bold=row == 0)
                left += width
            y += height
        return y

    def portrait(self, x: float, y: float, width: float, height: float) -> None:
        """A grey picture of a head and shoulders."""
        tone = int(self.rng.integers(120, 190))
        self.box(x, y, width, height, (tone, tone, tone + 8))
        dark = (tone - 70, tone - 65, tone - 60)
        self.draw.ellipse((x + width * 0.3, y + height * 0.15, x + width * 0.7, y + height * 0.6), dark)
        self.draw.pieslice((x + width * 0.1, y + height * 0.6, x + width * 0.9, y + height * 1.4), 180, 360, dark)

    def signature(self, x: float, y: float, width: float) -> None:
        """A scribble over a line."""
        steps = np.linspace(0, 1, 24)
        swing = np.cumsum(self.rng.normal(0, 1, 24)) * width * 0.02
        places = [
            (x + step * width * 0.8, y - 4 + bend) for step, bend in zip(steps.tolist(), swing.tolist(), strict=True)
        ]
        self.draw.line(places, (20, 30, 90), 2)
        self.rule(x, y + 6, width)


@functools.lru_cache(maxsize=256)
def _font(face: str, size: int, bold: bool) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_FONTS / f"{face}{'-Bold' if bold else ''}.ttf"), max(size, 5))


def letter(s: Sheet) -> None:
    """Address, date, greeting, paragraphs, signature."""
    for i in range(3):
        s.text(s.margin, s.margin + i * 11, s.words(2), 9)
    s.text(s.width - s.margin, s.height * 0.18, f"{s.words(1)} {s.number()}", 9, anchor="ra")
    y = s.height * 0.27
    for _ in range(int(s.rng.integers(3, 5))):
        y = s.paragraph(s.margin, y, s.width - 2 * s.margin, int(s.rng.integers(3, 6)), 8)
    s.signature(s.margin, s.height * 0.88, s.width * 0.35)


def memo(s: Sheet) -> None:
    """A title, four labelled lines, a thick rule, few paragraphs."""
    s.text(s.margin, s.margin, "MEMORANDUM", 20, bold=True)
    for i, name in enumerate(("To", "From", "Date", "Subject")):
        s.text(s.margin, s.height * 0.13 + i * 15, f"{name}:", 9, bold=True)
        s.text(s.margin + 55, s.height * 0.13 + i * 15, s.words(3), 9)
    s.rule(s.margin, s.height * 0.3, s.width - 2 * s.margin, 3)
    s.paragraph(s.margin, s.height * 0.34, s.width - 2 * s.margin, int(s.rng.integers(5, 10)), 9)


def invoice(s: Sheet) -> None:
    """A large word, a table of items, a total below it on the right."""
    s.text(s.width - s.margin, s.margin, "INVOICE", 20, bold=True, anchor="ra")
    for i in range(4):
        s.text(s.margin, s.margin + i * 11, s.words(2), 8)
    inner = s.width - 2 * s.margin
    y = s.grid(s.margin, s.height * 0.28, [inner * 0.55, inner * 0.2, inner * 0.25], int(s.rng.integers(6, 12)), 15)
    s.box(s.width - s.margin - inner * 0.45, y + 10, inner * 0.45, 20, (215, 220, 230))
    s.text(s.width - s.margin - 5, y + 13, f"Total {s.money()}", 11, bold=True, anchor="ra")


def form(s: Sheet) -> None:
    """Labelled boxes to be filled in, in two columns."""
    s.text(s.width / 2, s.margin, s.words(2), 14, bold=True, anchor="ma")
    half, y = (s.width - 2 * s.margin) / 2, s.height * 0.12
    for _ in range(int(s.rng.integers(8, 11))):
        for column in range(2):
            x = s.margin + column * half
            s.text(x, y, s.words(1), 7)
            s.box(x, y + 9, half - 8, 16)
            if s.rng.random() < 0.6:
                s.text(x + 4, y + 12, s.words(2), 9)
        y += 36


def questionnaire(s: Sheet) -> None:
    """Numbered questions, each with a row of tick boxes."""
    s.text(s.margin, s.margin, s.words(3), 13, bold=True)
    y = s.height * 0.12
    for question in range(int(s.rng.integers(7, 10))):
        s.text(s.margin, y, f"{question + 1}. {s.words(5)}?", 8)
        for i in range(5):
            x = s.margin + 12 + i * (s.width - 2 * s.margin) / 5
            s.box(x, y + 15, 9, 9)
            if s.rng.random() < 0.25:
                s.draw.line((x, y + 15, x + 9, y + 24), _INK, 2)
                s.draw.line((x, y + 24, x + 9, y + 15), _INK, 2)
            s.text(x + 13, y + 15, s.number(1), 8)
        y += s.height * 0.095


def ledger(s: Sheet) -> None:
    """A table of numbers over the whole page."""
    s.text(s.margin, s.margin * 0.7, s.words(2), 11, bold=True)
    columns, inner = int(s.rng.integers(4, 7)), s.width - 2 * s.margin
    widths = [inner * 0.3, *[inner * 0.7 / columns] * columns]
    s.grid(s.margin, s.margin + 16, widths, int((s.height - 2 * s.margin - 20) / 13), 13)


def receipt(s: Sheet) -> None:
    """A narrow strip: shop, items with prices, dashes, sum, bar code."""
    s.face = "DejaVuSansMono"
    s.text(s.width / 2, 12, s.words(2).upper(), 13, bold=True, anchor="ma")
    y = 40.0
    for i in range(int(s.rng.integers(12, 22))):
        s.text(10, y, s.words(1), 9)
        s.text(s.width - 10, y, s.money(), 9, anchor="ra")
        y += 14
        if i % 6 == 5:
            s.text(10, y, "-" * 40, 9)
            y += 14
    s.text(10, y + 6, "TOTAL", 13, bold=True)
    s.text(s.width - 10, y + 6, s.money(), 13, bold=True, anchor="ra")
    _bars(s, 24, y + 36, s.width - 48, 30)


def identity_card(s: Sheet) -> None:
    """A coloured card: portrait on the left, labelled lines on the right."""
    s.box(4, 4, s.width - 9, s.height - 9, tuple(int(c) for c in s.rng.integers(190, 235, 3)))  # type: ignore[arg-type]
    s.text(s.width / 2, 12, "IDENTITY CARD", 13, bold=True, anchor="ma")
    s.portrait(s.margin, s.height * 0.25, s.width * 0.25, s.height * 0.55)
    for i, name in enumerate(("Name", "Given", "Born", "Number", "Valid")):
        y = s.height * 0.25 + i * s.height * 0.125
        s.text(s.width * 0.4, y, name, 7)
        s.text(s.width * 0.55, y, s.words(1) if i < 2 else s.number(6), 10, bold=True)


def passport(s: Sheet) -> None:
    """A page with a portrait above and two lines of machine-readable text at the foot."""
    s.text(s.margin, s.margin * 0.6, "PASSPORT", 16, bold=True)
    s.portrait(s.margin, s.height * 0.18, s.width * 0.28, s.height * 0.42)
    for i in range(6):
        s.text(s.width * 0.42, s.height * (0.18 + i * 0.085), s.words(1), 6)
        s.text(s.width * 0.42, s.height * (0.18 + i * 0.085) + 8, s.words(2).upper(), 9)
    for i in range(2):
        line = f"P<{s.words(2).upper().replace(' ', '<<')}{'<' * 40}"[:34] if i == 0 else s.number(9) + s.number(9)
        s.draw.text(
            (s.margin * 0.6, s.height * (0.8 + 0.08 * i)), line.ljust(36, "<"), _INK, _font(_FACES[2], 12, False)
        )


def certificate(s: Sheet) -> None:
    """A double frame, a large centred title, a seal."""
    for inset in (8, 15):
        s.draw.rectangle((inset, inset, s.width - inset, s.height - inset), None, (120, 90, 30), 3 if inset == 8 else 1)
    s.text(s.width / 2, s.height * 0.17, "CERTIFICATE", 26, bold=True, anchor="ma")
    for i, size in enumerate((9, 17, 9, 9)):
        s.text(s.width / 2, s.height * (0.36 + i * 0.1), s.words(4 if size == 9 else 2), size, anchor="ma")
    x, y = s.width * s.rng.uniform(0.15, 0.75), s.height * 0.75
    s.draw.ellipse((x, y, x + 44, y + 44), (170, 40, 40), (120, 20, 20), 3)
    s.signature(s.width * 0.4, s.height * 0.87, s.width * 0.25)


def resume(s: Sheet) -> None:
    """A dark column with a portrait beside headings and short lines."""
    edge = s.width * s.rng.uniform(0.28, 0.36)
    s.draw.rectangle((0, 0, edge, s.height), (60, 75, 100))
    s.portrait(edge * 0.2, s.height * 0.05, edge * 0.6, s.height * 0.16)
    for i in range(9):
        s.rule(edge * 0.15, s.height * (0.27 + 0.05 * i), edge * s.rng.uniform(0.4, 0.7), 2)
    y = s.height * 0.05
    s.text(edge + 12, y, s.words(2), 16, bold=True)
    for _ in range(4):
        y += s.height * 0.11
        s.text(edge + 12, y, s.words(1).upper(), 10, bold=True)
        y = s.paragraph(edge + 12, y + 15, s.width - edge - 24, 4, 7)


def newspaper(s: Sheet) -> None:
    """A head line over three columns of small text with a picture."""
    s.face = "DejaVuSerif"
    s.text(s.width / 2, s.margin * 0.5, f"The {s.words(1)}", 28, bold=True, anchor="ma")
    s.rule(s.margin, s.height * 0.12, s.width - 2 * s.margin, 2)
    column = (s.width - 2 * s.margin) / 3
    picture = int(s.rng.integers(3))
    for i in range(3):
        x, y = s.margin + i * column, s.height * 0.14
        if i == picture:
            s.box(x, y, column - 6, s.height * 0.16, (150, 150, 150))
            y += s.height * 0.18
        while y < s.height * 0.9:
            s.text(x, y, s.words(2), 8, bold=True)
            y = s.paragraph(x, y + 11, column - 6, 8, 6)


def envelope(s: Sheet) -> None:
    """A wide sheet: sender small, a stamp with its mark, the address low on the right."""
    for i in range(3):
        s.text(10, 10 + i * 9, s.words(2), 7)
    s.box(s.width - 52, 10, 40, 46, (150, 90, 80))
    for i in range(4):
        s.draw.arc((s.width - 110, 8 + i * 4, s.width - 50, 60 + i * 4), 200, 340, _LINE, 2)
    for i in range(4):
        s.text(s.width * 0.5, s.height * 0.52 + i * 16, s.words(2) if i < 3 else s.number(5), 12)


def cheque(s: Sheet) -> None:
    """A wide tinted sheet: a box with the amount, ruled lines, digits at the foot."""
    s.box(0, 0, s.width - 1, s.height - 1, tuple(int(c) for c in s.rng.integers(205, 240, 3)))  # type: ignore[arg-type]
    s.text(12, 10, f"{s.words(1)} Bank", 13, bold=True)
    for i, share in enumerate((0.66, 0.9)):
        y = s.height * (0.4 + 0.18 * i)
        s.text(12, y - 11, s.words(5), 9)
        s.rule(12, y + 2, s.width * share - 24)
    s.box(s.width * 0.72, s.height * 0.28, s.width * 0.24, 20, (250, 250, 250))
    s.text(s.width * 0.74, s.height * 0.3, s.money(), 12, bold=True)
    s.signature(s.width * 0.62, s.height * 0.76, s.width * 0.32)
    s.draw.text((12, s.height * 0.86), f"|: {s.number(9)} |: {s.number(6)}", _INK, _font(_FACES[2], 12, False))


def calendar(s: Sheet) -> None:
    """A month: seven columns of large cells with a number in a corner."""
    s.text(s.width / 2, s.margin * 0.5, f"{s.words(1)} {s.number()}", 20, bold=True, anchor="ma")
    inner, top = s.width - 2 * s.margin, s.height * 0.16
    tall = (s.height * 0.78) / 6
    for row in range(6):
        for column in range(7):
            x, y = s.margin + column * inner / 7, top + row * tall
            s.box(x, y, inner / 7, tall, (225, 228, 235) if column > 4 else None)
            s.text(x + 3, y + 2, str(row * 7 + column + 1), 9, bold=True)


def chart(s: Sheet) -> None:
    """A report page: a heading, a chart of bars, a paragraph below."""
    s.text(s.margin, s.margin, s.words(4), 13, bold=True)
    inner, base = s.width - 2 * s.margin, s.height * 0.6
    colour = tuple(int(c) for c in s.rng.integers(60, 190, 3))
    count = int(s.rng.integers(5, 10))
    for i in range(count):
        tall = s.height * s.rng.uniform(0.08, 0.4)
        x = s.margin + (i + 0.2) * inner / count
        s.draw.rectangle((x, base - tall, x + inner / count * 0.6, base), colour)
    s.rule(s.margin, base, inner, 2)
    s.paragraph(s.margin, s.height * 0.67, inner, int(s.rng.integers(5, 9)), 8)


def label(s: Sheet) -> None:
    """A parcel label: thick frame, large codes, a wide bar code."""
    s.draw.rectangle((6, 6, s.width - 7, s.height - 7), None, _INK, 3)
    s.text(18, 16, s.words(1)[:1].upper() + s.number(2), 34, bold=True)
    s.rule(6, s.height * 0.28, s.width - 13, 3)
    for i in range(4):
        s.text(18, s.height * 0.32 + i * 14, s.words(2), 11)
    s.rule(6, s.height * 0.56, s.width - 13, 3)
    _bars(s, 24, s.height * 0.62, s.width - 48, s.height * 0.24)
    s.text(s.width / 2, s.height * 0.89, s.number(9), 11, anchor="ma")


def _bars(s: Sheet, x: float, y: float, width: float, height: float) -> None:
    end = x + width
    while x < end:
        thick = float(s.rng.integers(1, 5))
        s.draw.rectangle((x, y, min(x + thick - 1, end), y + height), _INK)
        x += thick + float(s.rng.integers(1, 5))


# Each layout with the width and the height of its page in pixels.
LAYOUTS: dict[str, tuple[Callable[[Sheet], None], int, int]] = {
    "letter": (letter, 320, 450),
    "memo": (memo, 320, 450),
    "invoice": (invoice, 320, 450),
    "form": (form, 320, 450),
    "questionnaire": (questionnaire, 320, 450),
    "ledger": (ledger, 320, 450),
    "receipt": (receipt, 190, 460),
    "identity_card": (identity_card, 340, 214),
    "passport": (passport, 340, 240),
    "certificate": (certificate, 450, 320),
    "resume": (resume, 320, 450),
    "newspaper": (newspaper, 320, 450),
    "envelope": (envelope, 400, 200),
    "cheque": (cheque, 400, 180),
    "calendar": (calendar, 450, 320),
    "chart": (chart, 320, 450),
    "label": (label, 300, 400),
}


def page(name: str, rng: np.random.Generator) -> np.ndarray:
    """A page of a layout: uint8 `[H, W, 3]`."""
    draw, width, height = LAYOUTS[name]
    sheet = Sheet(rng, width, height)
    draw(sheet)
    return np.asarray(sheet.image)
