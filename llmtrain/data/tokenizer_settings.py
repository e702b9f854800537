"""What a tokenizer is besides its ids, in the words and files of Hugging Face's tools.

`tokenizer_config.json`, `chat_template.jinja` and `generation_config.json` lie beside `tokenizer.json`, in
the directories of models and in our checkpoints. All that a foreign one says is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtrain.utils.errors import DataError

SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
MODEL = "config.json"

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Names that special tokens go by in the settings and in chat templates."""


@dataclass(frozen=True)
class TokenizerSettings:
    """What the files beside a `tokenizer.json` say.

    Attributes:
        values: of `tokenizer_config.json`; the chat template is among them.
        generation: of `generation_config.json`.
    """

    values: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)

    @property
    def chat_template(self) -> str | None:
        """How conversations become text; of several templates the one for plain conversations."""
        told = self.values.get("chat_template")
        if isinstance(told, list):
            told = {one.get("name"): one.get("template") for one in told if isinstance(one, dict)}
        if isinstance(told, dict):
            told = told.get("default")
        return told if isinstance(told, str) else None

    @property
    def named(self) -> dict[str, str]:
        """Special tokens by their names."""
        found = {name: token_in(self.values, name) for name in NAMED}
        return {name: token for name, token in found.items() if token is not None}

    @property
    def end_ids(self) -> set[int]:
        """Ids that end what a model writes."""
        told = self.generation.get("eos_token_id")
        listed = told if isinstance(told, list) else [told]
        return {one for one in listed if type(one) is int}

    def files(self, end_token: str) -> dict[str, str]:
        """Content of the files that it is kept in, by name; the token that ends a document is always told."""
        values = self.values
        if token_in(values, "eos_token") != end_token:
            values = {**values, "eos_token": end_token}
        files = {SETTINGS: _text(values)}
        return {**files, GENERATION: _text(self.generation)} if self.generation else files


def read_settings(path: Path) -> dict[str, Any]:
    """Content of a `tokenizer_config.json` and of the chat template beside it; nothing where there is none.

    Raises:
        DataError: it is no JSON object, or cannot be read.
    """
    told = _read_object(path, "the settings of the tokenizer")
    template = path.with_name(TEMPLATE)
    if template.exists():
        try:
            told["chat_template"] = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            what = f"the chat template cannot be read: {error}"
            raise DataError(what, str(template), "repair or remove it") from error
    return told


def read_generation(folder: Path) -> dict[str, Any]:
    """Content of the `generation_config.json` of a model directory; without it what its `config.json` says
    about the ids that start and end a text.

    Raises:
        DataError: a file is no JSON object.
    """
    told = _read_object(folder / GENERATION, "the settings of generation")
    if "eos_token_id" in told:
        return told
    model = _read_object(folder / MODEL, "the settings of the model")
    return {key: model[key] for key in ("bos_token_id", "eos_token_id") if model.get(key) is not None} | told


def token_in(settings: Mapping[str, Any], name: str) -> str | None:
    """A special token that the settings name; it stands there as text or with its properties."""
    token = settings.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _read_object(path: Path, what: str) -> dict[str, Any]:
    """A JSON file that holds an object; an empty one where there is no file."""
    if not path.exists():
        return {}
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{what} cannot be read: {error}", str(path), "repair or remove it") from error
    if not isinstance(told, dict):
        raise DataError(f"{what} are no JSON object", str(path), "repair or remove it")
    return told


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"
