"""Entities and their scores against the published rules of conlleval."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.metrics.entities import Entity, EntityCounts, count_entities, entities, is_tag
from llmtrain.schema.task import Scheme

# the tables of conlleval: pairs of letters, of the word before and of a word, that end or start a chunk
ENDS = {"BB", "BO", "IB", "IO", "BS", "IS"}
STARTS = {"EE", "EI", "OE", "OI", "SE", "SI"}


def split(tag: str) -> tuple[str, str]:
    prefix, _, kind = tag.partition("-")
    return {"M": "I"}.get(prefix, prefix), kind


def ends(before: tuple[str, str], now: tuple[str, str]) -> bool:
    """Whether a chunk ends between two words, by the script's list of conditions."""
    return before[0] in ("E", "S") or before[0] + now[0] in ENDS or (before[0] != "O" and before[1] != now[1])


def starts(before: tuple[str, str], now: tuple[str, str]) -> bool:
    """Whether a chunk starts between two words."""
    return now[0] in ("B", "S") or before[0] + now[0] in STARTS or (now[0] != "O" and before[1] != now[1])


def conlleval(predicted: list[list[str]], actual: list[list[str]]) -> tuple[int, int, int]:
    """Counts of right, predicted and actual chunks, word by word as the script keeps them."""
    correct = found = true = 0
    inside = False
    last_guess = last_truth = ("O", "")
    for said, real in zip(predicted, actual, strict=True):
        for guess, truth in [*zip(map(split, said), map(split, real), strict=True), (("O", ""), ("O", ""))]:
            guess_ends, truth_ends = ends(last_guess, guess), ends(last_truth, truth)
            if inside:
                if guess_ends and truth_ends and last_guess[1] == last_truth[1]:
                    correct, inside = correct + 1, False
                elif guess_ends != truth_ends or guess[1] != truth[1]:
                    inside = False
            guess_starts, truth_starts = starts(last_guess, guess), starts(last_truth, truth)
            inside = inside or (guess_starts and truth_starts and guess[1] == truth[1])
            found, true = found + guess_starts, true + truth_starts
            last_guess, last_truth = guess, truth
    return correct, found, true


def tags_of(found: list[Entity], num_words: int, scheme: Scheme) -> list[str]:
    """Well-formed tags of entities."""
    tags = ["O"] * num_words
    for kind, start, end in found:
        inside = "M" if scheme is Scheme.bmes else "I"
        letters = ["B", *[inside] * (end - start - 1)]
        if scheme is not Scheme.bio:
            letters[-1] = "E" if end - start > 1 else "S"
        tags[start:end] = [f"{letter}-{kind}" for letter in letters]
    return tags


@st.composite
def spans(draw: st.DrawFn) -> tuple[list[Entity], int]:
    """Entities of a sentence and its number of words."""
    lengths = draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from("XYZ")), max_size=6)
    )
    place, found = 0, []
    for gap, length, kind in lengths:
        found.append(Entity(kind, place + gap, place + gap + length))
        place += gap + length
    return found, place + draw(st.integers(0, 2))


letters = {Scheme.bio: "BI", Scheme.bioes: "BIES", Scheme.bmes: "BMES"}


def any_tags(scheme: Scheme) -> st.SearchStrategy[list[str]]:
    """Sequences of tags that need not be well formed; with and without types."""
    tags = [f"{letter}-{kind}" for letter in letters[scheme] for kind in "XY"] + list(letters[scheme])
    return st.lists(st.sampled_from(["O", *tags]), max_size=12)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-X I-X O", [("X", 0, 2)]),
        ("I-X I-X O I-X", [("X", 0, 2), ("X", 3, 4)]),  # I- after O starts a chunk (and IOB1 is read right)
        ("B-X I-Y I-Y", [("X", 0, 1), ("Y", 1, 3)]),  # another type starts a chunk
        ("I-X B-X I-X", [("X", 0, 1), ("X", 1, 3)]),
        ("O B-X B-X", [("X", 1, 2), ("X", 2, 3)]),
        ("B I O I", [("", 0, 2), ("", 3, 4)]),  # chunks without types
        ("B-X I I-X", [("X", 0, 1), ("", 1, 2), ("X", 2, 3)]),
        ("B-A-B I-A-B", [("A-B", 0, 2)]),  # the type is all behind the first dash
        ("B-X I-X E-X S-Y", [("X", 0, 3), ("Y", 3, 4)]),
        ("B-X E-X E-X", [("X", 0, 2), ("X", 2, 3)]),  # nothing goes on behind an end
        ("S-X I-X E-X", [("X", 0, 1), ("X", 1, 3)]),
        ("B-X S-X", [("X", 0, 1), ("X", 1, 2)]),
        ("B-X E-Y", [("X", 0, 1), ("Y", 1, 2)]),
        ("B-X M-X M-X E-X O M-X", [("X", 0, 4), ("X", 5, 6)]),
        ("O O", []),
        ("", []),
    ],
)
def test_entities_by_the_rules_of_conlleval(tags: str, expected: list[tuple[str, int, int]]):
    assert entities(tags.split()) == expected


def test_counts_of_a_case_worked_out_by_hand():
    actual = [["B-PER", "I-PER", "O", "B-LOC", "O"], ["B-ORG", "I-ORG", "B-ORG", "O"]]
    predicted = [["B-PER", "I-PER", "O", "I-LOC", "I-LOC"], ["B-ORG", "I-ORG", "I-ORG", "B-PER"]]
    # PER: 1 of 2 right, of 1; LOC: ends a word too late; ORG: one chunk where there are two
    counts = count_entities(predicted, actual)
    assert counts == {
        "LOC": EntityCounts(0, 1, 1),
        "ORG": EntityCounts(0, 1, 2),
        "PER": EntityCounts(1, 2, 1),
    }
    assert list(counts) == ["LOC", "ORG", "PER"]
    total = sum(counts.values(), EntityCounts())
    assert total == EntityCounts(1, 4, 4)
    assert (total.precision, total.recall, total.f1) == (0.25, 0.25, 0.25)
    person = counts["PER"]
    assert (person.precision, person.recall) == (0.5, 1.0)
    assert person.f1 == pytest.approx(2 / 3)


def test_scores_without_entities_are_zero():
    nothing = EntityCounts()
    assert (nothing.precision, nothing.recall, nothing.f1) == (0.0, 0.0, 0.0)
    assert count_entities([["O"]], [["O"]]) == {}


def test_a_sentence_ends_every_entity():
    assert count_entities([["B-X"], ["I-X"]], [["B-X"], ["I-X"]]) == {"X": EntityCounts(2, 2, 2)}


@pytest.mark.parametrize("scheme", list(Scheme))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_counts_equal_the_word_by_word_rules(scheme: Scheme, data: st.DataObject):
    predicted, actual = [], []
    for _ in range(data.draw(st.integers(1, 3))):
        said, real = data.draw(any_tags(scheme)), data.draw(any_tags(scheme))
        size = min(len(said), len(real))
        predicted.append(said[:size])
        actual.append(real[:size])
    total = sum(count_entities(predicted, actual).values(), EntityCounts())
    assert (total.correct, total.predicted, total.actual) == conlleval(predicted, actual)


@pytest.mark.parametrize("scheme", list(Scheme))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_f1_against_itself_is_one(scheme: Scheme, data: st.DataObject):
    tags = data.draw(any_tags(scheme))
    for counts in count_entities([tags], [tags]).values():
        assert counts.precision == counts.recall == counts.f1 == 1.0
    inside = sum(entity.end - entity.start for entity in entities(tags))
    assert inside == sum(tag != "O" for tag in tags)


@pytest.mark.parametrize("scheme", list(Scheme))
@settings(max_examples=60, deadline=None)
@given(case=spans())
def test_schemes_keep_entities(scheme: Scheme, case: tuple[list[Entity], int]):
    found, num_words = case
    tags = tags_of(found, num_words, scheme)
    assert all(is_tag(tag, scheme) for tag in tags)
    assert entities(tags) == found


def test_tags_of_a_scheme():
    assert all(is_tag(tag, Scheme.bio) for tag in ("O", "B-X", "I-X", "B", "I-A-B"))
    assert not any(is_tag(tag, Scheme.bio) for tag in ("", "-", "-X", "E-X", "S", "X", "BI-X", "O-X", "b-X"))
    assert is_tag("E-X", Scheme.bioes)
    assert not is_tag("M-X", Scheme.bioes)
    assert is_tag("M-X", Scheme.bmes)
    assert not is_tag("I-X", Scheme.bmes)
