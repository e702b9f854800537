"""Making tokenizers: a builder for each kind of the configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from llmtrain.data import gpt2, metaspace, wordpiece
from llmtrain.data.families import FAMILIES, add_tokens
from llmtrain.data.recognise import UNKNOWN, byte_vocab
from llmtrain.data.tokenizer import END, Tokenizer
from llmtrain.data.tokenizer_settings import GENERATION, SETTINGS, read_generation, read_settings
from llmtrain.schema.tokenizer import (
    BPETokenizer,
    BytesTokenizer,
    CharactersTokenizer,
    FileTokenizer,
    TokenizerConfig,
    UnigramTokenizer,
    WordPieceTokenizer,
)
from llmtrain.utils.errors import DataError


def _finish(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    inner.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return inner


def bytes_tokenizer(config: BytesTokenizer) -> Tokenizer:
    """Ids are the bytes of UTF-8; 256 ends a document."""
    inner = tokenizers.Tokenizer(models.BPE(vocab=byte_vocab(), merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return Tokenizer(_finish(inner), kind="bytes")


def characters_tokenizer(config: CharactersTokenizer, texts: Iterator[str]) -> Tokenizer:
    """Ids are the ranks of the distinct characters; then the unknown character, then the end."""
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    tokens = [*sorted(seen - {UNKNOWN}), UNKNOWN]
    vocab = {token: i for i, token in enumerate(tokens)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=UNKNOWN, fuse_unk=False))
    inner.decoder = decoders.Fuse()
    return Tokenizer(_finish(inner), kind="characters")


def bpe_tokenizer(config: BPETokenizer, texts: Iterator[str]) -> Tokenizer:
    """BPE, trained on the first `train_bytes` of the text; the same text, the same merges."""
    family, kept = FAMILIES[config.family], first_bytes(texts, config.train_bytes)
    if config.byte_fallback:
        return Tokenizer(metaspace.train_bpe(kept, config), kind="bpe", end_token=family.end)
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - len(config.added_tokens),
        min_frequency=config.min_frequency,
        special_tokens=[*family.tokens, *config.special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(kept, trainer)
    add_tokens(inner, [], config.added_tokens)
    family.frame(inner)
    return Tokenizer(inner, kind="bpe", end_token=family.end)


def unigram_tokenizer(config: UnigramTokenizer, texts: Iterator[str]) -> Tokenizer:
    """Unigram, trained on the first `train_bytes` of the text; the same text, the same pieces."""
    inner = metaspace.train_unigram(first_bytes(texts, config.train_bytes), config)
    return Tokenizer(inner, kind="unigram", end_token=FAMILIES[config.family].end)


def special_settings(config: TokenizerConfig) -> dict[str, str]:
    """What `tokenizer_config.json` says of the special tokens of a trained tokenizer, but for the end."""
    family = getattr(config, "family", None)
    return {} if family is None else dict(FAMILIES[family].named)


def wordpiece_tokenizer(config: WordPieceTokenizer, texts: Iterator[str]) -> Tokenizer:
    """WordPiece, trained on the first `train_bytes` of the text; the same text, the same pieces."""
    inner = wordpiece.train(
        first_bytes(texts, config.train_bytes),
        vocab_size=config.vocab_size - len(config.special_tokens) - len(config.added_tokens),
        lowercase=config.lowercase,
        min_frequency=config.min_frequency,
    )
    add_tokens(inner, config.special_tokens, config.added_tokens)
    return Tokenizer(inner, kind="wordpiece", end_token=wordpiece.SEP)


def file_tokenizer(config: FileTokenizer) -> Tokenizer:
    """A tokenizer.json, GPT-2's two files or BERT's vocab.txt, or those in a folder.

    Raises:
        DataError: there is none, or it cannot be used.
    """
    if config.path is None:
        raise DataError(
            "no tokenizer file is named",
            "tokenizer.path",
            "set tokenizer.path=<tokenizer.json, encoder.json, vocab.txt or a folder with one of them>",
        )
    path = Path(config.path).expanduser()
    if path.is_dir():
        names = ("tokenizer.json", *gpt2.PAIRS, "vocab.txt")
        path = path / next((name for name in names if (path / name).exists()), "tokenizer.json")
    try:
        if path.name in gpt2.PAIRS:
            return gpt2_tokenizer(path, config)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fix = "give a tokenizer.json, encoder.json with vocab.bpe, vocab.txt or a folder with one of them"
        if (path.parent / "tokenizer.model").exists():
            fix = "write the tokenizer.model as tokenizer.json first: AutoTokenizer.from_pretrained(FOLDER)"
            fix += ".save_pretrained(FOLDER) of transformers"
        raise DataError(
            f"the tokenizer cannot be read: {error}", f"tokenizer.path={config.path}", fix
        ) from error
    if path.suffix != ".txt":
        settings = read_settings(path.with_name(SETTINGS))
        generation = read_generation(path.parent) if path.with_name(GENERATION).exists() else {}
        return Tokenizer.from_json(text, end_token=config.end_token, settings=settings, generation=generation)
    inner = wordpiece.from_vocab(wordpiece.read_vocab(text), **wordpiece.settings(path, config.lowercase))
    return Tokenizer(inner, kind="file", end_token=config.end_token or wordpiece.SEP)


def gpt2_tokenizer(path: Path, config: FileTokenizer) -> Tokenizer:
    """GPT-2's tokenizer from its two files, of which one is named."""
    inner = gpt2.read(path)
    settings = read_settings(path.with_name(SETTINGS))
    return Tokenizer.from_json(inner.to_str(), end_token=config.end_token, settings=settings)


def first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Texts until their UTF-8 reaches `limit` bytes; the last one is cut at a character."""
    for text in texts:
        size = len(text) if text.isascii() else len(text.encode())
        if size >= limit:
            yield text.encode()[:limit].decode("utf-8", errors="ignore")
            return
        limit -= size
        yield text


@dataclass(frozen=True)
class Trained:
    """A builder that learns from text; what it learns is cached by content.

    Attributes:
        train: makes the tokenizer from its config and the training text in pieces.
        per_character: every character becomes one token, so that no more characters need be read than
            `data.max_tokens`.
    """

    train: Callable[[Any, Iterator[str]], Tokenizer]
    per_character: bool = False

    def __call__(self, config: Any, texts: Iterator[str]) -> Tokenizer:
        return self.train(config, texts)


TOKENIZERS: dict[type, Callable[..., Tokenizer]] = {
    BytesTokenizer: bytes_tokenizer,
    CharactersTokenizer: Trained(characters_tokenizer, per_character=True),
    BPETokenizer: Trained(bpe_tokenizer),
    UnigramTokenizer: Trained(unigram_tokenizer),
    WordPieceTokenizer: Trained(wordpiece_tokenizer),
    FileTokenizer: file_tokenizer,
}
"""Builder of each kind: `builder(config)`, or `Trained`: `builder(config, texts)`."""
