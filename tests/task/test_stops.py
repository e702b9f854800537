"""A stop is heard while examples are read and while they are encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmtrain.data import wordpiece
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.schema.task import ClassificationTask, QuestionAnsweringTask, TokenClassificationTask
from llmtrain.task.base import BLOCK, in_blocks
from llmtrain.task.build import TASKS
from llmtrain.utils.errors import ExitCode, Stopped
from tests.helpers.tasks import write_classification, write_entities, write_questions

WRITERS: dict[type, tuple[Any, str]] = {
    ClassificationTask: (write_classification, "a.tsv"),
    TokenClassificationTask: (write_entities, "a.txt"),
    QuestionAnsweringTask: (write_questions, "a.json"),
}


class Asked:
    """Counts how often it is asked, and asks to stop from some call on."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls = 0
        self.stop_at = stop_at

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.stop_at:
            raise Stopped(ExitCode.TERMINATED)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    inner = wordpiece.from_vocab([*wordpiece.SPECIAL_TOKENS, "a", "the"], lowercase=True)
    return Tokenizer(inner, kind="wordpiece", end_token="[SEP]")


@pytest.mark.parametrize("schema", list(WRITERS), ids=lambda schema: schema.__name__)
def test_reading_and_encoding(schema: type, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write, name = WRITERS[schema]
    path, kind, config = write(tmp_path / name, 40), TASKS[schema], schema()
    whole = Asked()
    examples = kind.read(config, [path], labelled=True, poll=whole)
    assert whole.calls >= len(examples.items)
    with pytest.raises(Stopped):
        kind.read(config, [path], labelled=True, poll=Asked(20))
    task = kind.build(kind.resolve(config, examples), causal=False)
    whole = Asked()
    task.encode(examples.items, tokenizer, 32, whole)
    assert whole.calls > len(examples.items)
    for call in (1, whole.calls):
        with pytest.raises(Stopped):
            task.encode(examples.items, tokenizer, 32, Asked(call))


@pytest.mark.parametrize("num", [0, 1, BLOCK, BLOCK + 1, 3 * BLOCK - 1])
def test_blocks_are_what_they_are_together(num: int) -> None:
    texts, asked = [str(i) for i in range(num)], Asked()
    sizes: list[int] = []

    def encode(block: list[str]) -> list[int]:
        sizes.append(len(block))
        return [int(text) for text in block]

    assert in_blocks(encode, texts, asked) == list(range(num))
    assert asked.calls == len(sizes) == -(-num // BLOCK)
    assert max(sizes, default=0) <= BLOCK
