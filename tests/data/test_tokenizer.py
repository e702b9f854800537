from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from llmtrain.data import pieces
from llmtrain.data.recognise import UNKNOWN, byte_vocab
from llmtrain.data.tokenizer import END, Tokenizer
from llmtrain.data.tokenizer_build import bpe_tokenizer, bytes_tokenizer, characters_tokenizer, file_tokenizer
from llmtrain.schema.tokenizer import BPETokenizer, BytesTokenizer, CharactersTokenizer, FileTokenizer
from llmtrain.utils.errors import DataError

SAMPLE = (
    "The quick brown fox, isn't it?  We'll see\r\n\r\n\tin 1984 \u2028 ... "
    "你好。世界 语言模型 \U0001f600\U0001f680 "
    "héllo wörld\0 <|endoftext|> end of text \ufeff naïve \u00a0 x\u0301 "
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200) | st.text(
    st.sampled_from(list(" \n\r\t'sdlrevm.a1é你\u00a0\u2028\u3000\x1f\x85\u200b\U0001f600")), max_size=200
)
SETTINGS = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return bpe_tokenizer(BPETokenizer(vocab_size=400), iter([SAMPLE * 20]))


@pytest.fixture(scope="module")
def byte_tokenizer() -> Tokenizer:
    return bytes_tokenizer(BytesTokenizer())


def characters(text: str) -> Tokenizer:
    return characters_tokenizer(CharactersTokenizer(), iter([text]))


def by_library(made: Tokenizer, text: str) -> list[int]:
    """The ids that the tokenizer.json alone gives."""
    inner = tokenizers.Tokenizer.from_str(made.to_json())
    inner.encode_special_tokens = True
    return inner.encode(text, add_special_tokens=False).ids


@SETTINGS
@given(TEXT)
def test_bytes_round_trip_and_equal_the_file(byte_tokenizer: Tokenizer, text: str) -> None:
    ids = byte_tokenizer.encode(text)
    assert ids.tolist() == list(text.encode())
    assert ids.tolist() == by_library(byte_tokenizer, text)
    assert byte_tokenizer.decode(np.append(ids, byte_tokenizer.end_id)) == text
    assert byte_tokenizer.count_bytes(ids) == len(text.encode())


@SETTINGS
@given(TEXT, TEXT)
def test_characters_round_trip_and_equal_the_file(known: str, text: str) -> None:
    made = characters(known + "a")
    ids = made.encode(text)
    assert ids.tolist() == by_library(made, text)
    expected = "".join(c if c in known + "a" else UNKNOWN for c in text)
    assert made.decode(ids) == expected
    assert made.decode(made.encode(known)) == known
    assert made.count_bytes(made.encode(known)) == len(known.encode())


@SETTINGS
@given(TEXT)
def test_bpe_round_trips(bpe: Tokenizer, text: str) -> None:
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert bpe.end_id not in ids
    assert bpe.count_bytes(ids) == len(text.encode())


@SETTINGS
@given(st.lists(TEXT, max_size=8))
def test_bpe_in_pieces_gives_the_ids_of_the_whole(bpe: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", 3)
        cut = list(bpe.cut(parts))
        assert "".join(cut) == text
        joined = [i for piece in cut for i in by_library(bpe, piece)]
        assert joined == by_library(bpe, text)
        assert bpe.encode(text).tolist() == joined


@SETTINGS
@given(st.lists(TEXT, max_size=8))
def test_characters_in_pieces_give_the_ids_of_the_whole(byte_tokenizer: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    made = characters(text[::2] + "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", 3)
        for each in (byte_tokenizer, made):
            cut = list(each.cut(parts))
            assert "".join(cut) == text
            assert all(len(piece) == 3 for piece in cut[:-1])
            whole = each.encode_batch([text])[0]
            assert np.concatenate(each.encode_batch(cut)).tolist() == whole.tolist()


def test_long_documents_are_really_cut(bpe: Tokenizer) -> None:
    text = "word and word\n" * 5000
    cut = list(bpe.cut([text]))
    assert len(cut) > 5
    assert max(map(len, cut)) < 2 * pieces.PIECE


def test_without_a_safe_place_nothing_is_cut(bpe: Tokenizer) -> None:
    text = "你好。世界" * 10_000 + "  \n\n  " * 1000
    assert list(bpe.cut([text[:7], text[7:30_000], text[30_000:]])) == [text]


def test_gpt2_in_pieces(shared_data, tmp_path) -> None:
    folder = shared_data / "tokenizers" / "gpt2"
    inner = tokenizers.Tokenizer(
        models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.add_special_tokens([END])
    inner.save(str(tmp_path / "tokenizer.json"))
    made = file_tokenizer(FileTokenizer(path=str(tmp_path)))
    assert (made.kind, made.vocab_size, made.end_id, made.cuttable) == ("file", 50257, 50256, True)
    text = (shared_data / "text/wikitext-2/valid.txt").read_text(encoding="utf-8")[:200_000]
    assert len(list(made.cut([text]))) > 10
    assert made.encode(text).tolist() == inner.encode(text).ids


def test_special_tokens_in_text_stay_text(bpe: Tokenizer, byte_tokenizer: Tokenizer) -> None:
    for made in (bpe, byte_tokenizer, characters(SAMPLE)):
        ids = made.encode(f"a{END}b")
        assert made.end_id not in ids
        assert made.decode(ids) == f"a{END}b"


def test_vocabularies() -> None:
    made = characters("banana")
    assert [made.encode(c)[0] for c in "abn"] == [0, 1, 2]
    assert (made.unknown_id, made.end_id, made.vocab_size) == (3, 4, 5)
    assert made.dtype == np.uint16
    made = bytes_tokenizer(BytesTokenizer())
    assert (made.unknown_id, made.end_id, made.vocab_size) == (None, 256, 257)
    made = bpe_tokenizer(BPETokenizer(vocab_size=300), iter([SAMPLE * 9]))
    assert made.vocab_size == 300


def test_json_keeps_everything(bpe: Tokenizer, byte_tokenizer: Tokenizer) -> None:
    for made in (bpe, byte_tokenizer, characters(SAMPLE)):
        again = Tokenizer.from_json(made.to_json())
        assert again.sha256 == made.sha256
        assert again.kind == ("file" if made.kind == "bpe" else made.kind)
        assert again.end_id == made.end_id
        assert again.encode(SAMPLE).tolist() == made.encode(SAMPLE).tolist()


def test_bpe_training_is_deterministic_and_bounded() -> None:
    config = BPETokenizer(vocab_size=320, train_bytes=len(SAMPLE.encode()) * 5)
    first = bpe_tokenizer(config, iter([SAMPLE] * 5))
    cut = bpe_tokenizer(config, iter([SAMPLE * 5, "zzzzzz " * 100_000]))
    again = bpe_tokenizer(config, iter([SAMPLE] * 5))
    assert first.to_json() == again.to_json()
    assert "zz" not in json.loads(cut.to_json())["model"]["vocab"]


def test_what_makes_ids_random_or_short_is_switched_off(bpe: Tokenizer) -> None:
    settings = json.loads(bpe.to_json())
    settings["model"]["dropout"] = 0.5
    settings["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    made = Tokenizer.from_json(json.dumps(settings))
    assert made.encode(SAMPLE).tolist() == bpe.encode(SAMPLE).tolist()


def test_file_tokenizers_that_may_reach_over_a_cut_are_left_whole(bpe: Tokenizer) -> None:
    settings = json.loads(bpe.to_json())
    settings["normalizer"] = {"type": "NFC"}
    assert not Tokenizer.from_json(json.dumps(settings)).cuttable
    settings = json.loads(bpe.to_json())
    settings["pre_tokenizer"]["add_prefix_space"] = True
    assert not Tokenizer.from_json(json.dumps(settings)).cuttable


def test_file_errors(tmp_path) -> None:
    with pytest.raises(DataError, match="no tokenizer file is named"):
        file_tokenizer(FileTokenizer())
    with pytest.raises(DataError, match="cannot be read"):
        file_tokenizer(FileTokenizer(path=str(tmp_path)))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        file_tokenizer(FileTokenizer(path=str(tmp_path)))
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0, "[X]": 1}, unk_token="a"))
    inner.add_special_tokens(["[X]"])
    inner.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="none of the usual tokens") as caught:
        file_tokenizer(FileTokenizer(path=str(tmp_path)))
    assert "[X]" in str(caught.value)
    with pytest.raises(DataError, match="no token '</s>'"):
        file_tokenizer(FileTokenizer(path=str(tmp_path), end_token="</s>"))
    assert file_tokenizer(FileTokenizer(path=str(tmp_path), end_token="[X]")).end_id == 1


def test_the_end_token_is_kept_beside_the_file(tmp_path) -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0, "[X]": 1, "</s>": 2}, unk_token="a"))
    made = Tokenizer(inner, kind="file", end_token="[X]")
    assert made.unusual_end == "[X]"
    for name, text in made.files().items():
        (tmp_path / name).write_text(text)
    again = file_tokenizer(FileTokenizer(path=str(tmp_path)))
    assert (again.end_token, again.sha256) == ("[X]", made.sha256)
    assert file_tokenizer(FileTokenizer(path=str(tmp_path), end_token="</s>")).unusual_end is None
    text = made.to_json()
    for told, end in (
        ({"eos_token": {"content": "[X]", "lstrip": False}}, "[X]"),
        ({"eos_token": "<of another tokenizer>"}, "</s>"),
        ({"eos_token": None}, "</s>"),
        ({}, "</s>"),
    ):
        assert Tokenizer.from_json(text, settings=told).end_token == end
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match="no JSON object"):
        file_tokenizer(FileTokenizer(path=str(tmp_path)))


def test_byte_vocabulary_is_that_of_the_library() -> None:
    assert set(byte_vocab()) == set(pre_tokenizers.ByteLevel.alphabet())


def test_other_tools_read_our_files(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.json").write_text(bytes_tokenizer(BytesTokenizer()).to_json())
    loaded = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert loaded("né").input_ids == list("né".encode())
