"""`Tokenizer`: text to ids and back, with the end-of-document id that the token store needs.

Every kind is a `tokenizer.json` of the Hugging Face tokenizers library, so that exported models work in
other tools. Text is always text: a special token spelled out in a document is encoded letter by letter
and never becomes the special id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, pre_tokenizers

from llmtrain.data import pieces
from llmtrain.data.metaspace import is_metaspace, token_bytes
from llmtrain.data.pieces import any_border, word_border
from llmtrain.data.recognise import (
    recognise,
    special_tokens,
    splits_like_gpt2_or_bert,
)
from llmtrain.data.tokenizer_settings import TokenizerSettings, token_in
from llmtrain.data.word_table import WordTable
from llmtrain.data.words import continuations
from llmtrain.utils.errors import DataError

END = "<|endoftext|>"
"""Token that ends a document in the tokenizers that we make."""

KNOWN_ENDS = (END, "</s>", "<eos>", "<|end_of_text|>", "<|eos|>", "<|im_end|>", "[SEP]", "[EOS]")
"""End tokens that are looked for in a foreign tokenizer.json, in this order."""

SPECIAL = {
    "cls_id": ("[CLS]", "<cls>", "<s>"),
    "sep_id": ("[SEP]", "<sep>", "</s>"),
    "mask_id": ("[MASK]", "<mask>"),
    "pad_id": ("[PAD]", "<pad>"),
}
"""Special tokens and the names that they go by."""


TABLE_FROM = 1 << 16
"""Characters from which on ids are looked up by words; fewer have few words twice."""


class Tokenizer:
    """Text to token ids and back.

    Args:
        inner: the tokenizer of the tokenizers library; truncation, padding and BPE dropout are switched
            off in it, for ids must depend on nothing but the text.
        kind: bytes, characters, bpe, wordpiece or file. The first two promise ids that their fast paths
            rely upon.
        end_token: the token that ends a document.
        settings: what else is known about it, and kept with it.

    Attributes:
        vocab_size: highest id plus one.
        end_id: id that ends a document; `encode` never gives it.
        unknown_id: id of what the tokenizer does not know, or None where nothing is unknown.
        cls_id, sep_id, mask_id, pad_id: ids of the tokens that frame a text, stand for a masked token and
            fill a row; None where the tokenizer has no such token.
        dtype: uint16 where every id fits, else uint32.
        cuttable: whether a long document may be cut without changing any id, see `cut`.

    Raises:
        DataError: the tokenizer has no such end token.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        kind: str,
        end_token: str = END,
        settings: TokenizerSettings | None = None,
    ) -> None:
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True
        if getattr(inner.model, "dropout", None):
            inner.model.dropout = None
        end_id = inner.token_to_id(end_token)
        if end_id is None:
            raise DataError(
                f"the tokenizer has no token {end_token!r} to end a document with",
                "tokenizer.end_token",
                "set tokenizer.end_token to one of its tokens" + special_tokens(inner),
            )
        self.inner = inner
        self.kind = kind
        self.end_token = end_token
        self.settings = settings or TokenizerSettings()
        self.end_id: int = end_id
        self.vocab_size: int = max(inner.get_vocab(with_added_tokens=True).values()) + 1
        self.dtype: np.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        unknown = getattr(inner.model, "unk_token", None)
        self.unknown_id: int | None = None if unknown is None else inner.token_to_id(unknown)
        self.cls_id, self.sep_id, self.mask_id, self.pad_id = (
            next((i for i in map(inner.token_to_id, names) if i is not None), None)
            for names in SPECIAL.values()
        )
        self.cuttable = kind in ("bytes", "characters") or splits_like_gpt2_or_bert(inner)

    @classmethod
    def from_json(
        cls,
        text: str,
        *,
        end_token: str | None = None,
        settings: Mapping[str, Any] | None = None,
        generation: Mapping[str, Any] | None = None,
        kind: str | None = None,
    ) -> Tokenizer:
        """A tokenizer from the text of a `tokenizer.json`.

        Args:
            text: content of the file.
            end_token: the token that ends a document; default: what the settings say if it has such a
                token, else the first of `KNOWN_ENDS` that it has.
            settings: content of the `tokenizer_config.json` beside the file.
            generation: content of the `generation_config.json` beside it.
            kind: default: recognised from the content (bytes, characters, else file).

        Raises:
            DataError: the text is no tokenizer, or has no known end token.
        """
        try:
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise DataError(
                f"not a tokenizer.json: {error}", "tokenizer", "give the tokenizer.json of a tokenizers model"
            ) from error
        if end_token is None:
            ends = (token_in(settings or {}, "eos_token"), *KNOWN_ENDS)
            end_token = next((end for end in ends if end and inner.token_to_id(end) is not None), None)
        if end_token is None:
            raise DataError(
                f"the tokenizer has none of the usual tokens to end a document with: {', '.join(KNOWN_ENDS)}",
                "tokenizer.end_token",
                "set tokenizer.end_token to one of its tokens" + special_tokens(inner),
            )
        told = TokenizerSettings(dict(settings or {}), dict(generation or {}))
        return cls(inner, kind=kind or recognise(inner), end_token=end_token, settings=told)

    @property
    def fill_id(self) -> int:
        """Id of the token that fills rows; which one is of no matter, since nothing looks at it."""
        return self.end_id if self.pad_id is None else self.pad_id

    def to_json(self) -> str:
        """Content of a `tokenizer.json`."""
        return self.inner.to_str(pretty=False)

    @property
    def unusual_end(self) -> str | None:
        """The end token, if the first of `KNOWN_ENDS` that the tokenizer has is another one."""
        usual = next((end for end in KNOWN_ENDS if self.inner.token_to_id(end) is not None), None)
        return None if usual == self.end_token else self.end_token

    def files(self) -> dict[str, str]:
        """Content of the files that a tokenizer is kept in, by name."""
        return {"tokenizer.json": self.to_json(), **self.settings.files(self.end_token)}

    @property
    def chat_template(self) -> str | None:
        """How conversations become text, in Jinja; None where nobody has said."""
        return self.settings.chat_template

    @property
    def named_tokens(self) -> dict[str, str]:
        """Special tokens by the names that chat templates know them by."""
        return {**self.settings.named, "eos_token": self.end_token}

    @cached_property
    def special_ids(self) -> dict[int, str]:
        """Special tokens by their ids."""
        added = self.inner.get_added_tokens_decoder().items()
        return {i: token.content for i, token in added if token.special}

    @property
    def end_ids(self) -> set[int]:
        """Ids after which a model has nothing more to say."""
        return {self.end_id} | {i for i in self.settings.end_ids if i < self.vocab_size}

    @cached_property
    def start_ids(self) -> list[int]:
        """Ids that the tokenizer itself puts before a text, such as that of Llama's `<s>`; encoders, which
        frame a text, are not asked."""
        framed = self.inner.encode("a", add_special_tokens=True).ids
        plain = self.inner.encode("a", add_special_tokens=False).ids
        extra = len(framed) - len(plain)
        return framed[:extra] if framed[extra:] == plain else []

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that the ids depend upon."""
        return hashlib.sha256(f"{self.end_id}\n{self.to_json()}".encode()).hexdigest()

    @cached_property
    def ordinary_ids(self) -> np.ndarray:
        """Ids that stand for text: all but the special tokens and the unknown one, sorted, int64."""
        special = self.special_ids.keys()
        named = {self.end_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id, self.pad_id}
        return np.array(sorted(set(self.inner.get_vocab(True).values()) - special - named), np.int64)

    @cached_property
    def continues_word(self) -> np.ndarray:
        """Which ids are pieces that continue a word, (V,) bool; none where a piece does not show it."""
        if self.kind in ("bytes", "characters"):
            return np.zeros(self.vocab_size, bool)
        return continuations(self.inner, self.vocab_size)

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, (n,) of `dtype`, without any special token.

        Raises:
            UnicodeEncodeError: the text has half of a surrogate pair, which is no character.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, in parallel on all cores; see `encode`."""
        if self.kind == "bytes":
            return [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in texts]
        if self.kind == "characters":
            return [self._look_up(text) for text in texts]
        if self._table is None or sum(map(len, texts)) < TABLE_FROM:
            return self._encode_pieces(texts)
        raws = [text.encode() for text in texts]
        suits = [self._table.suits(text, len(raw)) for text, raw in zip(texts, raws, strict=True)]
        by_table = iter(self._table.encode([raw for raw, yes in zip(raws, suits, strict=True) if yes]))
        others = iter(self._encode_pieces([text for text, yes in zip(texts, suits, strict=True) if not yes]))
        return [next(by_table if yes else others) for yes in suits]

    def _encode_pieces(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text by the tokenizers library."""
        cuts = [list(self.cut([text])) for text in texts]
        flat = [piece for parts in cuts for piece in parts]
        encoded = iter(self.inner.encode_batch_fast(flat, add_special_tokens=False))
        result = []
        for parts in cuts:
            ids = [np.array(next(encoded).ids, dtype=self.dtype) for _ in parts]
            result.append(ids[0] if len(ids) == 1 else np.concatenate(ids))
        return result

    def encode_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids of each text, (n,) int64, and where each token stands in it, (n, 2) int64 characters."""
        encodings = self.inner.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.array(one.ids, np.int64), np.array(one.offsets, np.int64).reshape(-1, 2)) for one in encodings
        ]

    def encode_marked(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """As `encode_offsets` of one text; but special tokens spelled out in it become their ids."""
        encoding = self._marked.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, np.int64), np.array(encoding.offsets, np.int64).reshape(-1, 2)

    @cached_property
    def _marked(self) -> tokenizers.Tokenizer:
        """A copy that sees special tokens in text, and counts blanks to the tokens that they belong to."""
        marked = tokenizers.Tokenizer.from_str(self.to_json())
        marked.post_processor = None  # which may trim offsets, and adds nothing that is wanted
        return marked

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """Text of ids; end tokens are left out, a character cut in half shows as U+FFFD."""
        kept = np.asarray(ids, dtype=np.int64)
        kept = kept[kept != self.end_id]
        if self.kind == "bytes":
            return kept.astype(np.uint8).tobytes().decode("utf-8", errors="replace")
        return self.inner.decode(kept.tolist(), skip_special_tokens=False)

    @cached_property
    def _table(self) -> WordTable | None:
        """Words and their ids; None where it is not known which places part words."""
        if not self.cuttable or self.kind in ("bytes", "characters"):
            return None
        added = any(not token.special for token in self.inner.get_added_tokens_decoder().values())

        def encode(words: list[str]) -> list[list[int]]:
            return [one.ids for one in self.inner.encode_batch_fast(words, add_special_tokens=False)]

        words_only = added or is_metaspace(self.inner)
        bert = isinstance(self.inner.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        return WordTable(encode, self.dtype, digits_apart=not bert, words_only=words_only)

    @property
    def byte_exact(self) -> bool:
        """Whether each id stands for a fixed number of bytes, so that counts of parts add up."""
        return self._bytes_of_token is not None

    def count_bytes(self, ids: np.ndarray) -> int:
        """Bytes of UTF-8 that ids stand for; exact for byte-level tokenizers even within a character."""
        if self._bytes_of_token is not None:
            return int(self._bytes_of_token[ids].sum())
        return len(self.decode(ids).encode("utf-8", errors="replace"))

    def cut(self, parts: Iterable[str]) -> Iterator[str]:
        """Cut one document, given in any parts, into pieces whose ids joined are those of the whole.

        The whole document comes as one piece where no place is known to be safe. At least one piece.
        """
        if not self.cuttable:
            return iter(["".join(parts)])
        return pieces.cut(parts, any_border if self.kind in ("bytes", "characters") else word_border)

    def _look_up(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        return self._id_of_code[np.minimum(codes, len(self._id_of_code) - 1)]

    @cached_property
    def _id_of_code(self) -> np.ndarray:
        """Id of each code point; the last entry, beyond all known characters, is unknown."""
        known = {ord(token): i for token, i in self.inner.get_vocab(False).items() if len(token) == 1}
        table = np.full(max(known) + 2, self.unknown_id, dtype=self.dtype)
        table[list(known)] = list(known.values())
        return table

    @cached_property
    def _bytes_of_token(self) -> np.ndarray | None:
        """Bytes of text behind each id, (V,) int64, or None where tokens have no fixed length."""
        byte_level = isinstance(self.inner.decoder, decoders.ByteLevel) and self.inner.normalizer is None
        marked = is_metaspace(self.inner)
        if not byte_level and not marked and self.kind != "characters":
            return None
        table = np.zeros(self.vocab_size, dtype=np.int64)
        for token, i in self.inner.get_vocab(with_added_tokens=False).items():
            table[i] = len(token) if byte_level else token_bytes(token) if marked else len(token.encode())
        for i, added in self.inner.get_added_tokens_decoder().items():
            table[i] = 0 if i == self.end_id else len(added.content.encode())
        return table
