"""Classification: samples, batches, losses, predictions and scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data import wordpiece
from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.examples import ExampleRows
from llmtrain.data.samples import PackedRow, Sample
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.tokenizer_build import bytes_tokenizer
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model, materialise
from llmtrain.model.heads.examples import SampleHead
from llmtrain.model.initialise import initialise
from llmtrain.schema.model import BERTConfig, GPTConfig
from llmtrain.schema.task import ClassificationTask, Pool, Target
from llmtrain.schema.tokenizer import BytesTokenizer
from llmtrain.task.base import Examples
from llmtrain.task.classification import Classification, ClassificationKind, cut_pair
from llmtrain.task.labels import Example
from llmtrain.utils.errors import ConfigError, DataError
from tests.helpers.models import make_model, small_bert

KIND = ClassificationKind()


def examples_of(*labels: Any) -> Examples:
    return Examples([Example(f"a.tsv:{i + 1}", f"text {i}", None, label) for i, label in enumerate(labels)])


@pytest.fixture(scope="module")
def bert() -> Tokenizer:
    words = ["good", "bad", "film", "a", "##s", "the", "no", "yes"]
    return Tokenizer(
        wordpiece.from_vocab([*wordpiece.SPECIAL_TOKENS, *words], lowercase=True),
        kind="wordpiece",
        end_token="[SEP]",
    )


def task_for(target: Target = Target.label, causal: bool = False, **settings: Any) -> Classification:
    metric = {"label": "accuracy", "labels": "micro_f1", "number": "pearson"}[target.value]
    if target is not Target.number:
        settings.setdefault("labels", ["x", "y", "z"])
    return KIND.build(ClassificationTask(target=target, metric=metric, **settings), causal)


# What is chosen for a model


def test_pools() -> None:
    for causal, given_pool, expected in (
        (False, Pool.auto, Pool.first),
        (True, Pool.auto, Pool.last),
        (False, Pool.last, Pool.last),
        (True, Pool.mean, Pool.mean),
    ):
        assert task_for(causal=causal, pool=given_pool).pool is expected
    with pytest.raises(ConfigError, match="knows nothing of the text"):
        task_for(causal=True, pool=Pool.first)


# Samples and batches


def cut_token_by_token(first: int, second: int, room: int) -> tuple[int, int]:
    """What the paper's code does: drop the last token of the longer text until both fit."""
    while first + second > room:
        if first > second:
            first -= 1
        else:
            second -= 1
    return first, second


@given(st.integers(0, 60), st.integers(0, 60), st.integers(2, 70))
def test_pairs_are_cut_longest_first(first: int, second: int, room: int) -> None:
    kept = cut_pair(first, second, room)
    assert kept == cut_token_by_token(first, second, room)
    assert (kept[0] > 0) == (first > 0)
    assert (kept[1] > 0) == (second > 0)


@pytest.mark.parametrize("length", [64, 9, 6, 5])
def test_samples_of_an_encoder(bert: Tokenizer, length: int) -> None:
    pairs = [
        ("good films", "the film a"),
        ("bad", "no no no no no no"),
        ("yes yes yes yes yes", "a"),
    ]
    examples = [Example("a:1", text, pair, "y") for text, pair in pairs]
    samples = task_for().encode(examples, bert, length)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bert.inner, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )
    for number, (sample, (text, pair)) in enumerate(zip(samples, pairs, strict=True)):
        assert (sample.number, sample.label) == (number, 1)
        assert len(sample.ids) <= length
        whole = fast(text, pair, return_token_type_ids=True)
        if len(whole["input_ids"]) <= length:
            assert sample.ids.tolist() == whole["input_ids"]
            assert sample.segments.tolist() == whole["token_type_ids"]
        else:
            assert len(sample.ids) == length
            ids = [fast(part, add_special_tokens=False)["input_ids"] for part in (text, pair)]
            kept = cut_token_by_token(*map(len, ids), length - 3)
            expected = [bert.cls_id, *ids[0][: kept[0]], bert.sep_id, *ids[1][: kept[1]], bert.sep_id]
            assert sample.ids.tolist() == expected
    for short in (4, 1):
        with pytest.raises(ConfigError, match="no room for a text"):
            task_for().encode(examples, bert, short)


def test_samples_of_a_decoder() -> None:
    tokenizer = bytes_tokenizer(BytesTokenizer())
    end = tokenizer.end_id
    single, empty = task_for(causal=True).encode([Example("a:1", "abcd"), Example("a:2", "")], tokenizer, 4)
    assert single.ids.tolist() == [*b"abc", end]
    assert single.label is None
    assert empty.ids.tolist() == [end]
    (both,) = task_for(causal=True).encode([Example("a:1", "ab", "c", "z")], tokenizer, 9)
    assert both.ids.tolist() == [*b"ab", end, *b"c", end]
    assert both.label == 2


def test_an_unknown_label_is_found_when_encoding(bert: Tokenizer) -> None:
    with pytest.raises(DataError, match="the label 'w' is not known") as caught:
        task_for().encode([Example("dev.tsv:7", "good", None, "w")], bert, 16)
    assert caught.value.problems[0].where == "dev.tsv:7"


def batch_of(task: Classification, tokenizer: Tokenizer, *targets: Any, length: int = 8) -> Batch:
    """A batch of short texts, and a row that only fills it."""
    texts = ["good", "bad film", "the good films"]
    examples = [Example("a:1", texts[i % 3], None, label) for i, label in enumerate(targets)]
    rows = [PackedRow([sample]) for sample in task.encode(examples, tokenizer, length)]
    assert tokenizer.pad_id is not None
    return task.batch([*rows, PackedRow()], length, tokenizer.pad_id)


def test_batches(bert: Tokenizer) -> None:
    batch = batch_of(task_for(), bert, "y", None, "x")
    assert batch.sample_labels is not None
    assert batch.first is not None
    assert batch.sample_labels.tolist() == [[1], [IGNORE], [0], [IGNORE]]
    assert batch.first.tolist() == [[0]] * 4
    assert batch.num_tokens == 3 + 4 + 6
    last = batch_of(task_for(pool=Pool.last), bert, "y", None, "x")
    assert last.first is not None
    assert last.first.tolist() == [[2], [3], [5], [0]]
    sets = batch_of(task_for(Target.labels), bert, ["z", "x"], [], None)
    assert sets.sample_labels is not None
    assert sets.sample_labels.tolist() == [[[1, 0, 1]], [[0, 0, 0]], [[IGNORE] * 3], [[IGNORE] * 3]]
    numbers = batch_of(task_for(Target.number), bert, 2.5, 0.0, None)
    assert numbers.sample_labels is not None
    assert numbers.sample_labels.tolist() == [[[2.5]], [[0]], [[IGNORE]], [[IGNORE]]]
    assert numbers.sample_labels.dtype == torch.float32


# Losses


def model_for(task: Classification, vocab_size: int, causal: bool = True) -> Assembled:
    shape = {"num_layers": 2, "num_heads": 4, "dim": 32, "max_positions": 32, "vocab_size": vocab_size}
    config = GPTConfig(**shape) if causal else BERTConfig(**shape, dropout=0.0)
    model = build_model(config, task.build_head)
    materialise(model, torch.device("cpu"))
    initialise(model, 0)
    return model


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("target", "weights", "targets"),
    [
        (Target.label, [], ["x", "z", "y", "x", None]),
        (Target.label, [0.5, 2.0, 0.25], ["x", "z", "y", "x", None]),
        (Target.labels, [], [["x"], [], None, ["z", "y"]]),
        (Target.labels, [0.5, 2.0, 0.25], [["x"], [], None, ["z", "y"]]),
        (Target.number, [], [1.5, -2.0, None, 0.0]),
    ],
)
def test_losses_are_those_of_torch(
    bert: Tokenizer, target: Target, weights: list, targets: list, causal: bool
) -> None:
    task = task_for(target, causal=causal, class_weights=weights)
    model = model_for(task, bert.vocab_size, causal)
    assert isinstance(model.head, SampleHead)
    for parameter in model.head.parameters():  # scores that differ
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    batch = batch_of(task, bert, *targets)
    with torch.no_grad():
        counts = {name: float(count) for name, count in task.count(batch).items()}
        loss, stats = task.loss(model.sums(batch), counts)
        scores = task.output(model.predict(batch), batch)
    assert scores.shape == (len(targets) + 1, task.num_outputs)
    assert stats["loss"] == loss
    known = torch.tensor([label is not None for label in targets] + [False])
    assert batch.sample_labels is not None
    scores, true = scores[known], batch.sample_labels[known][:, 0]
    weight = torch.tensor(weights) if weights else None
    if target is Target.label:
        expected = F.cross_entropy(scores, true, weight)
    elif target is Target.labels:
        each = F.binary_cross_entropy_with_logits(scores, true, weight, reduction="none")
        expected = each.sum(1).mean()
    else:
        expected = F.mse_loss(scores, true)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_parts_of_a_batch_add_up(bert: Tokenizer) -> None:
    task = task_for(causal=True, class_weights=[0.5, 2.0, 0.25])
    whole = task.count(batch_of(task, bert, "x", "y", "z"))
    parts = [task.count(batch_of(task, bert, label))["weight"] for label in "xyz"]
    assert whole == {"weight": pytest.approx(sum(parts))} == {"weight": pytest.approx(2.75)}
    assert task.count(batch_of(task, bert, None)) == {"weight": 0}
    assert task_for(causal=True).count(batch_of(task, bert, "x", None, "z")) == {"samples": 2}


# Predictions and scores


def decode(task: Classification, outputs: Any, examples: list[Example], cut: int = 0) -> list[dict]:
    samples = [Sample(np.zeros(8), np.zeros(8), number, cut=cut) for number in range(len(examples))]
    return task.decode(np.array(outputs, np.float32), samples, examples)


def test_predicted_labels() -> None:
    task = task_for()
    examples = [Example("a:1", "one", None, "z"), Example("a:2", "two", "three")]
    outputs = [[0.0, 1.0, 3.0], [1000.0, 0.0, -1000.0]]
    first, second = decode(task, outputs, examples)
    assert list(first) == ["text", "expected", "label", "probability", "probabilities"]
    assert (first["expected"], first["label"]) == ("z", "z")
    softmax = torch.tensor(outputs[0]).softmax(0).tolist()
    assert list(first["probabilities"]) == ["x", "y", "z"]
    assert list(first["probabilities"].values()) == pytest.approx(softmax, abs=1e-6)
    assert first["probability"] == first["probabilities"]["z"]
    assert second == {
        "text": "two",
        "pair": "three",
        "label": "x",
        "probability": 1.0,
        "probabilities": {"x": 1.0, "y": 0.0, "z": 0.0},
    }
    json.dumps([first, second])


def test_predicted_sets_and_numbers() -> None:
    one, none = decode(
        task_for(Target.labels), [[2.0, -1.0, 0.1], [-500.0, -0.5, 0.0]], examples_of(None, None).items
    )
    assert one["labels"] == ["x", "z"]
    assert none["labels"] == []
    sigmoid = torch.tensor([2.0, -1.0, 0.1]).sigmoid().tolist()
    assert list(one["probabilities"].values()) == pytest.approx(sigmoid, abs=1e-6)
    assert none["probabilities"]["z"] == 0.5
    (number,) = decode(task_for(Target.number), [[1.1]], examples_of(2.0).items)
    assert number == {"text": "text 0", "expected": 2.0, "number": 1.1}


def test_what_was_cut_off_is_counted_and_told(bert: Tokenizer) -> None:
    examples = [
        Example("a:1", "good film"),
        Example("a:2", "no " * 10),
        Example("a:3", "no " * 10, "a a a a"),
    ]
    samples = task_for().encode(examples, bert, 8)
    assert [sample.cut for sample in samples] == [0, 4, 9]
    whole, part, _ = task_for().decode(np.zeros((3, 3), np.float32), samples, examples)
    assert "cut_tokens" not in whole
    assert part["cut_tokens"] == 4


@given(st.integers(2, 4), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_scores_of_labels(num: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    names = [f"label {i}" for i in range(num)]
    task = task_for(labels=names)
    true = generator.integers(0, num, 30)
    outputs = generator.normal(size=(30, num)) + np.eye(num)[true]
    examples = examples_of(*(names[i] for i in true)).items
    predicted = outputs.argmax(axis=1)
    scores = task.score(decode(task, outputs, examples), examples)
    assert set(scores) >= set(task.config.metrics()) - {"loss"}
    average = "binary" if num == 2 else "macro"
    f1 = sklearn.metrics.f1_score(true, predicted, average=average, zero_division=0)
    assert scores["f1"] == pytest.approx(f1)
    assert scores["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(true, predicted))
    assert scores["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(true, predicted))
    assert scores["mean_accuracy_f1"] == pytest.approx((scores["accuracy"] + f1) / 2)


def test_scores_of_sets_and_numbers() -> None:
    task = task_for(Target.labels)
    examples = examples_of(["x"], ["y", "z"], []).items
    predictions = decode(task, [[1, -1, -1], [-1, 1, -1], [1, -1, -1]], examples)
    scores = task.score(predictions, examples)
    assert scores == pytest.approx({"micro_f1": 4 / 6, "macro_f1": (2 / 3 + 1 + 0) / 3, "exact_match": 1 / 3})
    assert set(scores) == set(task.config.metrics()) - {"loss"}
    (table,) = task.tables(predictions, examples)
    assert table.rows[2] == ["z", "0.000", "0.000", "0.000", "1"]
    numbers = task_for(Target.number)
    examples = examples_of(1.0, 2.0, 3.0, 10.0).items
    scores = numbers.score(decode(numbers, [[0.1], [0.2], [0.3], [0.4]], examples), examples)
    assert scores["spearman"] == pytest.approx(1)
    assert scores["pearson"] == pytest.approx(np.corrcoef([1, 2, 3, 10], [1, 2, 3, 4])[0, 1])
    assert scores["mean_correlation"] == pytest.approx((1 + scores["pearson"]) / 2)
    assert scores["mean_squared_error"] == pytest.approx(np.mean([0.9**2, 1.8**2, 2.7**2, 9.6**2]))
    assert numbers.tables([], []) == []


def test_tables() -> None:
    task = task_for()
    examples = examples_of("x", "x", "y", "z").items
    predictions = decode(task, [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]], examples)
    matrix, each = task.tables(predictions, examples)
    assert matrix.header == ["", "x", "y", "z"]
    assert matrix.rows == [["x", "1", "1", "0"], ["y", "0", "1", "0"], ["z", "0", "1", "0"]]
    assert each.header == ["label", "precision", "recall", "f1", "count"]
    assert each.rows == [
        ["x", "1.000", "0.500", "0.667", "2"],
        ["y", "0.333", "1.000", "0.500", "1"],
        ["z", "0.000", "0.000", "0.000", "1"],
    ]
    many = task_for(labels=[str(i) for i in range(21)])
    examples = examples_of("3").items
    assert [table.title for table in many.tables(decode(many, [[0.0] * 21], examples), examples)] == [
        "Each label"
    ]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small products are quicker without threads, which wait for each other where others are at work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_it_learns(bert: Tokenizer) -> None:
    """Which of two words stands somewhere among others."""
    generator = np.random.default_rng(0)
    items = []
    for i in range(100):
        words = list(generator.choice(["a", "the", "film"], generator.integers(1, 7)))
        label, word = ("y", "good") if generator.random() < 0.5 else ("x", "bad")
        words.insert(generator.integers(len(words) + 1), word)
        items.append(Example(f"a:{i}", " ".join(words), None, label))
    config = KIND.resolve(ClassificationTask(), Examples(items))
    task = KIND.build(config, causal=True)
    samples = task.encode(items, bert, 16)
    assert bert.pad_id is not None
    rows = ExampleRows(samples, task.batch, sequence_length=16, batch_size=20, pad_id=bert.pad_id, seed=0)
    model = model_for(task, bert.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(50):
        batch = rows.collate([rows.read(step * 20 + i) for i in range(20)])
        loss, _ = task.loss(model.sums(batch), {name: float(n) for name, n in task.count(batch).items()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    everything = task.batch([PackedRow([sample]) for sample in samples], 16, bert.pad_id)
    with torch.no_grad():
        outputs = task.output(model.predict(everything), everything).numpy()
    predictions = task.decode(outputs, samples, items)
    assert task.score(predictions, items)["accuracy"] > 0.95


def test_smoothing_belongs_to_one_label_only():
    with pytest.raises(ValueError, match="label_smoothing: goes with target=label only"):
        ClassificationTask(target=Target.labels, label_smoothing=0.1)
    with pytest.raises(ValueError, match="label_smoothing: must be at least 0 and below 1"):
        ClassificationTask(label_smoothing=1.0)
    task = KIND.build(ClassificationTask(labels=["a", "b"], label_smoothing=0.1), False)
    head = task.build_head(make_model(small_bert()).backbone)
    assert head.label_smoothing == 0.1
