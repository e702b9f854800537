"""Text that grows token by token is the text of all tokens."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.tokenizer_build import bpe_tokenizer, bytes_tokenizer, characters_tokenizer
from llmtrain.generate.stream import TextStream
from llmtrain.schema.tokenizer import BPETokenizer, BytesTokenizer, CharactersTokenizer

WORDS = "the quick brown fox isn't here: 你好 世界 \U0001f600\U0001f680 héllo\n\n"


def like_llama() -> Tokenizer:
    """Pieces with a mark for blanks, and bytes for what has no piece, as SentencePiece's models have."""
    vocab = {"<unk>": 0, "</s>": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    for piece in ["▁", *"theqik", "▁the", "▁qui", "ck"]:
        vocab.setdefault(piece, len(vocab))
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens(["</s>"])
    return Tokenizer.from_json(inner.to_str())


TOKENIZERS = {
    "bytes": bytes_tokenizer(BytesTokenizer()),
    "characters": characters_tokenizer(CharactersTokenizer(), iter([WORDS])),
    "bpe": bpe_tokenizer(BPETokenizer(vocab_size=300), iter([WORDS * 9])),
    "llama": like_llama(),
}


def pieces_of(stream: TextStream, ids: list[int]) -> list[str]:
    pieces = []
    for token in ids:
        stream.add(token)
        pieces.append(stream.take())
        if stream.stopped:
            break
    return [*pieces, stream.close()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_pieces_are_the_text(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    random = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=120)
    written = st.text(st.sampled_from(WORDS), max_size=60).map(lambda text: tokenizer.encode(text).tolist())
    ids = data.draw(random | written)
    stream = TextStream(tokenizer)
    pieces = pieces_of(stream, ids)
    assert "".join(pieces) == stream.text
    # Of bytes that are no text Llama's decoder spoils the whole stretch; what is shown may be better.
    if kind != "llama" or "\ufffd" not in tokenizer.decode(ids):
        assert stream.text == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["bytes", "bpe", "llama"])
def test_characters_come_whole(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    text = "世界 \U0001f680 the"
    ids = tokenizer.encode(text).tolist()
    pieces = pieces_of(TextStream(tokenizer), ids)
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    if kind == "bytes":
        assert pieces[:4] == ["", "", "世", ""]


def test_blanks_after_the_context_are_kept() -> None:
    tokenizer = TOKENIZERS["llama"]
    context, *rest = (tokenizer.inner.token_to_id(piece) for piece in ("▁the", "▁qui", "ck"))
    stream = TextStream(tokenizer, [context])
    assert "".join(pieces_of(stream, rest)) == " quick"
    assert "".join(pieces_of(TextStream(tokenizer), rest)) == "quick"


@settings(max_examples=80, deadline=None)
@given(
    st.text("abc", max_size=40),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_the_first_stop(text: str, stops: list[str]) -> None:
    tokenizer = TOKENIZERS["bytes"]
    stream = TextStream(tokenizer, stops=stops)
    shown = ""
    for token in tokenizer.encode(text).tolist():
        stream.add(token)
        shown += stream.take()
        assert not any(stop in shown for stop in stops)
        if stream.stopped:
            break
    shown += stream.close()
    # the stop that is complete first; of several that end at one place the one that starts first
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert shown == (text[: min(ends)[1]] if ends else text)
    assert stream.stopped == bool(ends)
