"""Tags for words: samples, batches, predictions and scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data import wordpiece
from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.examples import ExampleRows
from llmtrain.data.samples import PackedRow
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.tokenizer_build import bpe_tokenizer, bytes_tokenizer
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model, materialise
from llmtrain.model.initialise import initialise
from llmtrain.schema.task import Scheme, TokenClassificationTask
from llmtrain.schema.tokenizer import BPETokenizer, BytesTokenizer
from llmtrain.task.base import Examples
from llmtrain.task.columns import Sentence
from llmtrain.task.token_classification import (
    TokenClassification,
    TokenClassificationKind,
    cut_evenly,
    word_pieces,
)
from llmtrain.utils.errors import ConfigError, DataError
from tests.helpers.models import small_config
from tests.helpers.paths import SHARED_DATA

KIND = TokenClassificationKind()
BIO = ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]


def sentence(text: str, tags: str | None = None) -> Sentence:
    return Sentence(text.split(" "), None if tags is None else tags.split(" "), "a.txt", 1)


def task_for(causal: bool = False, **changes: Any) -> TokenClassification:
    return KIND.build(TokenClassificationTask(**({"labels": BIO} | changes)), causal)


@pytest.fixture(scope="module")
def bert() -> Tokenizer:
    words = ["anna", "meets", "bob", "in", "york", "new", "x", "##x", "##y", "##s", ".", "-"]
    return Tokenizer(
        wordpiece.from_vocab([*wordpiece.SPECIAL_TOKENS, *words], lowercase=True),
        kind="wordpiece",
        end_token="[SEP]",
    )


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    text = "the cat meets the other cats in new york and the dog barks at them all day long " * 20
    return bpe_tokenizer(BPETokenizer(vocab_size=320), iter([text]))


def test_labels_are_settled() -> None:
    found = Examples([sentence("a b c", "I-X B-X B-A"), sentence("d", "O")])
    config = KIND.resolve(TokenClassificationTask(), found)
    assert config.labels == ["O", "B-A", "B-X", "I-X"]
    assert KIND.resolve(config, found) == config
    with pytest.raises(DataError, match="does not list 'B-A'") as caught:
        KIND.resolve(TokenClassificationTask(labels=["O", "B-X", "I-X"]), found)
    assert caught.value.problems[0].where == "a.txt:3"
    with pytest.raises(ConfigError, match="2 weights for 4 tags"):
        KIND.resolve(TokenClassificationTask(class_weights=[1.0, 2.0]), found)


# Samples


def pieces_of(
    words: list[str], tokenizer: Tokenizer, joined: bool = False, room: int = 99
) -> list[list[int]]:
    one = Sentence(words, None)
    return [ids.tolist() for ids in next(word_pieces([one], tokenizer, joined, room))]


def flat(parts: Iterable[list[int]]) -> list[int]:
    return [number for part in parts for number in part]


def test_pieces_are_those_of_transformers(bert: Tokenizer) -> None:
    other = transformers.PreTrainedTokenizerFast(tokenizer_object=bert.inner, unk_token="[UNK]")
    words = ["Anna", "meets", "xxy-xys", "Bob's", "in", "q", "New", "York."]
    encoded = other(words, is_split_into_words=True, add_special_tokens=False)
    assert flat(pieces_of(words, bert)) == encoded["input_ids"]
    task = task_for(labels=["O", "B-X"])
    (sample,) = task.encode([Sentence(words, ["B-X"] * 8)], bert, 64)
    first = [encoded.word_ids().index(i) for i in range(len(words))]
    assert sample.places.tolist() == [1 + place for place in first]
    assert sample.ids.tolist() == [bert.cls_id, *encoded["input_ids"], bert.sep_id]
    last = [len(encoded.word_ids()) - 1 - encoded.word_ids()[::-1].index(i) for i in range(len(words))]
    (sample,) = task_for(causal=True, labels=["O", "B-X"]).encode([Sentence(words, None)], bert, 64)
    assert sample.places.tolist() == [1 + place for place in last]


@settings(max_examples=50, deadline=None)
@given(words=st.lists(st.text("catshe'.7é", min_size=1, max_size=6), min_size=1, max_size=6))
def test_pieces_are_those_of_running_text(bpe: Tokenizer, words: list[str]) -> None:
    assert flat(pieces_of(words, bpe)) == bpe.encode(" ".join(words)).tolist()
    assert flat(pieces_of(words, bpe, joined=True)) == flat(bpe.encode(word).tolist() for word in words)
    plain = bytes_tokenizer(BytesTokenizer())
    assert flat(pieces_of(words, plain)) == list(" ".join(words).encode())


def test_every_word_has_a_piece(bert: Tokenizer, bpe: Tokenizer) -> None:
    assert pieces_of(["\u200b", "anna", "\x07"], bert)[::2] == [[bert.unknown_id]] * 2
    assert all(pieces_of(["\u200b", "\x07"], bpe))
    assert pieces_of(["xxxxxx"], bert, room=3) == [bert.encode("xxx").tolist()]  # the rest is left out


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.data())
def test_parts_hold_every_word(room: int, data: st.DataObject) -> None:
    sizes = np.array(data.draw(st.lists(st.integers(1, room), max_size=30)), np.int64)
    parts = list(cut_evenly(sizes, room))
    assert [start for start, _ in parts] == [0, *(end for _, end in parts[:-1])]
    assert parts[-1][1] == len(sizes)
    held = [int(sizes[start:end].sum()) for start, end in parts]
    assert max(held) <= room
    assert len(parts) == 1 or min(held) > 0
    if sizes.sum() <= room:
        assert len(parts) == 1
    if set(sizes.tolist()) == {1}:
        assert len(parts) == -(-len(sizes) // room)
        assert max(held) - min(held) <= len(parts)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [3, 4, 7, 64])
def test_no_word_is_lost(bert: Tokenizer, causal: bool, length: int) -> None:
    task = task_for(causal)
    examples = [
        sentence("anna meets xxyys bob in new york .", "B-PER O O B-PER O B-LOC I-LOC O"),
        Sentence([], None),
        sentence("bob", "B-PER"),
        sentence("xxxxxxxxxxxx x", "O O"),
    ]
    samples = task.encode(examples, bert, length)
    assert all(len(sample.ids) <= length for sample in samples)
    assert [sample.number for sample in samples] == list(range(len(samples)))
    for number, example in enumerate(examples):
        own = [sample for sample in samples if sample.example == number]
        tags = [task.config.labels[tag] for sample in own for tag in sample.tags if tag != IGNORE]
        assert tags == (example.tags or [])
        assert sum(len(sample.places) for sample in own) == len(example.words)
        assert all(1 <= place < len(sample.ids) - 1 for sample in own for place in sample.places)
    outputs = np.full((len(samples), task.width), -1.0, np.float32)
    for row, sample in zip(outputs, samples, strict=True):
        row[: len(sample.tags)] = np.where(sample.tags == IGNORE, 0, sample.tags)
    predictions = task.decode(outputs, samples, examples)
    assert [one["tags"] for one in predictions] == [one.tags or [] for one in examples]
    assert predictions[0]["entities"] == [
        {"type": "PER", "text": "anna", "start": 0, "end": 1},
        {"type": "PER", "text": "bob", "start": 3, "end": 4},
        {"type": "LOC", "text": "new york", "start": 5, "end": 7},
    ]
    assert predictions[1] == {"words": [], "tags": [], "entities": []}
    assert predictions[2]["expected"] == ["B-PER"]


def test_rows_without_room(bert: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="rows of 2 tokens have no room for a word"):
        task_for().encode([sentence("anna")], bert, 2)


def test_unknown_tags_carry_no_label(bert: Tokenizer) -> None:
    examples = [sentence("anna in york", "B-PER O B-MISC")]
    (sample,) = task_for().encode(examples, bert, 16)
    assert sample.tags.tolist() == [BIO.index("B-PER"), 0, IGNORE]
    with pytest.raises(DataError, match="none of the tags is known, such as 'E-PER'") as caught:
        task_for().encode([sentence("anna in york", "O O E-PER")], bert, 16)
    assert caught.value.problems[0].where == "a.txt:3"
    assert task_for().encode([sentence("anna in york", "O O O")], bert, 16)


# Batches, losses, predictions


def batch_of(task: TokenClassification, tokenizer: Tokenizer, *examples: Sentence) -> Batch:
    samples = task.encode(examples, tokenizer, 16)
    return task.batch([*(PackedRow([sample]) for sample in samples), PackedRow()], 16, 0)


def test_batches(bert: Tokenizer) -> None:
    task = task_for()
    batch = batch_of(task, bert, sentence("anna xxy bob", "B-PER O B-PER"), sentence("york"))
    assert batch.selected is not None
    assert batch.labels is not None
    assert batch.selected.tolist() == [[1, 2, 5], [1, 0, 0], [0, 0, 0]]
    assert batch.labels.tolist() == [[2, 0, 2], [IGNORE] * 3, [IGNORE] * 3]
    assert batch.num_tokens == 7 + 3
    assert task.count(batch) == {"labels": 3}
    weighted = task_for(class_weights=[0.5, 1.0, 2.0, 1.0, 1.0])
    assert weighted.count(batch) == {"weight": 4.5}
    empty = task.batch([PackedRow()], 16, 0)
    assert task.count(empty) == {"labels": 0}
    assert empty.selected is not None
    assert empty.selected.shape == (1, 1)


def test_outputs_are_as_wide_in_every_batch(bert: Tokenizer) -> None:
    task = task_for()
    rows = [PackedRow([one]) for one in task.encode([sentence("anna in york"), sentence("bob")], bert, 16)]
    narrow, wide = task.batch(rows[1:], 8, 0), task.batch(rows, 8, 0)
    scores = F.one_hot(torch.tensor([[2, 0, 1], [2, 0, 0]]), len(BIO)).float()
    outputs = [task.output(scores, wide), task.output(scores[1:, :1], narrow)]
    assert [output.shape for output in outputs] == [(2, 14), (1, 14)]
    assert outputs[0][0].tolist() == [2, 0, 1] + [-1] * 11
    assert outputs[1][0].tolist() == [2] + [-1] * 13


def model_for(task: TokenClassification, vocab_size: int) -> Assembled:
    model = build_model(small_config(vocab_size=vocab_size), task.build_head)
    materialise(model, torch.device("cpu"))
    initialise(model, 0)
    return model


@pytest.mark.parametrize("weights", [[], [0.5, 1.0, 2.0, 1.0, 3.0]])
def test_losses_are_those_of_torch(bert: Tokenizer, weights: list[float]) -> None:
    task = task_for(causal=True, class_weights=weights)
    batch = batch_of(
        task, bert, sentence("anna xxy bob", "B-PER O I-PER"), sentence("york"), sentence("in bob", "O B-PER")
    )
    model = model_for(task, bert.vocab_size)
    loss, stats = task.loss(model.sums(batch), task.count(batch))
    assert batch.labels is not None
    expected = F.cross_entropy(
        model.predict(batch).flatten(0, 1),
        batch.labels.flatten(),
        torch.tensor(weights) if weights else None,
        ignore_index=IGNORE,
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert stats["loss"].item() == loss.item()


def test_scores_and_table() -> None:
    examples = [sentence("a b c d", "B-PER I-PER O B-LOC"), sentence("e f", "O B-MISC")]
    said = [{"tags": ["B-PER", "I-PER", "O", "O"]}, {"tags": ["B-LOC", "O"]}]
    task = task_for()
    # right: PER; said: PER, LOC; actual: PER, LOC, MISC; words: 3 of 6
    assert task.score(said, examples) == {
        "precision": pytest.approx(1 / 2),
        "recall": pytest.approx(1 / 3),
        "f1": pytest.approx(2 / 5),
        "accuracy": pytest.approx(3 / 6),
    }
    (table,) = task.tables(said, examples)
    assert table.header == ["type", "precision", "recall", "f1", "count"]
    assert table.rows == [
        ["LOC", "0.000", "0.000", "0.000", "1"],
        ["MISC", "0.000", "0.000", "0.000", "1"],
        ["PER", "1.000", "1.000", "1.000", "1"],
    ]


def test_entities_of_joined_words() -> None:
    task = task_for(labels=["O", "B-NAME", "E-NAME"], scheme=Scheme.bmes, joined=True)
    examples = [Sentence(list("高勇男"), None)]
    samples = task.encode(examples, bytes_tokenizer(BytesTokenizer()), 32)
    assert [len(sample.ids) for sample in samples] == [10]  # no blanks between
    (prediction,) = task.decode(np.array([[1.0, 2.0, 0.0]]), samples, examples)
    assert prediction["entities"] == [{"type": "NAME", "text": "高勇", "start": 0, "end": 2}]


def evaluate(task: TokenClassification, model: Assembled, rows: ExampleRows, examples: list[Sentence]) -> Any:
    samples = list(rows.samples)
    with torch.no_grad():
        batches = [rows.collate([PackedRow([sample])]) for sample in samples]
        outputs = torch.cat([task.output(model.predict(batch), batch) for batch in batches])
    return task.score(task.decode(outputs.numpy(), samples, examples), examples)


@pytest.mark.usefixtures("one_thread")
def test_it_learns_with_a_decoder() -> None:
    random = np.random.default_rng(0)
    names, places, verbs = ["anna", "bob", "eve"], ["york", "rome"], ["saw", "met", "and"]
    examples = []
    for _ in range(64):
        person, other, place = random.choice(names), random.choice(verbs), random.choice(places)
        words = [str(person), str(other), "new", str(place)]
        examples.append(Sentence(words, ["B-PER", "O", "O", "B-LOC"]))
    tokenizer = bytes_tokenizer(BytesTokenizer())
    task = task_for(causal=True)
    model = model_for(task, tokenizer.vocab_size)
    rows = ExampleRows(
        task.encode(examples, tokenizer, 32), task.batch, sequence_length=32, batch_size=16, pad_id=0, seed=0
    )
    before = evaluate(task, model, rows, examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(40):
        batch = rows.collate([rows.read(step * 16 + i) for i in range(16)])
        loss, _ = task.loss(model.sums(batch), task.count(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = evaluate(task, model, rows, examples)
    assert before["f1"] < 0.5
    assert after["f1"] > 0.95
    assert after["accuracy"] > 0.95


def test_a_real_tokenizer_loses_no_word(minilm: Tokenizer) -> None:
    folder = SHARED_DATA / "ner/conll2003"
    if not folder.is_dir():
        pytest.skip("conll2003 (../shared/data/ner) is not on this machine")
    found = KIND.read(TokenClassificationTask(), [folder / "valid.txt"], True)
    task = KIND.build(KIND.resolve(TokenClassificationTask(), found), False)
    samples = task.encode(found.items, minilm, 48)
    assert len(samples) > len(found.items)
    outputs = np.full((len(samples), task.width), -1.0, np.float32)
    for row, sample in zip(outputs, samples, strict=True):
        row[: len(sample.tags)] = sample.tags
    predictions = task.decode(outputs, samples, found.items)
    assert task.score(predictions, found.items) == dict.fromkeys(
        ("precision", "recall", "f1", "accuracy"), 1.0
    )
    (table,) = task.tables(predictions, found.items)
    # the counts of the development set, as published with the shared task
    assert {row[0]: int(row[-1]) for row in table.rows} == {
        "LOC": 1837,
        "MISC": 922,
        "ORG": 1341,
        "PER": 1842,
    }
