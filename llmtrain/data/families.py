"""Special tokens of model families, and how they are put into a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tokenizers
from tokenizers import AddedToken, processors

from llmtrain.schema.tokenizer import Family


@dataclass(frozen=True)
class Specials:
    """The special tokens of a family.

    Attributes:
        tokens: all, in the order of their ids.
        end: the one that ends a document.
        unknown: the one for what has no token, or None.
        named: by the names of `tokenizer_config.json`.
    """

    tokens: tuple[str, ...]
    end: str
    unknown: str | None
    named: Mapping[str, str]

    def frame(self, inner: tokenizers.Tokenizer) -> None:
        """Let other tools put an encoder's special tokens around a text, as ours does."""
        if "cls_token" not in self.named:
            return
        first, last = self.named["cls_token"], self.named["sep_token"]
        inner.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=[(token, inner.token_to_id(token)) for token in (first, last)],
        )


def _encoder(tokens: Sequence[str], **named: str) -> Specials:
    return Specials(
        tuple(tokens), named["sep"], named["unk"], {f"{name}_token": token for name, token in named.items()}
    )


_GPT = "<|endoftext|>"

FAMILIES: dict[Family, Specials] = {
    Family.gpt: Specials((_GPT,), _GPT, None, {}),
    Family.chatml: Specials((_GPT, "<|im_start|>", "<|im_end|>"), _GPT, None, {}),
    Family.llama: Specials(
        ("<unk>", "<s>", "</s>"), "</s>", "<unk>", {"bos_token": "<s>", "unk_token": "<unk>"}
    ),
    Family.bert: _encoder(
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        pad="[PAD]",
        unk="[UNK]",
        cls="[CLS]",
        sep="[SEP]",
        mask="[MASK]",
    ),
    Family.roberta: _encoder(
        ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
        pad="<pad>",
        unk="<unk>",
        cls="<s>",
        sep="</s>",
        mask="<mask>",
    ),
}
"""Special tokens of each family."""


def add_tokens(inner: tokenizers.Tokenizer, special: Sequence[str], added: Sequence[str]) -> None:
    """Add special tokens and ordinary ones; those that the vocabulary has keep their ids."""
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    inner.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
