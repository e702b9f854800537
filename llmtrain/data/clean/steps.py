"""The steps of cleaning that look at one document at a time, in their order."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from llmtrain.data.clean import duplicates, html
from llmtrain.data.clean.characters import normalise, remove_control_characters
from llmtrain.data.clean.personal import mask
from llmtrain.data.clean.quality import Broken, check_quality, check_repetition
from llmtrain.data.corpus import shorten
from llmtrain.schema.clean import CleanConfig, UnicodeForm

EXAMPLE = 100
"""Characters of an example, about."""


@dataclass
class Cleaned:
    """What became of a document.

    Attributes:
        text: that stays; "" for one that is removed.
        removed: the rule that removed it, or "".
        counts: what was changed in it, by step.
        examples: for a human, of the removal and of each change.
        digest: of the text, where duplicates are looked for.
        signature: the same for near duplicates.
    """

    text: str
    removed: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    digest: str = ""
    signature: str = ""

    def note(self, step: str, number: int, example: str) -> None:
        """Count what a step has changed."""
        self.counts[step], self.examples[step] = number, example

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def removal(rule: str, example: str) -> Cleaned:
    """A document that is removed."""
    return Cleaned("", rule, examples={rule: example})


class Cleaner:
    """Cleans documents one by one; what it does depends on the text alone.

    Args:
        config: the steps.
    """

    def __init__(self, config: CleanConfig) -> None:
        self.config = config
        self.near = config.near_duplicates if _applied(config.near_duplicates) else None

    def __call__(self, text: str) -> Cleaned:
        """Clean a document."""
        config, cleaned = self.config, Cleaned(text)
        if not text.strip():  # it will be left out anyway, as empty
            return cleaned
        if config.html and html.is_html(text):
            cleaned.text = html.main_text(text)
            cleaned.note("html", 1, f"{len(text):,} characters of HTML to {len(cleaned.text):,} of text")
            if not cleaned.text:
                return removal("html no text", shorten(text, EXAMPLE))
        if config.unicode is not UnicodeForm.none:
            before, cleaned.text = cleaned.text, normalise(cleaned.text, config.unicode)
            if cleaned.text != before:
                cleaned.note(f"unicode {config.unicode.value}", 1, _around(before, cleaned.text))
        if config.control_characters:
            before = cleaned.text
            cleaned.text, number = remove_control_characters(before)
            if number:
                cleaned.note("control characters", number, _around(before, cleaned.text))
        for section, check in (("quality", check_quality), ("repetition", check_repetition)):
            rules = getattr(config, section)
            if _applied(rules) and (broken := check(cleaned.text, rules)) is not None:
                return removal(f"{section} {broken.rule}", _told(broken, cleaned.text))
        if config.personal:
            cleaned.text, masked = mask(cleaned.text, config.personal)
            for kind, number in masked.items():
                cleaned.note(f"personal {kind.value}", number, _at(cleaned.text, f"<{kind.value}>"))
        if config.exact_duplicates:
            cleaned.digest = duplicates.text_digest(cleaned.text)
        if self.near is not None:
            cleaned.signature = duplicates.signature(cleaned.text, self.near)
        return cleaned


def _applied(rules: Any) -> bool:
    return rules is not None and rules.apply


def _told(broken: Broken, text: str) -> str:
    value = f"{broken.value:.3g}" if isinstance(broken.value, float) else f"{broken.value:,}"
    return f"{value} (limit {broken.limit:g}) in {shorten(text, EXAMPLE)}"


def _around(before: str, after: str) -> str:
    """The first place where two texts differ, before and after."""
    pairs = enumerate(zip(before, after, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(before), len(after)))
    part = slice(max(0, place - 10), place + 20)
    return f"{before[part]!a} to {after[part]!a}"


def _at(text: str, mark: str) -> str:
    """The surroundings of a mark; what it stands for is told nowhere."""
    place = text.find(mark)
    return repr(text[max(0, place - EXAMPLE // 2) : place + EXAMPLE // 2])
