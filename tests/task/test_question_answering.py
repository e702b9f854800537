"""Answers in texts: windows, alignment, batches, predictions and scores."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data import wordpiece
from llmtrain.data.batch import IGNORE
from llmtrain.data.examples import ExampleRows
from llmtrain.data.samples import PackedRow, Sample
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.tokenizer_build import bytes_tokenizer
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model, materialise
from llmtrain.model.initialise import initialise
from llmtrain.schema.model import BERTConfig
from llmtrain.schema.task import AnswerNormalisation, QuestionAnsweringTask
from llmtrain.schema.tokenizer import BytesTokenizer
from llmtrain.task.base import Examples
from llmtrain.task.question_answering import (
    QuestionAnswering,
    QuestionAnsweringKind,
    token_span,
    windows,
)
from llmtrain.task.squad import Answer, Question
from llmtrain.utils.errors import ConfigError
from tests.helpers.paths import SHARED_DATA

KIND = QuestionAnsweringKind()
CONTEXT = "The cat, named Tom, sat on the old mat. Tom is 12 years old."


def task_for(**changes: Any) -> QuestionAnswering:
    return KIND.build(QuestionAnsweringTask(**({"stride": 4, "num_best": 3} | changes)), False)


def question(text: str = "who sat", context: str = CONTEXT, *answers: str) -> Question:
    return Question("q1", text, context, tuple(Answer(one, context.index(one)) for one in answers))


@pytest.fixture(scope="module")
def bert() -> Tokenizer:
    text = "the cat , named tom sat on old mat . is 1 ##2 years ##s who how where ? a ##t"
    return Tokenizer(
        wordpiece.from_vocab([*wordpiece.SPECIAL_TOKENS, *text.split()], lowercase=True),
        kind="wordpiece",
        end_token="[SEP]",
    )


def test_decoders_are_refused() -> None:
    config = QuestionAnsweringTask()
    assert KIND.resolve(config, Examples([])) is config
    with pytest.raises(ConfigError, match="both directions"):
        KIND.build(config, True)


# Windows and alignment


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.integers(1, 12), st.integers(0, 11))
def test_windows_cover_the_text_and_overlap(num_tokens: int, room: int, overlap: int) -> None:
    if overlap >= room and num_tokens > room:
        with pytest.raises(ConfigError, match=f"windows of {room} tokens cannot overlap by {overlap}"):
            windows(num_tokens, room, overlap)
        return
    found = windows(num_tokens, room, overlap)
    assert found[0][0] == 0
    assert found[-1][1] == num_tokens
    assert all(end - start == room for start, end in found[:-1])
    assert all(end - start <= room for start, end in found)
    assert all(before[1] - start == overlap for before, (start, _) in pairwise(found))
    assert all(end > before[1] for before, (_, end) in pairwise(found))  # each gets on


def test_rows_without_room(bert: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="no room for its text"):
        task_for().encode([question("who who who who")], bert, 7)
    assert task_for(max_question_length=2, stride=0).encode([question("who who who who")], bert, 7)
    with pytest.raises(ConfigError, match="windows of 4 tokens cannot overlap by 4"):
        task_for().encode([question("who")], bert, 8)


@pytest.mark.parametrize(("length", "stride"), [(12, 3), (16, 0), (20, 10), (64, 4)])
def test_windows_are_those_of_transformers(bert: Tokenizer, length: int, stride: int) -> None:
    other = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_json(bert.to_json()).inner, pad_token="[PAD]"
    )
    example = question("who sat?", CONTEXT, "Tom")
    samples = task_for(stride=stride).encode([example], bert, length)
    expected = other(
        example.question,
        CONTEXT,
        truncation="only_second",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    assert [sample.ids.tolist() for sample in samples] == expected["input_ids"]
    assert [sample.segments.tolist() for sample in samples] == expected["token_type_ids"]
    for number, sample in enumerate(samples):
        inside = [offset for offset, of in zip(expected["offset_mapping"][number], expected.sequence_ids(number), strict=True) if of == 1]  # fmt: skip  # noqa: E501
        assert list(map(tuple, sample.offsets.tolist())) == inside
        assert expected.sequence_ids(number).index(1) == sample.shift


def labels_of(samples: list[Sample]) -> list[Any]:
    return [sample.label for sample in samples]


def test_labels(bert: Tokenizer) -> None:
    example = question("who", CONTEXT, "sat on", "Tom")
    # [CLS] who [SEP] the cat , named tom , sat on the old mat . tom is 1 ##2 years old . [SEP]
    (whole,) = task_for().encode([example], bert, 32)
    assert whole.label == [9, 10]
    assert bert.decode(whole.ids[9:11]) == "sat on"
    parts = task_for(stride=2).encode([example], bert, 12)  # tokens 0-8, 6-14, 12-19 of the text
    assert labels_of(parts) == [[9, 10], [3, 4], [0, 0]]
    cut = task_for(stride=0).encode([example], bert, 11)  # 7 tokens: the answer is cut between two windows
    assert labels_of(cut) == [[0, 0]] * 3
    none = Question("q", "who", CONTEXT, ())
    assert labels_of(task_for(no_answer=True).encode([none], bert, 32)) == [[0, 0]]
    unknown = Question("q", "who", CONTEXT)
    lost = Question("q", "who", CONTEXT, (Answer("Tomcat", None),))
    for config in (task_for(), task_for(no_answer=True)):
        assert labels_of(config.encode([unknown, lost], bert, 32)) == [None, None]
    second = Question("q", "who", CONTEXT, (Answer("Tomcat", None), Answer(" old mat. ", 30)))
    (sample,) = task_for().encode([second], bert, 32)
    assert sample.label == [12, 14]  # the blanks around it are no tokens


def test_answers_without_tokens_and_inside_of_tokens(bert: Tokenizer) -> None:
    context = "tom \u200b\x07 cats"
    offsets = bert.encode_offsets([context])[1 - 1][1]
    assert offsets.tolist() == [[0, 3], [7, 10], [10, 11]]
    assert token_span(Answer("\u200b\x07", 4), offsets) is None
    assert token_span(Answer("at", 8), offsets) == (1, 1)
    assert token_span(Answer("m \u200b\x07 c", 2), offsets) == (0, 1)
    tokens = bytes_tokenizer(BytesTokenizer()).encode_offsets(["a\u00e9b"])[0][1]
    assert token_span(Answer("\u00e9", 1), tokens) == (1, 2)  # both bytes of the letter


def test_real_answers_align(minilm: Tokenizer) -> None:
    path = SHARED_DATA / "qa/squad-v1.1/train_sample-v1.1.json.gz"
    if not path.is_file():
        pytest.skip("squad-v1.1 (../shared/data/qa) is not on this machine")
    items = KIND.read(QuestionAnsweringTask(), [path], True).items
    contexts = list({one.context: None for one in items})
    offsets = dict(zip(contexts, (o for _, o in minilm.encode_offsets(contexts)), strict=True))
    wrong = []
    for one in items:
        (answer,) = one.answers
        span = token_span(answer, offsets[one.context])
        assert span is not None
        start, end = int(offsets[one.context][span[0], 0]), int(offsets[one.context][span[1], 1])
        if one.context[start:end] != answer.text.strip():
            wrong.append((one.context, start, end, answer))
    assert len(wrong) <= 0.005 * len(items)  # 30 of 7,765
    for context, start, end, answer in wrong:
        # the rest ends or starts inside a word or a number ("six" of "sixth", "7" of "1817"): no token border
        begin, stop = answer.start, answer.start + len(answer.text)
        assert start <= begin
        assert stop <= end
        inside = (begin > start and context[begin - 1].isalnum()) or (stop < end and context[stop].isalnum())
        assert inside, (context[start:end], answer)


# Batches and losses


def model_for(task: QuestionAnswering, tokenizer: Tokenizer) -> Assembled:
    config = BERTConfig(
        num_layers=1, num_heads=4, dim=32, max_positions=32, vocab_size=tokenizer.vocab_size, dropout=0.0
    )
    model = build_model(config, task.build_head)
    materialise(model, torch.device("cpu"))
    initialise(model, 0)
    return model


def test_batches_and_losses(bert: Tokenizer) -> None:
    task = task_for()
    examples = [question("who", CONTEXT, "sat on"), Question("q", "who", "the cat", (Answer("dog", None),))]
    samples = task.encode(examples, bert, 32)
    batch = task.batch([*(PackedRow([sample]) for sample in samples), PackedRow()], 32, 0)
    assert batch.labels is not None
    assert batch.labels.tolist() == [[9, 10], [IGNORE] * 2, [IGNORE] * 2]
    assert task.count(batch) == {"labels": 2}
    model = model_for(task, bert).eval()
    with torch.no_grad():
        scores = model.predict(batch)
        assert scores.shape == (3, 32, 2)
        loss, stats = task.loss(model.sums(batch), {"labels": 2.0})
    real = scores[:1, : len(samples[0].ids)]
    starts = F.cross_entropy(real[..., 0], torch.tensor([9]))
    ends = F.cross_entropy(real[..., 1], torch.tensor([10]))
    torch.testing.assert_close(loss, (starts + ends) / 2)
    assert stats["loss"] == loss


def test_spans_stay_inside_the_text(bert: Tokenizer) -> None:
    task = task_for(num_best=50, max_answer_length=2)
    examples = [question("who"), question("who", "tom sat")]
    samples = task.encode(examples, bert, 32)
    batch = task.batch([*(PackedRow([sample]) for sample in samples), PackedRow()], 32, 0)
    output = task.output(torch.zeros(3, 32, 2), batch)
    assert output.shape == (3, 151)
    starts, ends, scores = output[:, 1:].reshape(3, 3, 50).transpose(0, 1).numpy()
    # [CLS] who [SEP] tom sat [SEP]
    known = np.isfinite(scores[1])
    assert sorted(zip(starts[1][known], ends[1][known], strict=True)) == [(3, 3), (3, 4), (4, 4)]
    known = np.isfinite(scores[0])
    assert known.sum() == 19 + 18
    assert starts[0][known].min() == 3
    assert ends[0][known].max() == 21
    assert not np.isfinite(scores[2]).any()


# Predictions and scores


def output_of(task: QuestionAnswering, none: float, *spans: tuple[int, int, float]) -> list[float]:
    """What the device would say of a window."""
    k = task.config.num_best
    padded = [*spans, *[(0, 0, -np.inf)] * (k - len(spans))]
    return [none, *(float(span[column]) for column in range(3) for span in padded)]


def test_predictions_over_windows(bert: Tokenizer) -> None:
    task = task_for(stride=2)
    examples = [question("who", CONTEXT, "sat on", "sat on the"), Question("q2", "who", "the cat")]
    samples = task.encode(examples, bert, 12)
    assert [sample.example for sample in samples] == [0, 0, 0, 1]
    outputs = [
        output_of(task, 9.0, (9, 9, 1.0), (9, 10, 4.0)),  # sat, sat on
        output_of(task, 9.0, (3, 4, 3.0), (5, 7, 5.0)),  # sat on, the old mat
        output_of(task, 9.0),
        output_of(task, 9.0, (3, 4, 0.0)),
    ]
    first, second = task.decode(np.array(outputs, np.float32), samples, examples)
    chances = scipy.special.softmax([5.0, 4.0, 1.0])
    assert first == {
        "id": "q1",
        "question": "who",
        "expected": ["sat on", "sat on the"],
        "answer": "the old mat",
        "probability": pytest.approx(chances[0]),
        "start": CONTEXT.index("the old mat"),
        "candidates": [
            {"text": text, "probability": pytest.approx(chance)}
            for text, chance in zip(("the old mat", "sat on", "sat"), chances, strict=True)
        ],
    }
    assert "expected" not in second
    assert (second["answer"], second["start"], second["probability"]) == ("the cat", 0, 1.0)
    json.dumps([first, second], allow_nan=False)


@pytest.mark.parametrize(("threshold", "answer"), [(0.0, ""), (1.5, "Tom")])
def test_no_answer(bert: Tokenizer, threshold: float, answer: str) -> None:
    task = task_for(no_answer=True, no_answer_threshold=threshold, stride=2)
    samples = task.encode([question("who")], bert, 12)
    outputs = [
        output_of(task, 3.0, (7, 7, 2.0)),
        output_of(task, 5.0),
        output_of(task, 4.0, (5, 5, 1.0)),
    ]
    (said,) = task.decode(np.array(outputs), samples, [question("who")])
    # having none scores 3 (the least of all windows), the best answer 2
    assert said["no_answer_score"] == 1.0
    assert said["answer"] == answer
    assert said["start"] == (15 if answer else None)
    chances = scipy.special.softmax([3.0, 2.0, 1.0])
    assert [one["probability"] for one in said["candidates"]] == pytest.approx(chances.tolist())
    assert [one["text"] for one in said["candidates"]][:2] == ["", "Tom"]
    assert said["probability"] == pytest.approx(chances[0 if not answer else 1])


def test_texts_without_tokens(bert: Tokenizer) -> None:
    examples = [Question("q", "", "")]
    for task in (task_for(), task_for(no_answer=True)):
        samples = task.encode(examples, bert, 12)
        batch = task.batch([PackedRow([samples[0]])], 12, 0)
        (said,) = task.decode(task.output(torch.zeros(1, 12, 2), batch).numpy(), samples, examples)
        assert (said["answer"], said["start"]) == ("", None)
        json.dumps(said, allow_nan=False)


def test_scores_and_tables() -> None:
    examples = [question("a", CONTEXT, "named Tom", "Tom"), question("b", CONTEXT, "old mat")]
    said = [{"answer": "the Tom."}, {"answer": "mat"}]
    assert task_for().score(said, examples) == {
        "exact_match": pytest.approx(1 / 2),
        "f1": pytest.approx((1 + 2 / 3) / 2),
    }
    assert task_for().tables(said, examples) == []
    examples += [question("c"), question("d")]
    said += [{"answer": ""}, {"answer": "Tom"}]
    task = task_for(no_answer=True)
    assert task.score(said, examples) == {
        "exact_match": pytest.approx(2 / 4),
        "f1": pytest.approx((1 + 2 / 3 + 1 + 0) / 4),
        "has_answer_f1": pytest.approx((1 + 2 / 3) / 2),
        "no_answer_accuracy": pytest.approx(1 / 2),
    }
    (table,) = task.tables(said, examples)
    assert table.rows == [["answer", "0.500", "0.833", "2"], ["no answer", "0.500", "0.500", "2"]]
    assert set(task.score(said[:2], examples[:2])) == {"exact_match", "f1", "has_answer_f1"}
    chinese = task_for(normalisation=AnswerNormalisation.cmrc)
    examples = [Question("q", "", "", (Answer("光荣和", None),))]
    assert chinese.score([{"answer": "光荣。"}], examples) == {"exact_match": 0.0, "f1": pytest.approx(4 / 5)}


@pytest.mark.usefixtures("one_thread")
def test_it_learns(bert: Tokenizer) -> None:
    """Who it is that is named, somewhere among other words."""
    generator = np.random.default_rng(0)
    examples = []
    for number in range(120):
        words = [str(word) for word in generator.choice(["the", "cat", "sat", "on", "mat"], 10)]
        place = int(generator.integers(10))
        words[place] = str(generator.choice(["old tom", "tom"]))
        start = len(" ".join([*words[:place], ""]))
        examples.append(Question(str(number), "who", " ".join(words), (Answer(words[place], start),)))
    task = task_for(max_answer_length=2)
    samples = task.encode(examples, bert, 16)
    assert len(samples) == len(examples)
    model = model_for(task, bert)
    rows = ExampleRows(samples, task.batch, sequence_length=16, batch_size=20, pad_id=0, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(150):
        batch = rows.collate([rows.read(step * 20 + i) for i in range(20)])
        loss, _ = task.loss(model.sums(batch), {name: float(n) for name, n in task.count(batch).items()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    everything = task.batch([PackedRow([sample]) for sample in samples], 16, 0)
    with torch.no_grad():
        outputs = task.output(model.predict(everything), everything).numpy()
    assert task.score(task.decode(outputs, samples, examples), examples)["exact_match"] > 0.9
