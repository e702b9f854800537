from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data import pieces, wordpiece
from llmtrain.data.prepare import prepare
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.tokenizer_build import bpe_tokenizer, bytes_tokenizer, file_tokenizer, wordpiece_tokenizer
from llmtrain.schema.data import TextData
from llmtrain.schema.tokenizer import BPETokenizer, BytesTokenizer, FileTokenizer, WordPieceTokenizer
from llmtrain.utils.errors import DataError

SAMPLE = (
    "The quick brown foxes, isn't it?  We'll be seeing\r\n\r\n\tit in 1984 ... unbelievable!\n"
    "你好。世界 语言模型 \U0001f600 héllo wörld naïve Straße ΑΣ ǅ İ \0 x\u0301y \u00a0 \ufeff [SEP] [mask] "
    "\u200b end."
)
ODD = list(" \n\r\t'sdTHE.-[]a1éÉ你Σ\u00a0\u2028\u3000\x1f\x85\u200b\u0301\ufffd\U0001f600")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200) | st.text(
    st.sampled_from(ODD), max_size=200
)
SETTINGS = settings(max_examples=150, deadline=None)


def trained(text: str = SAMPLE * 20, **keys) -> Tokenizer:
    return wordpiece_tokenizer(WordPieceTokenizer(**{"vocab_size": 400, **keys}), iter([text]))


def tokens(made: Tokenizer, text: str) -> list[str]:
    return [made.inner.id_to_token(i) for i in made.encode(text).tolist()]


@pytest.fixture(scope="module")
def made() -> Tokenizer:
    return trained()


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def pair(request, tmp_path_factory):
    """Our tokenizer from a vocab.txt, and that of transformers from the same file."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vocab")
    vocab = trained(lowercase=request.param).inner.get_vocab()
    lines = "".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__))
    (folder / "vocab.txt").write_text(lines, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": request.param}))
    theirs = transformers.BertTokenizerFast.from_pretrained(str(folder))
    return file_tokenizer(FileTokenizer(path=str(folder))), theirs


@SETTINGS
@given(TEXT)
def test_ids_are_those_of_transformers(pair, text: str) -> None:
    ours, theirs = pair
    assert (
        ours.encode(text).tolist()
        == theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
    )


def test_real_text_as_in_transformers(pair, shared_data) -> None:
    ours, theirs = pair
    english = (shared_data / "text/wikitext-2/valid.txt").read_text(encoding="utf-8")[:50_000]
    chinese = (shared_data / "text/zh-hongloumeng/valid.jsonl").read_text(encoding="utf-8")[:20_000]
    for text in (SAMPLE, english, chinese):
        expected = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ours.encode(text).tolist() == expected
    assert ours.inner.encode("a b", "c").ids == theirs("a b", "c").input_ids  # framed, for other tools


@SETTINGS
@given(st.lists(TEXT, max_size=8))
def test_documents_in_pieces_give_the_ids_of_the_whole(made: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    whole = made.inner.encode(text, add_special_tokens=False).ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", 3)
        cut = list(made.cut(parts))
        assert "".join(cut) == text
        assert [i for piece in cut for i in made.inner.encode(piece, add_special_tokens=False).ids] == whole
        assert made.encode(text).tolist() == whole


def test_long_documents_are_really_cut(made: Tokenizer) -> None:
    assert made.cuttable
    assert len(list(made.cut(["word and word\n" * 5000]))) > 5


def test_special_tokens_and_tables(made: Tokenizer) -> None:
    assert [made.pad_id, made.unknown_id, made.cls_id, made.sep_id, made.mask_id] == [0, 1, 2, 3, 4]
    assert (made.kind, made.end_id, made.vocab_size) == ("wordpiece", 3, len(made.inner.get_vocab()))
    assert made.vocab_size <= 400
    assert made.ordinary_ids.tolist() == list(range(5, made.vocab_size))
    for i, continues in enumerate(made.continues_word):
        assert continues == made.inner.id_to_token(i).startswith("##")
    assert made.continues_word.any()
    ids = made.encode("[CLS] a [SEP] [MASK][PAD] [UNK]")
    assert not set(ids.tolist()) & set(range(5))
    assert made.encode("\u2603").tolist() == [made.unknown_id]


def test_readable_text(made: Tokenizer) -> None:
    assert tokens(made, "UNBELIEVABLE") == ["unbelievable"]
    assert made.decode(made.encode("We be seeing it, naïve foxes!")) == "we be seeing it, naive foxes!"
    assert tokens(made, "语言模型x") == ["语", "言", "模", "型", "x"]
    assert tokens(made, "naïve") == ["naive"]
    assert tokens(trained(lowercase=False), "The naïve") == ["The", "naïve"]


def test_offsets_point_into_the_text(made: Tokenizer) -> None:
    text = "Naïve FOXES, 你好!"
    ((ids, places),) = made.encode_offsets([text])
    assert ids.tolist() == made.encode(text).tolist()
    assert [text[start:end] for start, end in places] == ["Naïve", "FOXES", ",", "你", "好", "!"]


def test_ascii_is_always_known() -> None:
    made = trained("word another " * 10)
    text = "x9Z @home #1 {a|b} ~`^ q7zJ"
    assert made.unknown_id not in made.encode(text)
    assert made.decode(made.encode("q7zJ")) == "q7zj"


def test_rare_characters_are_unknown() -> None:
    text = "北 " * 5 + "京"
    made = trained(text)
    assert tokens(made, "北京") == ["北", "[UNK]"]
    assert tokens(trained(text, min_frequency=1), "北京") == ["北", "京"]


def test_half_of_the_vocabulary_at_most_are_characters() -> None:
    text = "".join(chr(0x4E00 + i) * (400 - i) for i in range(390)) + " the then there" * 50
    made = trained(text, vocab_size=400)
    single = [token for token in made.inner.get_vocab() if len(token.removeprefix("##")) == 1]
    assert 199 <= len(single) <= 200
    assert made.vocab_size < 220  # there are no more pairs to merge
    assert made.unknown_id not in made.encode(chr(0x4E00))
    assert made.unknown_id in made.encode(chr(0x4E00 + 389))


def test_training_is_deterministic_and_bounded() -> None:
    text = " ".join(f"{a}{b}{c}" for a in "thequick" for b in "brownfox" for c in "jumpedov") * 3 + SAMPLE * 3
    code = (
        "import sys\n"
        "from llmtrain.data.tokenizer_build import wordpiece_tokenizer\n"
        "from llmtrain.schema.tokenizer import WordPieceTokenizer\n"
        "text = sys.stdin.buffer.read().decode()\n"
        "made = wordpiece_tokenizer(WordPieceTokenizer(vocab_size=500), iter([text[:99], text[99:]]))\n"
        "print(made.sha256)\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], input=text.encode(), capture_output=True, check=True)
        for _ in range(2)
    ]
    expected = trained(text, vocab_size=500).sha256
    assert [run.stdout.decode().strip() for run in runs] == [expected, expected]
    bounded = wordpiece_tokenizer(
        WordPieceTokenizer(vocab_size=500, train_bytes=len(text.encode())), iter([text, "zzzz zzzz " * 1000])
    )
    assert bounded.sha256 == expected


def test_json_keeps_everything(made: Tokenizer) -> None:
    again = Tokenizer.from_json(made.to_json())
    assert again.sha256 == made.sha256
    assert again.cuttable
    assert (again.end_id, again.mask_id, again.unknown_id) == (made.end_id, made.mask_id, made.unknown_id)
    assert again.encode(SAMPLE).tolist() == made.encode(SAMPLE).tolist()
    assert (again.continues_word == made.continues_word).all()


def test_vocab_files(tmp_path) -> None:
    vocab = [*wordpiece.SPECIAL_TOKENS, "a", "A", "\u2028", "é", "e", "##b", "中"]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(vocab) + "\n", encoding="utf-8")
    for given_path in (tmp_path, path):
        made = file_tokenizer(FileTokenizer(path=str(given_path)))
        assert (made.kind, made.vocab_size, made.end_id) == ("file", len(vocab), 3)
        assert tokens(made, "A é ab 中") == ["a", "e", "a", "##b", "中"]
    made = file_tokenizer(FileTokenizer(path=str(path), lowercase=False))
    assert tokens(made, "A é") == ["A", "é"]
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"do_lower_case": false, "tokenize_chinese_chars": false}')
    made = file_tokenizer(FileTokenizer(path=str(tmp_path)))
    assert tokens(made, "A é 中中") == ["A", "é", "[UNK]"]
    config.write_text('{"do_lower_case": true, "strip_accents": false}')
    assert tokens(file_tokenizer(FileTokenizer(path=str(tmp_path))), "A é") == ["a", "é"]
    (tmp_path / "tokenizer.json").write_text(bytes_tokenizer(BytesTokenizer()).to_json())
    assert file_tokenizer(FileTokenizer(path=str(tmp_path))).kind == "bytes"


def test_vocab_file_errors(tmp_path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\na\n")
    with pytest.raises(DataError, match=r"has no \[PAD\], \[SEP\], \[MASK\]"):
        file_tokenizer(FileTokenizer(path=str(tmp_path)))
    (tmp_path / "vocab.txt").write_text("\n".join(wordpiece.SPECIAL_TOKENS))
    for text in ("{", "[]"):
        (tmp_path / "tokenizer_config.json").write_text(text)
        with pytest.raises(DataError, match="settings of the tokenizer") as caught:
            file_tokenizer(FileTokenizer(path=str(tmp_path)))
        assert "tokenizer_config.json" in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        file_tokenizer(FileTokenizer(path=str(tmp_path / "none.txt")))


def test_pieces_of_other_tokenizers_that_continue_a_word() -> None:
    bpe = bpe_tokenizer(BPETokenizer(vocab_size=400), iter([SAMPLE * 20]))
    ids = bpe.encode(" the quicker, isn't\n")
    words = np.split(ids, np.flatnonzero(~bpe.continues_word[ids])[1:])
    assert [bpe.decode(word) for word in words] == [" the", " quicker", ",", " isn", "'t", "\n"]
    assert not bytes_tokenizer(BytesTokenizer()).continues_word.any()


def test_preparing_with_wordpiece(tmp_path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"{SAMPLE} {i} \u2603"}) + "\n" for i in range(9)))
    prepared = prepare(
        TextData(paths=[str(path)], validation_fraction=0),
        WordPieceTokenizer(vocab_size=300),
        seed=0,
        cache=tmp_path / "cache",
    )
    store = prepared.train.store
    assert store.tokenizer.sha256 == prepared.tokenizer.sha256
    ids = store.read(0, store.num_tokens)
    assert np.flatnonzero(ids == prepared.tokenizer.sep_id).tolist() == (store.ends - 1).tolist()
    assert prepared.report.unknown == int((ids == prepared.tokenizer.unknown_id).sum())
