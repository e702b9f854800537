"""GPT-2's tokenizer from its two files: the tokens with their ids, and the merges in their order."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from llmtrain.data.families import FAMILIES, add_tokens
from llmtrain.utils.errors import DataError

PAIRS = {
    "encoder.json": "vocab.bpe",
    "vocab.json": "merges.txt",
    "vocab.bpe": "encoder.json",
    "merges.txt": "vocab.json",
}
"""Each of the files and the other one: by OpenAI's names, and by those of Hugging Face."""


def read(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a file and the other one beside it.

    Raises:
        DataError: one of them is not what it should be.
        OSError: one of them cannot be read.
    """
    other = path.with_name(PAIRS[path.name])
    tokens, merges = (path, other) if path.suffix == ".json" else (other, path)
    try:
        vocab: dict[str, int] = json.loads(tokens.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").split("\n")
        pairs = [(first, second) for first, second in (line.split(" ") for line in _merges(lines))]
        model = models.BPE(vocab=vocab, merges=pairs)
    except OSError:
        raise
    except Exception as error:  # the library raises plain Exception
        what = f"{tokens.name} and {merges.name} are no tokenizer of GPT-2's kind: {error}"
        raise DataError(what, str(tokens), "give the two files of one model") from error
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    known = (token for family in FAMILIES.values() for token in family.tokens)
    add_tokens(inner, [token for token in dict.fromkeys(known) if token in vocab], [])
    return inner


def _merges(lines: list[str]) -> list[str]:
    """Lines that hold a merge: not the first, which may tell the version, and not empty ones."""
    first = 1 if lines[0].startswith("#version") else 0
    return [line for line in lines[first:] if line]
