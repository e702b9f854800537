"""Questions from SQuAD's files and from JSON lines, and what is wrong with them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.schema.data import OnError
from llmtrain.schema.load import build
from llmtrain.schema.registry import builtin_registry
from llmtrain.schema.task import AnswerNormalisation, QuestionAnsweringTask
from llmtrain.task.base import Examples
from llmtrain.task.files import task_paths
from llmtrain.task.question_answering import QuestionAnsweringKind
from llmtrain.task.squad import Answer, Question, nearest
from llmtrain.utils.errors import DataError
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
    return build(QuestionAnsweringTask, values["task"] | changes, builtin_registry())


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
