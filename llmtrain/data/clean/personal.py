"""Personal data that can be told by their form: found, and replaced by a mark such as <email>."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence

from llmtrain.schema.clean import Personal

_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}(?![\w-])")
_IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4})(?![\w:]|\.\d)"
)
_CARD = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d-]|[.,]\d)")
_PHONE = re.compile(
    r"(?<![\w.+-])(?:"
    r"\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}"  # +49 30 1234567
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}"  # (555) 123-4567
    r"|0\d{9,10}"  # 07700900123
    r"|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,4}"  # 020 7946 0958
    r")(?![\w-]|[.,]\d)"
)


def is_card_number(text: str) -> bool:
    """Whether the digits of a text are 13 to 19 with the right check digit (Luhn; ISO/IEC 7812-1) that
    start as card numbers do, with 2 to 6."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    luhn = (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
    return luhn and 13 <= len(digits) <= 19 and 2 <= digits[0] <= 6 and len(set(digits)) > 1


def is_public_address(text: str) -> bool:
    """Whether a text is an address of the internet; those of private networks tell nothing of a person."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _always(text: str) -> bool:
    return True


def _has_digits(text: str) -> bool:
    """As many digits as telephone numbers have (ITU-T E.164)."""
    return 7 <= sum(map(str.isdigit, text)) <= 15


KINDS: dict[Personal, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    Personal.email: (_EMAIL, _always),
    Personal.ip: (_IP, is_public_address),
    Personal.card: (_CARD, is_card_number),
    Personal.phone: (_PHONE, _has_digits),
}
"""Form and check of each kind, in the order in which they are looked for."""


def mask(text: str, kinds: Sequence[Personal]) -> tuple[str, dict[Personal, int]]:
    """The text with marks in the place of personal data, and how many of each kind there were."""
    counts: dict[Personal, int] = {}
    for kind, (form, check) in KINDS.items():
        if kind not in kinds or (kind is Personal.email and "@" not in text):
            continue

        def replace(found: re.Match[str], kind: Personal = kind, check: Callable = check) -> str:
            if not check(found[0]):
                return found[0]
            counts[kind] = counts.get(kind, 0) + 1
            return f"<{kind.value}>"

        text = form.sub(replace, text)
    return text, counts
