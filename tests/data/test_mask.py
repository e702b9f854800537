from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.batch import IGNORE
from llmtrain.data.mask import Masker
from llmtrain.data.samples import Frame, PackedRow, Sample, pack_batch
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.schema.objective import Masking, MLMConfig
from llmtrain.utils.errors import ConfigError
from tests.helpers.text import word_tokenizer

LENGTH = 128
TOKENIZER = word_tokenizer()
SPECIAL = set(range(5))


def masker(length: int = LENGTH, *, seed: int = 3, tokenizer: Tokenizer = TOKENIZER, **keys) -> Masker:
    return Masker(MLMConfig(**keys), tokenizer, sequence_length=length, seed=seed)


def sample(rng: np.random.Generator, number: int, length: int = LENGTH) -> Sample:
    """Random tokens in a frame, some of them unknown; a third continue a word."""
    ids = rng.integers(5, 75, length)
    ids = np.where(rng.random(length) < 0.33, rng.integers(75, 78, length), ids)
    ids[rng.random(length) < 0.02] = TOKENIZER.unknown_id
    ids[[0, length // 2, -1]] = TOKENIZER.cls_id, TOKENIZER.sep_id, TOKENIZER.sep_id
    return Sample(ids, np.zeros(length, np.int64), number)


def full_rows(num: int, epoch: int = 0) -> list[PackedRow]:
    rng = np.random.default_rng(0)
    return [PackedRow([sample(rng, i)], epoch) for i in range(num)]


def words_of(ids: np.ndarray) -> np.ndarray:
    """Number of the word that each token belongs to; special tokens are words of their own."""
    continues = TOKENIZER.continues_word[ids]
    special = np.isin(ids, list(SPECIAL))
    starts = ~continues | special | np.append(True, special[:-1])
    return np.cumsum(starts) - 1


def within(share: float, expected: float, num: int, deviations: float = 4.5) -> bool:
    """Whether a share of `num` draws is as expected, up to so many standard deviations."""
    return abs(share - expected) < deviations * math.sqrt(expected * (1 - expected) / num)


@pytest.mark.parametrize("masking", list(Masking))
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_rates(masking: Masking, rate: float) -> None:
    rows = full_rows(600)
    chosen = masker(masking=masking, mask_rate=rate)
    chosen.num_selected = LENGTH  # none is given up
    maskable = taken = masked = random = kept = 0
    replaced: list[int] = []
    for row in rows:
        ids = row.samples[0].ids
        places, inputs = chosen.mask_row(row)
        assert places.tolist() == sorted(set(places.tolist()))
        assert not set(ids[places].tolist()) & SPECIAL
        maskable += int((ids >= 5).sum())
        taken += len(places)
        masked += int((inputs == TOKENIZER.mask_id).sum())
        kept += int((inputs == ids[places]).sum())
        changed = inputs[(inputs != TOKENIZER.mask_id) & (inputs != ids[places])]
        random += len(changed)
        replaced += changed.tolist()
    assert abs(taken / maskable - rate) < 0.004
    assert masked + random + kept == taken
    num = taken / 4 if masking is Masking.spans else taken  # spans are replaced as a whole
    assert within(masked / taken, 0.8, num)
    # a random token is the original one in a vocabulary's size of cases
    same = 1 / len(TOKENIZER.ordinary_ids)
    assert within(random / taken, 0.1 * (1 - same), num)
    assert within(kept / taken, 0.1 * (1 + same), num)
    assert not set(replaced) & SPECIAL
    counts = np.bincount(replaced, minlength=TOKENIZER.vocab_size)[5:]
    expected = len(replaced) / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < len(counts) + 6 * math.sqrt(2 * len(counts))


def test_numbers_are_rounded_up_or_down_by_chance() -> None:
    chosen = masker()
    for row in full_rows(200):
        exact = 0.15 * int((row.samples[0].ids >= 5).sum())
        assert len(chosen.mask_row(row)[0]) in (math.floor(exact), math.ceil(exact))


def test_every_place_is_as_likely() -> None:
    chosen = masker()
    ids = np.full(LENGTH, 7)
    ids[[0, -1]] = TOKENIZER.cls_id, TOKENIZER.sep_id
    num = 3000
    counts = np.zeros(LENGTH)
    for i in range(num):
        counts[chosen.mask_row(PackedRow([Sample(ids, np.zeros(LENGTH, np.int64), i)]))[0]] += 1
    inner = counts[1:-1] / num
    assert abs(inner - 0.15).max() < 4.5 * math.sqrt(0.15 * 0.85 / num)


def test_words_are_masked_whole() -> None:
    chosen = masker(masking=Masking.words)
    for row in full_rows(300):
        ids = row.samples[0].ids
        places, _ = chosen.mask_row(row)
        word = words_of(ids)
        assert np.isin(word, word[places]).sum() == len(places)


def test_spans_are_runs_of_whole_words() -> None:
    chosen = masker(masking=Masking.spans, span_limit=4, span_rate=0.2)
    rng = np.random.default_rng(0)
    seen: list[int] = []
    for row in full_rows(500):
        one = row.samples[0]
        places, span = chosen._choose(one, rng)
        word = words_of(one.ids)
        for number in np.unique(span):
            own = places[span == number]
            assert own.tolist() == list(range(own[0], own[-1] + 1))  # nothing left out, no special token
            words = np.unique(word[own])
            assert np.isin(np.flatnonzero(np.isin(word, words)), own).all()
            assert len(words) <= 4
            seen.append(len(words))
    shares = np.bincount(seen, minlength=5)[1:] / len(seen)
    assert shares[0] > shares[1] > shares[2]  # geometric, but for what runs into others or the budget
    assert shares[3] > 0.05


def test_long_spans_have_the_mean_of_the_paper() -> None:
    chosen = masker(length=10_000, masking=Masking.spans)
    ids = np.full(10_000, 7)
    _, span = chosen._choose(Sample(ids, ids, 0), np.random.default_rng(1))
    lengths = np.bincount(span)
    assert 3.3 < lengths.mean() < 4.1  # 3.8 in Joshi et al. (2020), less where spans run into each other
    assert lengths.max() <= 10


def test_a_span_is_replaced_as_a_whole() -> None:
    chosen = masker(masking=Masking.spans, replace_rate=0.5, random_rate=0.0)
    rng = np.random.default_rng(0)
    for row in full_rows(50):
        ids = row.samples[0].ids
        places, span = chosen._choose(row.samples[0], rng)
        masked = chosen._replace(ids[places], span, rng) == TOKENIZER.mask_id
        assert all(masked[span == number].all() or not masked[span == number].any() for number in set(span))


def test_chinese_words_from_a_list(tmp_path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("一二\n三四五\n", encoding="utf-8")
    text = "一二三四五六七。一二六三四五"
    ids, segments = Frame(TOKENIZER).join(TOKENIZER.encode(text))
    assert len(ids) == len(text) + 2
    words = [(1, 3), (3, 6), (9, 11), (12, 15)]
    for masking in (Masking.words, Masking.spans):
        chosen = masker(masking=masking, word_list=str(path), mask_rate=0.3)
        hits = 0
        for number in range(200):
            places = set(chosen.mask_row(PackedRow([Sample(ids, segments, number)]))[0].tolist())
            for start, end in words:
                own = places & set(range(start, end))
                assert len(own) in (0, end - start)
                hits += bool(own)
        assert hits > 100
    alone = masker(masking=Masking.words, mask_rate=0.1)
    assert len(alone.mask_row(PackedRow([Sample(ids, segments, 1)]))[0]) in (1, 2)
    with pytest.raises(ConfigError, match="word list cannot be read"):
        masker(masking=Masking.words, word_list=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="word_list: is only used"):
        masker(word_list=str(path))


def test_masks_depend_on_seed_epoch_and_sample_only() -> None:
    rng = np.random.default_rng(0)
    samples = [sample(rng, i, 30) for i in range(4)]
    for masking in Masking:
        chosen = masker(masking=masking)
        together = chosen.mask_row(PackedRow(samples, epoch=2))
        alone = [chosen.mask_row(PackedRow([one], epoch=2)) for one in samples]
        assert together[0].tolist() == [p + 30 * k for k, (places, _) in enumerate(alone) for p in places]
        assert together[1].tolist() == [x for _, inputs in alone for x in inputs]
        again = masker(masking=masking).mask_row(PackedRow(samples, epoch=2))
        assert again[0].tolist() == together[0].tolist()
        for other in (
            chosen.mask_row(PackedRow(samples, epoch=3)),
            masker(masking=masking, seed=4).mask_row(PackedRow(samples, epoch=2)),
            chosen.mask_row(PackedRow([Sample(s.ids, s.segments, s.number + 9) for s in samples], 2)),
        ):
            assert other[0].tolist() != together[0].tolist()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=6),
    st.sampled_from(list(Masking)),
    st.sampled_from([0.05, 0.15, 0.5, 0.9]),
    st.integers(0, 1000),
)
def test_batches(lengths: list[int], masking: Masking, rate: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [sample(rng, i, length) for i, length in enumerate(lengths)]
    total = sum(lengths)
    rows = [PackedRow(samples, 1), PackedRow(), PackedRow(samples[:1], 1)]
    chosen = masker(total, masking=masking, mask_rate=rate)
    batch = pack_batch(rows, total, 0, max_samples=6)
    before = batch.ids.numpy().copy()
    chosen(batch, rows)
    after, places, labels = batch.ids.numpy(), batch.selected.numpy(), batch.labels.numpy()
    assert places.shape == labels.shape == (3, chosen.num_selected)
    for i in range(3):
        used = labels[i] != IGNORE
        num = int(used.sum())
        assert used[:num].all()
        assert places[i, :num].tolist() == sorted(set(places[i, :num].tolist()))
        assert not places[i, num:].any()
        assert labels[i, :num].tolist() == before[i, places[i, :num]].tolist()
        untouched = np.ones(total, bool)
        untouched[places[i, :num]] = False
        assert (before[i][untouched] == after[i][untouched]).all()
    assert (labels[1] == IGNORE).all()
    possible = [(one.ids >= 5).any() for one in samples]
    assert (labels[2] != IGNORE).any() == possible[0]  # at least one token of a sample


def test_too_many_labels_are_given_up_at_random() -> None:
    rng = np.random.default_rng(0)
    samples = [sample(rng, i, 8) for i in range(16)]
    for masking in (Masking.tokens, Masking.words):
        chosen = masker(masking=masking, mask_rate=0.05)  # one of each sample at least
        counts = np.zeros(16)
        for epoch in range(400):
            row = PackedRow(samples, epoch)
            places, inputs = chosen.mask_row(row)
            assert len(places) == len(inputs) <= chosen.num_selected < 16
            counts[np.unique(places // 8)] += 1
        assert counts.max() < 2 * counts.min()


def test_masking_is_fast() -> None:
    rows = full_rows(64)
    for masking in Masking:
        chosen = masker(masking=masking)
        batches = [pack_batch(rows, LENGTH, 0) for _ in range(9)]
        seconds = []
        for batch in batches:
            start = time.process_time()
            chosen(batch, rows)
            seconds.append(time.process_time() - start)
        assert sorted(seconds)[2] < 0.015
