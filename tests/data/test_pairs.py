from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy import stats

from llmtrain.data import pairs, plans, wordpiece
from llmtrain.data.mask import Masker
from llmtrain.data.pairs import FOLLOWS, PART, RANDOM, PairRows
from llmtrain.data.sentences import GAP, Places
from llmtrain.data.spans import Contents
from llmtrain.data.store import View, split, whole
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.schema.objective import MLMNSPConfig
from llmtrain.utils.errors import ConfigError, DataError
from tests.helpers.text import story, word_tokenizer

LENGTH = 64


def pair_rows(view: View, length: int = LENGTH, *, seed: int = 1, shuffle: bool = True, **keys) -> PairRows:
    config = MLMNSPConfig(**keys)
    return PairRows(
        view,
        sequence_length=length,
        seed=seed,
        shuffle=shuffle,
        masker=Masker(config, view.store.tokenizer, sequence_length=length, seed=seed),
        random_next_rate=config.random_next_rate,
        short_rate=config.short_rate,
    )


@pytest.fixture
def books(make_store) -> View:
    """Eight long documents."""
    texts = [story(i, 1500) for i in range(8)]
    return whole(make_store(texts, tokenizer=word_tokenizer(), shard_tokens=30_000))


@pytest.fixture
def notes(make_store) -> View:
    """Short documents, down to a single word and a single long sentence."""
    texts = [story(i, 1 + i * i % 9, longest=5 + i % 30) for i in range(200)]
    texts += ["ba", "be bi", "bo " * 90, "baing " * 300 + ". bo " * 20]
    return whole(make_store(texts, tokenizer=word_tokenizer()))


class Drawn:
    """The pairs of an epoch, as arrays."""

    def __init__(self, rows: PairRows, epoch: int = 0) -> None:
        self.row, self.start, self.middle, self.second, self.end, self.label = rows.plan(epoch).samples
        self.first_length, self.second_length = self.middle - self.start, self.end - self.second
        self.length = self.first_length + self.second_length
        self.random = self.label == RANDOM
        borders = np.asarray(rows.view.store.ends)
        self.document = np.searchsorted(borders, self.start, side="right")
        self.other = np.searchsorted(borders, self.second, side="right")
        self.inside = (borders[self.document] > self.middle - 1) & (borders[self.other] > self.end - 1)


def joined(*parts: Drawn) -> Drawn:
    result = Drawn.__new__(Drawn)
    for name in vars(parts[0]):
        setattr(result, name, np.concatenate([getattr(part, name) for part in parts]))
    return result


@pytest.mark.parametrize("text", ["books", "notes"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_pairs_never_cross_wrongly(text: str, shuffle: bool, request) -> None:
    rows = pair_rows(request.getfixturevalue(text), shuffle=shuffle)
    ids = rows.view.read(0, rows.view.num_tokens)
    continues = rows.view.store.tokenizer.continues_word
    for epoch in (0, 2):
        drawn = Drawn(rows, epoch)
        assert drawn.inside.all()
        assert (drawn.first_length > 0).all()
        assert (drawn.second_length > 0).all()
        assert drawn.length.max() <= rows.size
        follows = ~drawn.random
        assert (drawn.second[follows] == drawn.middle[follows]).all()
        assert (drawn.other[follows] == drawn.document[follows]).all()
        assert (drawn.other[drawn.random] != drawn.document[drawn.random]).all()
        assert not continues[ids[drawn.second]].any()  # never inside a word
        # first segments, and true second ones, are used once; ends of documents are no part of any
        used = np.zeros(len(ids), int)
        for start, end in zip(drawn.start, np.where(follows, drawn.end, drawn.middle), strict=True):
            used[start:end] += 1
        assert used.max() == 1
        assert not used[ids == rows.view.store.end_id].any()


def test_documents_are_covered(books: View) -> None:
    rows = pair_rows(books)
    drawn = Drawn(rows)
    covered = (drawn.first_length + np.where(drawn.random, 0, drawn.second_length)).sum()
    assert covered >= 0.99 * rows.contents.num_tokens
    tokens = (drawn.length + rows.overhead).sum()
    assert tokens / (LENGTH * rows.rows_per_epoch) > 0.97


def test_shares(books: View) -> None:
    rows = pair_rows(books)
    drawn = joined(*(Drawn(rows, epoch) for epoch in range(6)))
    num = len(drawn.label)
    assert num > 10_000
    deviation = math.sqrt(0.25 / num)
    assert abs(drawn.random.mean() - 0.5) < 4.5 * deviation
    # a length is drawn from 16 to the full one, so that one of so many short ones is as long as the others
    short = 0.1 * (1 - 1 / (rows.size - pairs.SHORTEST_DRAWN + 1))
    tails = books.num_documents * 6 * 3 / num  # what is left of a document gives a short pair or a few
    assert short - 4.5 * math.sqrt(0.09 / num) < (drawn.length < rows.size).mean() < short + tails + 0.01
    lengths = drawn.length[(drawn.length < rows.size)]
    assert lengths.min() >= pairs.SHORTEST
    seldom = Drawn(pair_rows(books, random_next_rate=0.2, short_rate=0.0))
    assert abs(seldom.random.mean() - 0.2) < 4.5 * math.sqrt(0.16 / len(seldom.label))
    assert (seldom.length < rows.size).mean() < 0.02


def same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two samples may be of one distribution (Kolmogorov and Smirnov, at one in ten thousand)."""
    return stats.ks_2samp(first, second).pvalue > 1e-4


def test_the_label_shows_in_nothing_but_the_text(books: View) -> None:
    rows = pair_rows(books)
    ids = books.read(0, books.num_tokens)
    tokenizer = books.store.tokenizer
    drawn = joined(*(Drawn(rows, epoch) for epoch in range(6)))
    random, follows = drawn.random, ~drawn.random
    for values in (drawn.first_length, drawn.second_length, drawn.length):
        assert same(values[random], values[follows])
    marks = [i for i in range(tokenizer.vocab_size) if tokenizer.decode([i]) in {".", "!", "?", '"'}]
    features = {
        "a ends a sentence": np.isin(ids[drawn.middle - 1], marks),
        "b starts a sentence": np.isin(ids[drawn.second - 1], marks),
        "a starts in a word": tokenizer.continues_word[ids[drawn.start]],
        "b ends a sentence": np.isin(ids[drawn.end - 1], marks),
        "b ends its document": ids[drawn.end] == books.store.end_id,
        "full": drawn.length == rows.size,
    }
    for name, feature in features.items():
        if 0 < feature.sum() < len(feature):
            table = [[(feature & label).sum(), (~feature & label).sum()] for label in (random, follows)]
            assert stats.chi2_contingency(table).pvalue > 1e-4, name
    assert features["b starts a sentence"].mean() > 0.9
    assert features["b ends its document"].any()
    first_ids = [np.bincount(ids[drawn.second[label]], minlength=80)[5:75] for label in (random, follows)]
    assert stats.chi2_contingency(first_ids).pvalue > 1e-4
    sentence_ends = np.flatnonzero(np.isin(ids, marks))
    left = sentence_ends[np.searchsorted(sentence_ends, drawn.second)] - drawn.second
    assert same(left[random], left[follows])


def test_short_documents_do_not_tell_either(notes: View) -> None:
    rows = pair_rows(notes)
    ids = notes.read(0, notes.num_tokens)
    drawn = joined(*(Drawn(rows, epoch) for epoch in range(10)))
    random, follows = drawn.random, ~drawn.random
    assert same(drawn.first_length[random], drawn.first_length[follows])
    assert abs(drawn.second_length[random].mean() - drawn.second_length[follows].mean()) < 1
    at_end = ids[drawn.end] == notes.store.end_id
    assert at_end.mean() > 0.3
    # few documents are as long as a row, and where none of them will do another one's end is taken
    assert abs(at_end[random].mean() - at_end[follows].mean()) < 0.08
    starts = np.append(0, notes.store.ends[:-1])
    assert not np.isin(drawn.second[random], starts).any()


def test_partners_come_from_all_over(books: View) -> None:
    rows = pair_rows(books)
    drawn = joined(*(Drawn(rows, epoch) for epoch in range(6)))
    lengths = rows.contents.lengths
    for document in range(books.num_documents):
        chosen = drawn.other[drawn.random & (drawn.document == document)]
        counts = np.bincount(chosen, minlength=books.num_documents)
        expected = np.where(np.arange(len(lengths)) == document, 0, lengths) * len(chosen)
        expected = np.delete(expected / (lengths.sum() - lengths[document]), document)
        assert stats.chisquare(np.delete(counts, document), expected).pvalue > 1e-5


def test_samples(books: View) -> None:
    rows = pair_rows(books)
    tokenizer = books.store.tokenizer
    columns = rows.plan(0).samples
    labels = set()
    for i in range(30):
        row = rows.read(i)
        for sample in row.samples:
            _, start, middle, second, end, label = columns[:, sample.number].tolist()
            first, following = books.read(start, middle).tolist(), books.read(second, end).tolist()
            framed = [tokenizer.cls_id, *first, tokenizer.sep_id, *following, tokenizer.sep_id]
            assert sample.ids.tolist() == framed
            assert sample.segments.tolist() == [0] * (len(first) + 2) + [1] * (len(following) + 1)
            assert sample.label == label
            labels.add(label)
    assert labels == {FOLLOWS, RANDOM}
    read = [rows.read(i) for i in range(30)]
    batch = rows.collate([*read, rows.filler()])
    assert batch.sample_labels.shape == (31, 8)
    expected = [[*(s.label for s in row.samples), *[-100] * (8 - len(row.samples))] for row in read]
    assert batch.sample_labels.tolist() == [*expected, [-100] * 8]
    assert (batch.ids.gather(1, batch.first)[batch.sample_labels != -100] == tokenizer.cls_id).all()


def test_pairs_are_drawn_anew_in_each_epoch_and_depend_on_the_seed(books: View) -> None:
    rows, same_rows, other = pair_rows(books), pair_rows(books), pair_rows(books, seed=2)
    assert (rows.plan(3).samples == same_rows.plan(3).samples).all()
    assert rows.plan(0).samples.tolist() != rows.plan(1).samples.tolist()
    assert rows.plan(0).samples.tolist() != other.plan(0).samples.tolist()
    unshuffled = pair_rows(books, shuffle=False)
    assert (unshuffled.plan(0).samples == unshuffled.plan(7).samples).all()
    row, start = unshuffled.plan(0).samples[:2]
    firsts = np.minimum.reduceat(start, np.flatnonzero(np.diff(row, prepend=-1)))
    assert (np.diff(firsts) > 0).all()


def test_only_who_makes_a_plan_looks_for_sentences(books: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "PLAN_FILE_ENTRIES", 1)
    expected = [[s.ids.tolist() for s in pair_rows(books).read(i).samples] for i in range(5)]
    monkeypatch.setattr(pairs, "Places", None)
    assert [[s.ids.tolist() for s in pair_rows(books).read(i).samples] for i in range(5)] == expected


def test_one_document_is_not_enough(make_store) -> None:
    store = make_store([story(0, 500)], tokenizer=word_tokenizer())
    for view in (whole(store), split(store, 0.2, seed=0)[0]):
        with pytest.raises(DataError, match="two documents at least") as caught:
            pair_rows(view)
        assert "data.documents=paragraph" in str(caught.value)


@pytest.mark.parametrize("sentences", [8, 2000])
def test_a_single_document_to_validate_on_is_read_as_several(sentences: int, make_store) -> None:
    store = make_store(["ba", story(0, sentences), ""], tokenizer=word_tokenizer())
    single = View(store, *(border[1:] for border in whole(store).spans))
    assert single.num_documents == 1
    rows = pair_rows(single, shuffle=False)
    assert rows.note is not None
    assert "harder to tell" in rows.note
    sizes = rows.view.lengths
    assert len(sizes) == max(2, single.num_tokens // (PART * LENGTH))
    assert (rows.view.starts[1:] == rows.view.ends[:-1]).all()
    assert (rows.view.starts[0], rows.view.ends[-1]) == (single.starts[0], single.ends[-1])
    assert sizes.max() - sizes.min() <= len(sizes)
    drawn = Drawn(rows)
    part = np.searchsorted(rows.view.ends, drawn.start, side="right")
    other = np.searchsorted(rows.view.ends, drawn.second, side="right")
    assert (drawn.second[~drawn.random] == drawn.middle[~drawn.random]).all()
    assert (other[drawn.random] != part[drawn.random]).all()
    assert (drawn.second[drawn.random] != drawn.middle[drawn.random]).all()
    assert (drawn.middle <= rows.view.ends[part]).all()
    if sentences > 100:
        assert drawn.random.mean() == pytest.approx(0.5, abs=0.06)
        assert drawn.length.sum() > 0.95 * single.num_tokens


def test_two_documents_to_validate_on_stay_as_they_are(books: View, make_store) -> None:
    assert pair_rows(books, shuffle=False).view is books
    assert pair_rows(books, shuffle=False).note is None
    short = whole(make_store(["ba"], tokenizer=word_tokenizer()))
    with pytest.raises(DataError, match="two documents at least"):
        pair_rows(short, shuffle=False)


def test_two_documents_are_enough(make_store) -> None:
    for other in (story(1, 3), "ba", "ba be bi bo bu " * 3):
        rows = pair_rows(whole(make_store([story(0, 300), other], tokenizer=word_tokenizer())))
        drawn = Drawn(rows)
        assert drawn.inside.all()
        assert (drawn.other[drawn.random] != drawn.document[drawn.random]).all()


def test_what_is_too_short(books: View, make_store) -> None:
    with pytest.raises(ConfigError, match="no room for a pair") as caught:
        pair_rows(books, 10)
    assert "at least 11" in str(caught.value)
    assert pair_rows(books, 11).plan(0).num_rows > 100
    for texts in (["ba be", "bi bo"], ["ba" + "ing" * 20] * 3):
        with pytest.raises(DataError, match="no document has 8 tokens"):
            pair_rows(whole(make_store(texts, tokenizer=word_tokenizer())))


def test_plans_are_fast(make_store) -> None:
    text = story(0, 8000)
    view = whole(make_store([text, text], tokenizer=word_tokenizer()))
    rows = pair_rows(view, 128)
    assert view.num_tokens > 200_000
    start = time.process_time()
    rows._make_plan(1)
    assert (time.process_time() - start) / view.num_tokens * 10_000_000 < 2


def places_of(make_store, *texts: str) -> list[tuple[str, bool]]:
    """Text of each document from each place on, up to the next one."""
    store = make_store(texts, tokenizer=word_tokenizer())
    contents = Contents(whole(store))
    found = Places(contents, store.tokenizer)
    ends = np.append(found.every, contents.num_tokens)[1:]
    ends = np.minimum(ends, contents.ends[np.searchsorted(contents.ends, found.every, side="right")])
    return [
        (store.tokenizer.decode(contents.read(start, end)), bool(is_sentence))
        for start, end, is_sentence in zip(found.every, ends, found.is_sentence, strict=True)
    ]


def test_sentences(make_store) -> None:
    found = places_of(make_store, 'ba be. bi bo! "bu ca?" ce. " ci... co cu', "da. de", "di")
    assert found == [
        ('bi bo! "', True),
        ('bu ca? "', True),
        ('ce. "', True),
        ("ci...", True),
        ("co cu", True),
        ("de", True),
    ]
    chinese = [("三 四 。 \u201d", True), ("五 六 。", True), ("七", True)]
    assert places_of(make_store, "一二。三四。\u201d五六。七", "八九。十")[:3] == chinese


def test_initials_and_titles_end_no_sentence(make_store) -> None:
    text = "Mr. J. K. Abc, e.g. a Dr. said it. He went."
    made = wordpiece.train([text], vocab_size=200, lowercase=True, min_frequency=1)
    tokenizer = Tokenizer(made, kind="wordpiece", end_token=wordpiece.SEP)
    contents = Contents(whole(make_store([text], tokenizer=tokenizer)))
    found = Places(contents, tokenizer)
    assert tokenizer.decode(contents.read(0, int(found.every[found.is_sentence][0]))).endswith("it.")
    assert found.is_sentence.sum() == 1


def test_long_sentences_have_places_at_words(make_store) -> None:
    found = places_of(make_store, "ba be. " + "bas " * 100 + ". bi bo", "ba be " * 5)
    assert [is_sentence for _, is_sentence in found] == [True] + [False] * 5 + [True, False]
    sizes = [len(text.split()) for text, _ in found[1:6]]
    assert all(abs(2 * size - GAP) <= 4 for size in sizes[:-1])
    assert found[-1] == ("be ba be ba be", False)  # the middle of a document that is one sentence


def test_places_do_not_depend_on_blocks(books: View, monkeypatch: pytest.MonkeyPatch) -> None:
    contents, tokenizer = Contents(books), books.store.tokenizer
    expected = Places(contents, tokenizer)
    monkeypatch.setattr("llmtrain.data.sentences.BLOCK", 1000)
    found = Places(contents, tokenizer)
    sentences = expected.every[expected.is_sentence]
    assert found.every[found.is_sentence].tolist() == sentences.tolist()
    assert [len(kind) for kind in found.of_kind] == [(~found.is_sentence).sum(), len(sentences)]
