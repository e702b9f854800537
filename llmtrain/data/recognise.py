"""What a tokenizer of the tokenizers library is, read off its settings."""

from __future__ import annotations

import json
from typing import Any

import tokenizers
from tokenizers import models

from llmtrain.data.metaspace import is_metaspace

UNKNOWN = "\ufffd"
"""Stands for every character that a characters tokenizer does not know: Unicode's own replacement."""


def special_tokens(inner: tokenizers.Tokenizer) -> str:
    """The special tokens of a tokenizer, for an error message."""
    names = [token.content for token in inner.get_added_tokens_decoder().values()]
    return f" (it has {', '.join(names[:12])}{' ...' if len(names) > 12 else ''})" if names else ""


def _state(part: Any) -> dict[str, Any]:
    """The settings of a normalizer, pre-tokenizer or decoder, as in tokenizer.json."""
    return {} if part is None else json.loads(part.__getstate__())


def splits_like_gpt2_or_bert(inner: tokenizers.Tokenizer) -> bool:
    """Whether words are split as GPT-2 or BERT do: nothing reaches across a line end or blank there."""
    normalizer, splitter = _state(inner.normalizer), _state(inner.pre_tokenizer)
    gpt2 = {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}
    like_gpt2 = not normalizer and gpt2.items() <= splitter.items()
    like_bert = normalizer.get("type") == "BertNormalizer" and splitter.get("type") == "BertPreTokenizer"
    return (like_gpt2 or like_bert or is_metaspace(inner)) and all(
        token.special or _stands_alone(token) for token in inner.get_added_tokens_decoder().values()
    )


def _stands_alone(token: tokenizers.AddedToken) -> bool:
    """Whether an added token is found in a text whatever stands around it, and no blank parts it."""
    looks_around = token.lstrip or token.rstrip or token.single_word or token.normalized
    return not looks_around and not any(map(str.isspace, token.content))


def recognise(inner: tokenizers.Tokenizer) -> str:
    """Kind of a tokenizer of ours that was read from a file."""
    if not isinstance(inner.model, models.BPE) or inner.normalizer is not None:
        return "file"
    vocab = inner.get_vocab(with_added_tokens=False)
    only_bytes = vocab == byte_vocab() and len(inner.get_added_tokens_decoder()) == 1
    if only_bytes and _state(inner.pre_tokenizer).get("use_regex") is False:
        return "bytes"
    single = all(len(token) == 1 for token in vocab)
    if single and inner.pre_tokenizer is None and inner.model.unk_token == UNKNOWN:
        return "characters"
    return "file"


def byte_vocab() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte -> the byte.

    Printable Latin-1 characters stand for themselves, the other bytes, in order, for U+0100 onwards.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    names = {chr(byte): byte for byte in printable}
    return names | {chr(256 + i): byte for i, byte in enumerate(others)}
