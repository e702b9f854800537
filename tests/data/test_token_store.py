from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtrain.data.store import DamagedStore, TokenStore, View, split, whole
from llmtrain.data.tokenizer_build import bpe_tokenizer, characters_tokenizer
from llmtrain.schema.tokenizer import BPETokenizer, CharactersTokenizer

TEXTS = ["first", "zwölf \U0001f600", "x" * 50, "a", "last one"]


def decoded(view: View) -> list[str]:
    decode = view.store.tokenizer.decode
    return [decode(view.read(int(a), int(b))) for a, b in zip(*view.spans, strict=True)]


@pytest.mark.parametrize("shard_tokens", [1 << 20, 7, 1])
def test_a_store_holds_the_documents(make_store, shard_tokens: int) -> None:
    store = make_store(TEXTS, shard_tokens=shard_tokens)
    sizes = [len(text.encode()) for text in TEXTS]
    assert store.num_documents == len(TEXTS)
    assert store.num_tokens == sum(sizes) + len(TEXTS)
    assert store.bytes.tolist() == sizes
    assert store.ends.tolist() == np.cumsum(np.array(sizes) + 1).tolist()
    assert len(store.manifest["shards"]) == -(-store.num_tokens // shard_tokens)
    assert decoded(whole(store)) == TEXTS
    everything = store.read(0, store.num_tokens)
    assert everything[store.ends - 1].tolist() == [256] * len(TEXTS)
    places = np.array([0, 5, 3, store.num_tokens - 1, 6, 7, 8])
    assert store.gather(places).tolist() == everything[places].tolist()
    assert store.read(3, 3).tolist() == []
    store.verify()


def test_big_vocabularies_take_four_bytes(make_store) -> None:
    text = "".join(map(chr, range(0x4E00, 0x9000))) + "".join(map(chr, range(0x10000, 0x20000)))
    tokenizer = characters_tokenizer(CharactersTokenizer(), iter([text]))
    store = make_store([text], tokenizer=tokenizer)
    assert store.manifest["dtype"] == "uint32"
    assert decoded(whole(store)) == [text]


@pytest.mark.parametrize("limit", range(1, 20))
def test_max_tokens_is_exact(make_store, limit: int) -> None:
    store = make_store(["abc", "defg", "hij", "klm"], max_tokens=limit)
    full = make_store(["abc", "defg", "hij", "klm"])
    kept = min(limit, full.num_tokens)
    assert store.num_tokens == kept
    assert store.read(0, kept).tolist() == full.read(0, kept).tolist()
    assert int(store.ends[-1]) == kept
    assert store.bytes.sum() == store.manifest["bytes"] == (full.read(0, kept) != 256).sum()


def test_damage_is_noticed(make_store) -> None:
    store = make_store(TEXTS, shard_tokens=30)
    shard = store.path / "shard-00001.bin"
    content = shard.read_bytes()
    shard.write_bytes(b"\0" * len(content))
    with pytest.raises(DamagedStore, match="has changed"):
        TokenStore.open(store.path).verify()
    shard.write_bytes(content[:-2])
    with pytest.raises(DamagedStore, match="bytes"):
        TokenStore.open(store.path)
    shard.write_bytes(content)
    np.save(store.path / "ends.npy", store.ends[:-1])
    with pytest.raises(DamagedStore):
        TokenStore.open(store.path)
    with pytest.raises(DamagedStore):
        TokenStore.open(store.path / "nowhere")


def test_split_of_one_document_is_nanogpts(make_store) -> None:
    for num, fraction in [(1000, 0.1), (997, 0.1), (10, 0.05), (2, 0.5)]:
        text = "".join(chr(97 + i % 26) for i in range(num))
        train, validation = split(make_store([text]), fraction, seed=3)
        border = int(num * (1 - fraction))
        assert decoded(train) == [text[:border]]
        assert validation is not None
        assert decoded(validation) == [text[border:]]
        assert (train.num_bytes, validation.num_bytes) == (border, num - border)
        assert validation.num_tokens == num - border


def test_split_by_documents(make_store) -> None:
    store = make_store([f"document {i} " + "x" * (i % 17) for i in range(300)])
    train, validation = split(store, 0.1, seed=1)
    assert validation is not None
    assert sorted(decoded(train) + decoded(validation)) == sorted(decoded(whole(store)))
    assert 0.095 * store.num_tokens < validation.num_tokens <= 0.1 * store.num_tokens
    assert (np.diff(validation.starts) > 0).all()
    again = split(store, 0.1, seed=1)[1]
    other = split(store, 0.1, seed=2)[1]
    assert again is not None
    assert other is not None
    assert decoded(again) == decoded(validation) != decoded(other)
    assert again.key == validation.key != other.key


def test_split_of_a_few_big_documents_takes_the_end(make_store) -> None:
    texts = ["a" * 100, "b" * 100, "c" * 100]
    store = make_store(texts)
    train, validation = split(store, 0.1, seed=0)
    assert validation is not None
    border = int(303 * 0.9)
    assert decoded(train) == ["a" * 100, "b" * 100, "c" * (border - 202)]
    assert decoded(validation) == ["c" * (302 - border)]
    assert train.num_tokens + validation.num_tokens == 303
    train, validation = split(store, 0.0, seed=0)
    assert validation is None
    assert train.num_tokens == 303
    assert split(make_store(["a"]), 0.01, seed=0)[1] is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text("aé你\U0001f600 \n", min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=12
    ),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 5),
)
def test_a_split_keeps_every_token_and_byte(make_store, texts, fraction, seed) -> None:
    tokenizer = bpe_tokenizer(BPETokenizer(vocab_size=270), iter(["aaé你\U0001f600 aé " * 5]))
    store = make_store(texts, tokenizer=tokenizer)
    train, validation = split(store, fraction, seed)
    views = [view for view in (train, validation) if view is not None]
    positions = np.concatenate([np.arange(a, b) for view in views for a, b in zip(*view.spans, strict=True)])
    left_out = set(range(store.num_tokens)) - set(positions.tolist())
    assert len(positions) == len(set(positions.tolist()))
    assert left_out <= ({store.num_tokens - 1} if len(texts) == 1 else set())
    assert sum(view.num_bytes for view in views) == sum(len(text.encode()) for text in texts)
    assert sum(view.num_tokens for view in views) == len(positions)
