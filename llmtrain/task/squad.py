"""Questions on texts, from files in SQuAD's JSON layout and from JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.data.corpus import shorten
from llmtrain.data.lines import parse_json
from llmtrain.schema.task import QuestionAnsweringTask
from llmtrain.task.files import REPAIR, SECTION, Faults, read_json, read_lines, text_of
from llmtrain.utils.errors import DataError


@dataclass(frozen=True)
class Answer:
    """A reference answer.

    Attributes:
        text: as in the file; scores go by it.
        start: character of the context at which it stands, or None where it does not stand there at all.
    """

    text: str
    start: int | None


@dataclass(frozen=True)
class Question:
    """A question on a text.

    Attributes:
        id: of the question.
        question: its text.
        context: the text that holds the answer.
        answers: reference answers, empty where the text answers nothing; None where they are not known.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None = None


class SquadReader:
    """Reads files and counts what had to be repaired.

    An answer that does not stand at its `answer_start` is looked for: the nearest place where it stands
    is taken. If there is none, that is a fault of the answer: where faults are left out, the answer still
    counts as a reference in the scores, as in the official scripts, but nothing is learned from it.

    Args:
        config: says whether questions may have no answer.
        labelled: whether answers are read.
        faults: takes questions and answers that cannot be used.

    Attributes:
        repaired: places of the answers that were found elsewhere.
    """

    def __init__(self, config: QuestionAnsweringTask, labelled: bool, faults: Faults) -> None:
        self.config = config
        self.labelled = labelled
        self.faults = faults
        self.repaired: list[str] = []

    def read(self, path: Path) -> Iterator[Question]:
        """Questions of a file: .json in SQuAD's layout, or (without answers) .jsonl with the fields
        question, context and, if need be, id (default: the number of the line).

        Raises:
            DataError: the file cannot be read, or is of another kind; without `on_error=skip` also for
                the first broken question or answer.
        """
        ending = Path(path.name.removesuffix(".gz")).suffix.lower()
        if ending == ".jsonl" and not self.labelled:
            yield from self._json_lines(path)
        elif ending == ".json":
            yield from self._squad(path)
        else:
            more = "" if self.labelled else ", or .jsonl with question and context on each line"
            fix = f"give a .json file in SQuAD's layout{more}"
            raise DataError(f"questions are not read from {path.name}", str(path), fix)

    def _json_lines(self, path: Path) -> Iterator[Question]:
        for where, line in read_lines(path, self.faults):
            if line.strip():
                found = None
                with self.faults.caught():
                    row = parse_json(line, where, SECTION)
                    question, context = _text(row, "question", where), _text(row, "context", where)
                    found = Question(str(row.get("id", where.rpartition(":")[2])), question, context)
                if found:
                    yield found

    def _squad(self, path: Path) -> Iterator[Question]:
        root = read_json(path)
        for i, article in enumerate(_items(root, "data", str(path))):
            for k, paragraph in enumerate(_items(article, "paragraphs", f"{path}: data[{i}]")):
                where = f"{path}: data[{i}].paragraphs[{k}]"
                questions = _items(paragraph, "qas", where)
                context = _text(paragraph, "context", where)
                for n, item in enumerate(questions):
                    self.faults.poll()
                    found = None
                    with self.faults.caught():
                        found = self._question(item, context, f"{where}.qas[{n}]", str(path))
                    if found:
                        yield found

    def _question(self, item: Any, context: str, where: str, path: str) -> Question:
        text = _text(item, "question", where)
        if not isinstance(item.get("id"), str | int):
            raise DataError("the question has no id", where, REPAIR)
        name = str(item["id"])
        if not self.labelled:
            return Question(name, text, context)
        place = f"{path}: id {name}"
        answers = [] if item.get("is_impossible") is True else _items(item, "answers", place)
        if not answers and not self.config.no_answer:
            fix = "set task.no_answer=true for data with such questions, or task.on_error=skip"
            raise DataError("the question has no answer", place, fix)
        return Question(name, text, context, tuple(self._answer(one, context, place) for one in answers))

    def _answer(self, item: Any, context: str, where: str) -> Answer:
        text = _text(item, "text", where)
        start = item.get("answer_start")
        if not text.strip() or not isinstance(start, int):
            raise DataError(f"an answer needs a text and answer_start: {shorten(item)}", where, REPAIR)
        if start >= 0 and context.startswith(text, start):
            return Answer(text, start)
        found = nearest(context, text, start)
        if found is None:
            there = context[start : start + len(text)] if start >= 0 else ""
            what = f"at answer_start {start} stands {shorten(there)}; the answer {shorten(text)} is nowhere"
            fix = "repair the answer, or set task.on_error=skip to learn nothing from it"
            self.faults.add(DataError(what, where, fix))
        else:
            self.repaired.append(f"{where}: answer_start {start}, taken as {found}")
        return Answer(text, found)


def nearest(context: str, text: str, start: int) -> int | None:
    """Place at which a text stands that is nearest to `start` (the earlier of two), or None."""
    best = None
    place = context.find(text)
    while place >= 0 and (best is None or abs(place - start) < abs(best - start)):
        best = place
        place = context.find(text, place + 1)
    return best


def _items(parent: Any, key: str, where: str) -> list[Any]:
    """The list under a key.

    Raises:
        DataError: there is none.
    """
    items = parent.get(key) if isinstance(parent, dict) else None
    if not isinstance(items, list):
        layout = 'use SQuAD\'s layout: {"data": [{"paragraphs": [{"context": ..., "qas": [{"question": ...'
        raise DataError(f"there is no list {key!r}", where, f"{layout}, or repair the file")
    return items


def _text(parent: Any, key: str, where: str) -> str:
    """The text under a key, as it is: places in it are counted in its characters.

    Raises:
        DataError: there is none.
    """
    value: Any = parent.get(key) if isinstance(parent, dict) else None
    text_of(value, where, key)
    return str(value)
