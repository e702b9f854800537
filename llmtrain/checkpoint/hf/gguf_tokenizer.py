"""The tokenizer inside a GGUF file, as a tokenizer of the tokenizers library: byte-level BPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from llmtrain.data.tokenizer import Tokenizer
from llmtrain.utils.errors import ConfigError, DataError

PREFIX = "tokenizer.ggml."

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens: special ones, and text that is always one token."""

NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
"""Name in `tokenizer_config.json` -> key that tells the id."""

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 cuts text into words: like GPT-4, digits in threes."""

QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
"""How Qwen2 cuts text into words: each digit by itself."""


def _gpt2(inner: tokenizers.Tokenizer) -> None:
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)


def _single_digits(inner: tokenizers.Tokenizer) -> None:
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _llama3(inner: tokenizers.Tokenizer) -> None:
    inner.model.ignore_merges = True
    inner.pre_tokenizer = _by_words(LLAMA3_WORDS)


def _qwen2(inner: tokenizers.Tokenizer) -> None:
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = _by_words(QWEN2_WORDS)


def _by_words(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


KINDS = {"gpt-2": _gpt2, "smollm": _single_digits, "llama-bpe": _llama3, "qwen2": _qwen2}
"""`tokenizer.ggml.pre`: how text is cut before pairs are merged."""


def read_tokenizer(values: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer that the metadata of a file describe.

    Args:
        values: metadata by key.
        where: they come from.

    Raises:
        ConfigError: it is of a kind that is not known.
        DataError: it is broken.
    """
    told = {key.removeprefix(PREFIX): value for key, value in values.items() if key.startswith(PREFIX)}
    kind, words = told.get("model"), told.get("pre")
    if kind != "gpt2" or words not in KINDS:
        what = f"tokenizers of kind {kind}" + (f" that cut words like {words}" if kind == "gpt2" else "")
        raise ConfigError(
            f"{what} cannot be read from a GGUF file",
            where,
            f"known are gpt2 with {', '.join(KINDS)}; else convert the original model, which has a "
            "tokenizer.json",
        )
    tokens, merges, types = (told.get(key) for key in ("tokens", "merges", "token_type"))
    if not isinstance(tokens, list) or not isinstance(merges, list):
        raise DataError("the file has no tokens and merges", where, "get the file again")
    types = types if isinstance(types, list) and len(types) == len(tokens) else [1] * len(tokens)
    vocab = {token: number for number, token in enumerate(tokens)}
    try:
        pairs = [tuple(merge.split(" ", 1)) for merge in merges]
        inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"the tokenizer is broken: {error}", where, "get the file again") from error
    KINDS[words](inner)
    inner.decoder = decoders.ByteLevel()
    for token, of in zip(tokens, types, strict=True):
        if of in (CONTROL, USER_DEFINED):
            special = of == CONTROL
            added = AddedToken(token, special=special, normalized=False)
            (inner.add_special_tokens if special else inner.add_tokens)([added])
    settings = {name: tokens[told[key]] for name, key in NAMED.items() if known_id(told.get(key), tokens)}
    settings |= {"add_bos_token": bool(told.get("add_bos_token", False))}
    if settings["add_bos_token"] and "bos_token" in settings:
        inner.post_processor = start_with(settings["bos_token"], told["bos_token_id"])
    if isinstance(template := values.get("tokenizer.chat_template"), str):
        settings["chat_template"] = template
    ends = [told[key] for key in ("eos_token_id", "eot_token_id") if known_id(told.get(key), tokens)]
    generation = {"eos_token_id": sorted(set(ends))} if ends else {}
    return Tokenizer.from_json(inner.to_str(), settings=settings, generation=generation)


def known_id(value: Any, tokens: list[str]) -> bool:
    """Whether a value is the id of a token."""
    return isinstance(value, int) and 0 <= value < len(tokens)


def start_with(token: str, number: int) -> Any:
    """What puts a token before every text."""
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B:1", special_tokens=[(token, number)]
    )
