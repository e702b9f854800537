"""The main text of HTML pages, by the package `trafilatura` (Barbaresi 2021)."""

from __future__ import annotations

import logging
import re

from llmtrain.utils.errors import ConfigError

_MARKUP = re.compile(
    r"<(?:!doctype\s+html|html|head|body|div|p|span|a|table|br)\b[^<>]{0,2000}>", re.IGNORECASE
)

FIX = "pip install 'llmtrain[clean]'"


def is_html(text: str) -> bool:
    """Whether a text has the marks of HTML near its start."""
    return _MARKUP.search(text, 0, 20_000) is not None


def main_text(page: str) -> str:
    """The main text of a page without menus, comments and the like; "" where there is none."""
    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # pages without text are told by us
    return trafilatura.extract(page, include_comments=False, deduplicate=False) or ""


def version() -> str:
    """Of the package: another one may find another text.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import trafilatura
    except ImportError:
        raise ConfigError("data.clean.html needs the package trafilatura", "data.clean.html", FIX) from None
    return str(trafilatura.__version__)
