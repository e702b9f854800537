"""Conversations: what is read, what is learned of it, and that packing changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmtrain.data.batch import IGNORE
from llmtrain.data.chat import ASSISTANT, Message
from llmtrain.data.samples import PackedRow
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.tokenizer_build import bytes_tokenizer
from llmtrain.schema.data import OnError
from llmtrain.schema.task import ConversationFormat, GenerationTask, TooLong, Turns
from llmtrain.schema.tokenizer import BytesTokenizer
from llmtrain.task.conversations import Conversation
from llmtrain.task.generation import AnswerSample, Generation, GenerationKind
from llmtrain.utils.errors import ConfigError, DataError
from tests.helpers.models import make_model, small_config


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return bytes_tokenizer(BytesTokenizer())


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, **settings: Any) -> list[Conversation]:
    return GenerationKind().read(GenerationTask(**settings), [path], labelled=True).items


ASKED, ANSWERED = Message("user", "How many?"), Message("assistant", "Two.")
SAME: dict[str, Any] = {
    "columns": {"prompt": "How many?", "completion": "Two."},
    "alpaca": {"instruction": "How many?", "input": "", "output": "Two."},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Two."}]
    },
    "messages": {
        "messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Two."}]
    },
}


@pytest.mark.parametrize("form", SAME)
@pytest.mark.parametrize("given", ["auto", "own"])
@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_each_format_is_told_by_its_fields(tmp_path: Path, form: str, given: str, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    row = SAME[form]
    path.write_text(
        json.dumps([row, row]) if ending == ".json" else f"{json.dumps(row)}\n\n{json.dumps(row)}\n"
    )
    first, second = read(path, **({"format": ConversationFormat(form)} if given == "own" else {}))
    assert first.messages == second.messages == (ASKED, ANSWERED)
    assert first.joined == (form == "columns")
    assert second.where == (f"{path}: example 2" if ending == ".json" else f"{path}:3")


def test_columns_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,reply\n"How many?",Two.\n')
    (one,) = read(path, prompt_column="question", completion_column="reply")
    assert one.messages == (ASKED, ANSWERED)


def test_calls_of_functions_are_answers(tmp_path: Path) -> None:
    tools = '[{"name": "count"}]'
    turns = [
        ("human", "How many?"),
        ("function_call", '{"name": "count"}'),
        ("observation", "2"),
        ("gpt", "Two."),
        ("human", "Thanks"),
    ]
    row = {"conversations": [{"from": who, "value": what} for who, what in turns], "tools": tools}
    (one,) = read(write(tmp_path / "a.jsonl", row))
    assert [message.role for message in one.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert tools in one.messages[0].content
    assert one.messages[2].content == '<tool_call>\n{"name": "count"}\n</tool_call>'
    assert one.prompt == one.messages[:2]


def test_alpaca_with_input_history_and_system(tmp_path: Path) -> None:
    row = {
        "instruction": "Add.",
        "input": "1 1",
        "output": "2",
        "history": [["Hi", "Hello"]],
        "system": "Be brief.",
    }
    (one,) = read(write(tmp_path / "a.jsonl", row))
    said = ["Be brief.", "Hi", "Hello", "Add.\n\n1 1", "2"]
    assert [message.content for message in one.messages] == said
    (other,) = read(write(tmp_path / "b.jsonl", SAME["alpaca"]), system="Be kind.")
    assert other.messages[0] == Message("system", "Be kind.")


WRONG: dict[str, tuple[Any, str]] = {
    "unknown fields": ({"question": "a", "answer": "b"}, "the fields do not tell"),
    "no text": ({"instruction": "a", "output": 3}, "output is not a text"),
    "unknown speaker": (
        {"messages": [{"role": "wizard", "content": "a"}]},
        "said by 'wizard'|said by wizard|wizard",
    ),
    "no answer": ({"messages": [{"role": "user", "content": "a"}]}, "no answer to learn from"),
    "no turns": ({"conversations": "a"}, "no list of turns"),
    "no object": ([1], "no object with fields"),
    "nothing": ({"messages": [{"role": "assistant"}]}, "is not a text"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_with_its_line_or_left_out(tmp_path: Path, name: str) -> None:
    row, words = WRONG[name]
    path = (
        write(tmp_path / "a.jsonl", SAME["messages"], row)
        if name == "no answer"
        else write(tmp_path / "a.jsonl", row)
    )
    with pytest.raises(DataError, match=words) as caught:
        read(path)
    assert caught.value.problems[0].where.startswith(str(path))
    path = write(tmp_path / "b.jsonl", row, SAME["messages"])
    found = GenerationKind().read(GenerationTask(on_error=OnError.skip), [path], labelled=True)
    assert len(found.items) == 1
    assert found.skipped[0].startswith(f"{path}:1: ")


def test_conversations_cannot_be_joined(tmp_path: Path) -> None:
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant") * 2]
    with pytest.raises(DataError, match="one prompt and one answer"):
        read(write(tmp_path / "a.jsonl", {"messages": turns}), turns=Turns.joined)


def test_an_encoder_cannot_answer() -> None:
    with pytest.raises(ConfigError, match="looks at both sides"):
        GenerationKind().build(GenerationTask(), causal=False)


def learned(task: Generation, samples: list[Any], tokenizer: Tokenizer, length: int = 256) -> list[str]:
    """What the labels of each sample spell, from a batch with all of them in one row."""
    batch = task.batch([PackedRow(samples)], sum(len(one.ids) for one in samples), 0)
    assert batch.labels is not None
    assert batch.selected is not None
    assert batch.documents is not None
    kept = batch.labels[0] != IGNORE
    numbers = batch.documents[0, batch.selected[0]]
    return [tokenizer.decode(batch.labels[0, kept & (numbers == k)].numpy()) for k in range(len(samples))]


def test_only_answers_are_learned(tokenizer: Tokenizer) -> None:
    task = Generation(GenerationTask())
    end = tokenizer.decode([tokenizer.end_id])
    talk = (
        Message("system", "Be brief."),
        ASKED,
        ANSWERED,
        Message("user", "Sure?"),
        Message(ASSISTANT, "Yes."),
    )
    examples = [
        Conversation(talk),
        Conversation((ASKED, ANSWERED), joined=True),
        Conversation((ANSWERED,), joined=True),
    ]
    samples = task.encode(examples, tokenizer, 256)
    assert learned(task, samples, tokenizer) == [f"Two.{end}Yes.{end}", f"Two.{end}", f"Two.{end}"]
    told = tokenizer.decode(samples[1].ids)
    assert told == f"How many?Two.{end}"
    assert samples[2].ids[0] == tokenizer.end_id  # there is nothing else to start from
    labels = 4 * len("Two.") + 4  # each answer has an end
    assert task.labelled_share == labels / sum(len(one.ids) for one in samples)


@pytest.mark.parametrize("policy", TooLong)
def test_what_is_too_long_is_cut_skipped_or_refused(tokenizer: Tokenizer, policy: TooLong) -> None:
    short = Conversation((Message("user", "a"), Message(ASSISTANT, "b")), True, "f:1")
    cut = Conversation((Message("user", "a"), Message(ASSISTANT, "b" * 20)), True, "f:2")
    hidden = Conversation((Message("user", "a" * 20), Message(ASSISTANT, "b")), True, "f:3")
    task = Generation(GenerationTask(too_long=policy))
    if policy is TooLong.fail:
        with pytest.raises(DataError, match="22 tokens, 12 too many"):
            task.encode([short, cut, hidden], tokenizer, 10)
        return
    samples = task.encode([short, cut, hidden], tokenizer, 10)
    assert [one.number for one in samples] == ([0, 1] if policy is TooLong.cut else [0])
    assert [one.cut for one in samples] == ([0, 12] if policy is TooLong.cut else [0])
    with pytest.raises(DataError, match="no answer begins within 10 tokens"):
        task.encode([hidden], tokenizer, 10)


def test_packed_conversations_are_as_good_as_alone() -> None:
    """Losses and gradients of conversations in one row are those of each by itself."""
    chooser = np.random.default_rng(0)
    samples: list[Any] = []
    for length in (5, 9, 2, 8):
        ids = chooser.integers(0, 50, length)
        answer = chooser.random(length) < 0.5
        answer[-1] = True
        samples.append(AnswerSample(ids, np.zeros(length, np.int64), answer=answer))
    task = Generation(GenerationTask())
    for position in ("learned", "rotary"):
        model = make_model(small_config(position=position), build_head=task.build_head)
        packed = model.sums(task.batch([PackedRow(samples)], 32, 0))
        alone = [model.sums(task.batch([PackedRow([one])], 16, 0)) for one in samples]
        for name in ("loss", "correct"):
            whole = sum(one[name] for one in alone)
            torch.testing.assert_close(packed[name], whole, rtol=1e-5, atol=1e-5)
        own, other = (
            torch.autograd.grad(loss, list(model.parameters()))
            for loss in (packed["loss"], sum(one["loss"] for one in alone))
        )
        for one, two in zip(own, other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
