"""Names of models on the Hugging Face hub, told from paths."""

from __future__ import annotations

import re
from pathlib import Path

HUB_NAME = re.compile(r"(?P<owner>[\w][\w.-]*)/(?P<name>[\w][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
"""`owner/name`, or `owner/name@revision`."""


def hub_name(text: str) -> re.Match[str] | None:
    """The parts of a name on the hub, such as `HuggingFaceTB/SmolLM2-135M`; None where a text is a path.

    It is one if something is there, or at least a folder called like the first part of the name; `runs/NAME`
    always is.
    """
    named = HUB_NAME.fullmatch(text)
    if named is None or named["owner"] == "runs" or Path(text).exists() or Path(named["owner"]).exists():
        return None
    return named
