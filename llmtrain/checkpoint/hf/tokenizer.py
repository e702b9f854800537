"""The tokenizer of a model directory, whatever files it is in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from llmtrain.data import wordpiece
from llmtrain.data.tokenizer import KNOWN_ENDS, SPECIAL, Tokenizer
from llmtrain.data.tokenizer_settings import NAMED, SETTINGS, read_generation, read_settings, token_in
from llmtrain.utils.errors import ConfigError, DataError

TOKENIZER = "tokenizer.json"
VOCABULARY = "vocab.txt"
BPE_VOCABULARY = "vocab.json"
MERGES = "merges.txt"


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of `tokenizer.json`, or one that is made of `vocab.txt` (WordPiece), or of `vocab.json`
    and `merges.txt` (byte-level BPE).

    Raises:
        ConfigError: there is none of them.
        DataError: it cannot be read, or is none.
    """
    made: dict[str, Callable[[Path], str]] = {
        TOKENIZER: lambda file: file.read_text(encoding="utf-8"),
        VOCABULARY: from_vocabulary,
        MERGES: from_merges,
    }
    file = next((path / name for name in made if (path / name).is_file()), None)
    if file is None:
        what = f"there is neither {TOKENIZER} nor {VOCABULARY} nor {MERGES}"
        raise ConfigError(what, str(path), "put the model's tokenizer there")
    try:
        text = made[file.name](file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the tokenizer cannot be read: {error}", str(file), "get the file again") from error
    settings, generation = read_settings(path / SETTINGS), read_generation(path)
    return Tokenizer.from_json(text, settings=settings, generation=generation)


def from_vocabulary(file: Path) -> str:
    """BERT's tokenizer with the tokens of a `vocab.txt`."""
    tokens = wordpiece.read_vocab(file.read_text(encoding="utf-8"))
    return wordpiece.from_vocab(tokens, **wordpiece.settings(file, lowercase=True)).to_str()


def from_merges(file: Path) -> str:
    """GPT-2's tokenizer with the pairs of a `merges.txt` and the tokens of the `vocab.json` beside it.

    Raises:
        DataError: they do not go together.
    """
    try:
        model = models.BPE.from_file(str(file.with_name(BPE_VOCABULARY)), str(file))
    except Exception as error:  # the library raises plain Exception
        what = f"{BPE_VOCABULARY} and {MERGES} cannot be read: {error}"
        raise DataError(what, str(file), "get both files again") from error
    settings = read_settings(file.with_name(SETTINGS))
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    inner.decoder = decoders.ByteLevel()
    for token in special_tokens(settings):
        if inner.token_to_id(token) is not None:
            inner.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    return str(inner.to_str())


def special_tokens(settings: Mapping[str, Any]) -> list[str]:
    """Names of special tokens that a tokenizer may have: those it names, and the usual ones."""
    named = [token_in(settings, name) for name in NAMED]
    usual = [token for names in SPECIAL.values() for token in names]
    return list(dict.fromkeys([*(token for token in named if token), *usual, *KNOWN_ENDS, "<unk>"]))
