"""Text for people: a little colour on a terminal, none elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence


def first_sentence(text: str) -> str:
    """A text up to its first full stop, which is left out; those of "et al." do not count."""
    match = re.match(r"(.*?)(?<!et al)(?<!e\.g)(?<!i\.e)\.(\s|$)", text, re.DOTALL)
    return (match[1] if match else text).rstrip(".:")


class Style:
    """Marks headings and side remarks where the output is a terminal that shows colours."""

    def __init__(self, colour: bool | None = None) -> None:
        if colour is None:
            colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.colour = colour
        self.width = min(shutil.get_terminal_size((100, 24)).columns, 110)

    def _code(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def bold(self, text: str) -> str:
        """For headings."""
        return self._code("1", text)

    def name(self, text: str) -> str:
        """For words that a user types."""
        return self._code("36", text)

    def dim(self, text: str) -> str:
        """For side remarks."""
        return self._code("2", text)

    def wrap(self, text: str, indent: int, first: int | None = None) -> str:
        """Fill lines to the width; the first line is taken to be at column `first` already."""
        width = max(30, self.width - indent)
        lines = textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False) or [""]
        head = "" if first is not None else " " * indent
        return head + ("\n" + " " * indent).join(lines)

    def entries(self, rows: Iterable[tuple[str, str]], indent: int = 2, column: int | None = None) -> str:
        """Names on the left, wrapped text on the right."""
        rows = list(rows)
        column = column or max((len(name) for name, _ in rows), default=0) + indent + 2
        lines = []
        for name, text in rows:
            left = " " * indent + self.name(name)
            gap = column - indent - len(name)
            if gap < 2:
                lines += [left, self.wrap(text, column)]
            else:
                lines.append(left + " " * gap + self.wrap(text, column, first=column))
        return "\n".join(lines)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], indent: int = 2) -> str:
        """Columns as wide as they need to be."""
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        lines = []
        for number, row in enumerate([header, *rows]):
            cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            line = " " * indent + cells.rstrip()
            lines.append(self.bold(line) if number == 0 else line)
        return "\n".join(lines)
