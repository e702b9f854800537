"""Tokenizers in SentencePiece's way, special tokens of families, added tokens, GPT-2's own files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.families import FAMILIES
from llmtrain.data.inspect import SAMPLE, inspect_tokenizer
from llmtrain.data.prepare import prepare
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.tokenizer_build import TOKENIZERS, file_tokenizer
from llmtrain.schema.data import TextData
from llmtrain.schema.tokenizer import (
    BPETokenizer,
    Family,
    FileTokenizer,
    TrainedTokenizer,
    UnigramTokenizer,
    WordPieceTokenizer,
)
from llmtrain.utils.errors import DataError
from tests.helpers.paths import SHARED_DATA

GPT2 = SHARED_DATA / "tokenizers/gpt2"
TEXT = "The cat sat on the mat,\nand the dog\n\n  ran   away in 1999: naïve café! " * 40


def texts() -> Iterator[str]:
    for start in range(0, len(TEXT), 500):
        yield TEXT[start : start + 500]


def train(config: TrainedTokenizer) -> Tokenizer:
    made = TOKENIZERS[type(config)](config, texts())
    return Tokenizer.from_json(made.to_json(), kind=config.kind)


def kinds() -> list[TrainedTokenizer]:
    return [UnigramTokenizer(vocab_size=320), BPETokenizer(vocab_size=330, byte_fallback=True)]


TRAINED = {config.kind: train(config) for config in kinds()}


@pytest.mark.parametrize("kind", TRAINED)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\u2581")))
@settings(max_examples=60, deadline=None)
def test_every_text_comes_back(kind: str, text: str) -> None:
    tokenizer = TRAINED[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.count_bytes(ids) == len(text.encode())
    assert not set(ids.tolist()) & tokenizer.special_ids.keys()


@pytest.mark.parametrize("kind", TRAINED)
@given(
    st.lists(
        st.sampled_from(["the ", "cat", "\n", " ", "\n\n", "  ", "né", "犬", "</s>", "<0x41>", "."]),
        max_size=60,
    )
)
@settings(max_examples=60, deadline=None)
def test_long_texts_are_cut_where_it_changes_nothing(kind: str, parts: list[str]) -> None:
    tokenizer = TRAINED[kind]
    assert tokenizer.cuttable
    text = "".join(parts) * 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmtrain.data.pieces.PIECE", 7)
        pieces = list(tokenizer.cut([text]))
    joined = [i for piece in pieces for i in tokenizer.inner.encode(piece, add_special_tokens=False).ids]
    assert joined == tokenizer.inner.encode(text, add_special_tokens=False).ids


def test_the_same_text_gives_the_same_pieces() -> None:
    for config in kinds():
        assert train(config).to_json() == TRAINED[config.kind].to_json()
        assert TRAINED[config.kind].vocab_size <= config.vocab_size
    learned = TRAINED["unigram"].inner.get_vocab(with_added_tokens=False)
    assert any(len(piece) > 2 and not piece.startswith("<") for piece in learned)
    assert TRAINED["bpe"].inner.encode("the cat").tokens == ["the", "▁cat"]


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("make", [BPETokenizer, UnigramTokenizer])
def test_special_tokens_of_families(make: type, family: Family) -> None:
    config = make(vocab_size=340, family=family, special_tokens=["<|sep|>"], added_tokens=["café"])
    tokenizer = train(config)
    known = FAMILIES[family]
    assert tokenizer.end_token == known.end
    assert set(tokenizer.special_ids.values()) >= {*known.tokens, "<|sep|>"}
    assert tokenizer.vocab_size <= 340
    assert (tokenizer.mask_id is not None) == config.masks == (family in (Family.bert, Family.roberta))
    spelled = "".join(known.tokens) + "<|sep|>"
    ids = tokenizer.encode(spelled).tolist()
    assert not set(ids) & tokenizer.special_ids.keys()
    assert tokenizer.decode(ids) == spelled
    added = tokenizer.inner.token_to_id("café")
    assert tokenizer.encode("a café, cafés").tolist().count(added) == 2
    assert tokenizer.cuttable
    if config.masks:
        framed = tokenizer.inner.encode("a", "b").ids
        assert framed[0] == tokenizer.cls_id
        assert framed.count(tokenizer.sep_id) == 2


def test_added_tokens_that_hold_blanks_are_not_cut() -> None:
    config = BPETokenizer(vocab_size=300, added_tokens=["the mat"])
    assert not train(config).cuttable
    wordpiece = train(WordPieceTokenizer(vocab_size=80, special_tokens=["[USER]"]))
    assert wordpiece.inner.token_to_id("[USER]") in wordpiece.special_ids


def test_too_small_a_vocabulary() -> None:
    with pytest.raises(ValueError, match=r"vocab_size: must be above 258 \(256 bytes"):
        BPETokenizer(vocab_size=258, added_tokens=["x"])
    many = "".join(map(chr, range(0x4E00, 0x5200)))
    for config in (UnigramTokenizer(vocab_size=300), BPETokenizer(vocab_size=300, byte_fallback=True)):
        tokenizer = TOKENIZERS[type(config)](config, iter([many]))
        assert tokenizer.vocab_size <= 300
        assert tokenizer.decode(tokenizer.encode(many)) == many


def test_their_settings_go_with_the_store(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    data = TextData(paths=[str(tmp_path / "a.txt")])
    prepared = prepare(data, UnigramTokenizer(vocab_size=300), seed=0, cache=tmp_path / "cache")
    files = prepared.tokenizer.files()
    told = json.loads(files["tokenizer_config.json"])
    assert told == {"bos_token": "<s>", "unk_token": "<unk>", "eos_token": "</s>"}
    assert prepared.report.round_trip == 1.0
    transformers = pytest.importorskip("transformers")
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token == "</s>"
    assert theirs.decode(theirs("the cat\nsat 犬")["input_ids"]) == "the cat\nsat 犬"
    lowered = prepare(data, WordPieceTokenizer(vocab_size=80), seed=0, cache=tmp_path / "cache").report
    assert lowered.round_trip == 0.0
    assert "comes back as" in lowered.examples["round trip"][0]


@pytest.mark.skipif(not GPT2.is_dir(), reason="GPT-2's files are not there")
@pytest.mark.parametrize("name", ["", "encoder.json", "vocab.bpe"])
def test_gpt2_files(name: str) -> None:
    tokenizer = file_tokenizer(FileTokenizer(path=str(GPT2 / name)))
    assert (tokenizer.vocab_size, tokenizer.end_token, tokenizer.end_id) == (50257, "<|endoftext|>", 50256)
    published = {
        "Hello world": [15496, 995],
        "Hello, my dog is cute": [15496, 11, 616, 3290, 318, 13779],
        "Replace me by any text you'd like.": [3041, 5372, 502, 416, 597, 2420, 345, 1549, 588, 13],
    }
    for text, ids in published.items():
        assert tokenizer.encode(text).tolist() == ids
    assert tokenizer.cuttable
    assert tokenizer.byte_exact


@pytest.mark.skipif(not GPT2.is_dir(), reason="GPT-2's files are not there")
def test_gpt2_files_as_transformers_reads_them(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.json").write_bytes((GPT2 / "encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((GPT2 / "vocab.bpe").read_bytes())
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    ours = file_tokenizer(FileTokenizer(path=str(tmp_path)))
    text = f"{SAMPLE}\n\n\tdef f(x):  return x**2  # 'they're'\r\n\u3000ﬁ \u200b 1\U0001f468\u200d\U0001f469"
    assert ours.encode(text).tolist() == theirs(text)["input_ids"]
    assert ours.decode(ours.encode(text)) == text


def test_broken_files(tmp_path: Path) -> None:
    (tmp_path / "encoder.json").write_text('{"a": 0}')
    with pytest.raises(DataError, match=r"cannot be read: .*vocab\.bpe"):
        file_tokenizer(FileTokenizer(path=str(tmp_path)))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nx y\n")
    with pytest.raises(DataError, match="no tokenizer of GPT-2's kind"):
        file_tokenizer(FileTokenizer(path=str(tmp_path)))
    (tmp_path / "encoder.json").unlink()
    (tmp_path / "vocab.bpe").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(DataError, match="save_pretrained"):
        file_tokenizer(FileTokenizer(path=str(tmp_path)))


def test_inspection() -> None:
    told = inspect_tokenizer(TRAINED["unigram"])
    assert "Unigram, " in told
    assert "</s> = " in told
    assert "gives back the same text" in told
    assert isinstance(TRAINED["bpe"].continues_word, np.ndarray)
