"""Characters: normal forms of Unicode, and those that are no text."""

from __future__ import annotations

import re
import unicodedata

from llmtrain.schema.clean import UnicodeForm

_LINE_ENDS = re.compile("[\r\x0b\x0c\x85\u2028\u2029]")
"""What ends a line or a page elsewhere; it becomes a line end, so that no two words are joined."""

_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff]")
"""Control characters, byte order marks, annotation marks and noncharacters."""

_BEYOND = re.compile("[\U00010000-\U0010ffff]")
_NO_TEXT_BEYOND = re.compile(
    "[\U000e0000-\U000e007f"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(1, 17))
    + "]"
)
"""Tags and noncharacters beyond U+FFFF; apart from the others, for they take ten times as long."""


def normalise(text: str, form: UnicodeForm) -> str:
    """The text in a normal form; most texts are in it already, which is told fast."""
    if form is UnicodeForm.none or text.isascii() or unicodedata.is_normalized(form.value, text):
        return text
    return unicodedata.normalize(form.value, text)


def remove_control_characters(text: str) -> tuple[str, int]:
    """The text without control characters, and how many there were; those that end a line become LF."""
    text, ends = _LINE_ENDS.subn("\n", text)
    text, removed = _NO_TEXT.subn("", text)
    if not text.isascii() and _BEYOND.search(text):
        text, more = _NO_TEXT_BEYOND.subn("", text)
        removed += more
    return text, ends + removed
