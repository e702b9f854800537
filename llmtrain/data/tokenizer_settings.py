"""`tokenizer_config.json`: what a tokenizer is besides its ids, in the words of Hugging Face's tools.

It lies beside `tokenizer.json`, in the directories of models and in our checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtrain.utils.errors import DataError

SETTINGS = "tokenizer_config.json"


def read_settings(path: Path) -> dict[str, Any]:
    """Content of the file; nothing where there is none.

    Raises:
        DataError: it is no JSON object.
    """
    if not path.exists():
        return {}
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = f"the settings of the tokenizer cannot be read: {error}"
        raise DataError(what, str(path), "repair or remove it") from error
    if not isinstance(told, dict):
        raise DataError("the settings of the tokenizer are no JSON object", str(path), "repair or remove it")
    return told


def end_token_in(settings: Mapping[str, Any]) -> str | None:
    """The token that ends a document, as the settings say; it stands there as text or with its properties."""
    token = settings.get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def settings_text(end_token: str) -> str:
    """Content of the file for a tokenizer of ours."""
    return json.dumps({"eos_token": end_token}, ensure_ascii=False) + "\n"
