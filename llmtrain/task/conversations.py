"""Conversations from files: prompts and completions, Alpaca's, ShareGPT's and lists of messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.data.chat import ASSISTANT, Message
from llmtrain.data.corpus import shorten
from llmtrain.data.lines import parse_json
from llmtrain.schema.task import ConversationFormat, FileFormat, GenerationTask, Turns
from llmtrain.task.files import ENDINGS, REPAIR, SECTION, Faults, read_json, read_lines, read_rows, text_of
from llmtrain.utils.errors import DataError

USER, SYSTEM, TOOL = "user", "system", "tool"

ROLES: dict[str, str] = {
    **dict.fromkeys(("user", "human"), USER),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "function_call", "tool_call"), ASSISTANT),
    **dict.fromkeys(("tool", "observation", "function_response", "function", "ipython"), TOOL),
    **dict.fromkeys(("system", "developer"), SYSTEM),
}
"""Who speaks, as files call them -> as chat templates do."""

CALLS = ("function_call", "tool_call")
"""Roles of ShareGPT that are answers of the model which call a function."""

CALL = "<tool_call>\n%s\n</tool_call>"
"""How the model calls a function, as in Hermes' and Qwen's templates."""

TOOLS = """\
You may call the functions below. To call one, answer with its name and arguments as a JSON object:
<tool_call>
{"name": ..., "arguments": {...}}
</tool_call>
<tools>
%s
</tools>"""
"""System message of a conversation in which functions may be called."""


@dataclass(frozen=True)
class Conversation:
    """What was said.

    Attributes:
        messages: in turn; the last one is an answer.
        joined: the texts are put behind each other as they are, without a chat template.
        where: it was read: `file:line`.
    """

    messages: tuple[Message, ...]
    joined: bool = False
    where: str = ""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What comes before the first answer."""
        first = next(i for i, one in enumerate(self.messages) if one.role == ASSISTANT)
        return self.messages[:first]


def read_conversations(path: Path, config: GenerationTask, faults: Faults) -> Iterator[Conversation]:
    """Conversations of a file: JSON lines, a JSON list, or (columns only) TSV and CSV.

    Args:
        path: the file.
        config: how to read it.
        faults: takes examples that cannot be read.

    Raises:
        DataError: the file cannot be opened, is empty, or its kind or format is not known.
    """
    form = config.format
    for where, row in _rows(path, config, faults):
        with faults.caught():
            if not isinstance(row, dict):
                raise DataError(f"the example is no object with fields: {shorten(row)}", where, REPAIR)
            own = format_of(row, config, where) if form is ConversationFormat.auto else form
            conversation = finished(READERS[own](row, config, where), own, config, where)
            form = own  # only now: an example that is wrong does not speak for the others
            yield conversation


def format_of(row: Mapping[str, Any], config: GenerationTask, where: str) -> ConversationFormat:
    """The format that the fields of an example speak for.

    Raises:
        DataError: none.
    """
    signs = {
        ConversationFormat.messages: ("messages",),
        ConversationFormat.sharegpt: ("conversations",),
        ConversationFormat.alpaca: ("instruction", "output"),
        ConversationFormat.columns: (config.prompt_column, config.completion_column),
    }
    for form, fields in signs.items():
        if all(field in row for field in fields):
            return form
    raise DataError(
        f"the fields do not tell what is asked and answered: {', '.join(row)}",
        where,
        "set task.prompt_column and task.completion_column; known besides are instruction and output, "
        "conversations, messages",
    )


def finished(
    messages: list[Message], form: ConversationFormat, config: GenerationTask, where: str
) -> Conversation:
    """A conversation that ends with its last answer.

    Raises:
        DataError: there is no answer, or the turns are not those that are to be joined.
    """
    while messages and messages[-1].role != ASSISTANT:
        messages.pop()
    if not messages:
        raise DataError("there is no answer to learn from", where, REPAIR)
    joined = config.turns is Turns.joined or (
        config.turns is Turns.auto and form is ConversationFormat.columns
    )
    if joined and [one.role for one in messages] not in ([USER, ASSISTANT], [ASSISTANT]):
        fix = "set task.turns=chat"
        raise DataError("turns=joined takes one prompt and one answer; this is longer", where, fix)
    if config.system is not None and not joined and messages[0].role != SYSTEM:
        messages.insert(0, Message(SYSTEM, config.system))
    return Conversation(tuple(messages), joined, where)


def _rows(path: Path, config: GenerationTask, faults: Faults) -> Iterator[tuple[str, Any]]:
    """Place and fields of each example."""
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    layout = ENDINGS.get(ending)
    if ending == ".json":
        yield from _json_list(path, faults)
    elif layout is FileFormat.jsonl:
        for where, line in read_lines(path, faults):
            if line.strip():
                with faults.caught():
                    yield where, parse_json(line, where, SECTION)
    elif layout is not None:
        columns = {"prompt_column": config.prompt_column, "completion_column": config.completion_column}
        for row in read_rows(path, columns, faults, layout=layout, header=True, quoting=True):
            yield row.where, {columns[setting]: value for setting, value in row.values.items()}
    else:
        fix = "give a .jsonl, .json, .csv or .tsv file"
        raise DataError(f"the kind of file is not known: {path.name}", str(path), fix)


def _json_list(path: Path, faults: Faults) -> Iterator[tuple[str, Any]]:
    examples = read_json(path)
    if not isinstance(examples, list) or not examples:
        fix = "give a list of objects, or JSON lines in a .jsonl file"
        raise DataError("the file holds no list of examples", str(path), fix)
    for number, one in enumerate(examples, start=1):
        faults.poll()
        yield f"{path}: example {number}", one


def _field(row: Mapping[str, Any], name: str, where: str, default: str | None = None) -> str:
    if row.get(name) is None:
        if default is not None:
            return default
        raise DataError(f"the example has no {name!r}", where, REPAIR)
    return text_of(row[name], where, name)


def _columns(row: Mapping[str, Any], config: GenerationTask, where: str) -> list[Message]:
    prompt = _field(row, config.prompt_column, where)
    completion = _field(row, config.completion_column, where)
    return [Message(USER, prompt), Message(ASSISTANT, completion)]


def _alpaca(row: Mapping[str, Any], config: GenerationTask, where: str) -> list[Message]:
    """Instruction and input are one message, with an empty line between them; `history` comes before."""
    messages = [Message(SYSTEM, text)] if (text := _field(row, "system", where, "")) else []
    for turn in row.get("history") or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise DataError(f"history holds no pair of texts: {shorten(turn)}", where, REPAIR)
        asked, answered = (text_of(one, where, "history") for one in turn)
        messages += [Message(USER, asked), Message(ASSISTANT, answered)]
    asked = "\n\n".join(
        text for name in ("instruction", "input") if (text := _field(row, name, where, "")).strip()
    )
    return [*messages, Message(USER, asked), Message(ASSISTANT, _field(row, "output", where))]


def _sharegpt(row: Mapping[str, Any], config: GenerationTask, where: str) -> list[Message]:
    """Turns of `from` and `value`; calls of functions are answers, and `tools` tells which there are."""
    said = _turns(row, "conversations", ("from", "value"), where)
    messages = [Message(role, CALL % text if name in CALLS else text) for name, role, text in said]
    system = [_field(row, "system", where, "")]
    if messages and messages[0].role == SYSTEM:
        system.append(messages.pop(0).content)
    if tools := row.get("tools"):
        told = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
        system.append(TOOLS % told if told.strip() not in ("", "[]") else "")
    joined = "\n\n".join(filter(None, system))
    return [Message(SYSTEM, joined), *messages] if joined else messages


def _messages(row: Mapping[str, Any], config: GenerationTask, where: str) -> list[Message]:
    """Turns of `role` and `content`."""
    return [Message(role, text) for _, role, text in _turns(row, "messages", ("role", "content"), where)]


def _turns(
    row: Mapping[str, Any], field: str, names: tuple[str, str], where: str
) -> list[tuple[str, str, str]]:
    """Who speaks by the file, who by us, and what is said, turn by turn."""
    turns = row.get(field)
    if isinstance(turns, list) and all(isinstance(one, dict) and "role" in one for one in turns):
        names = ("role", "content")  # OpenAI's spelling is met under ShareGPT's name
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise DataError(f"{field!r} is no list of turns: {shorten(turns)}", where, REPAIR)
    found = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise DataError(f"turn {number} is no object: {shorten(turn)}", where, REPAIR)
        who, what = (turn.get(name) for name in names)
        if what is None and isinstance(turn.get("tool_calls"), list):
            calls = [one.get("function", one) for one in turn["tool_calls"] if isinstance(one, dict)]
            what = "\n".join(CALL % json.dumps(one, ensure_ascii=False) for one in calls)
        if who not in ROLES:
            fix = f"known are {', '.join(ROLES)}; {REPAIR}"
            raise DataError(f"turn {number} is said by {shorten(who)}, whom nobody knows", where, fix)
        found.append((str(who), ROLES[who], text_of(what, where, f"text of turn {number}")))
    return found


READERS: dict[ConversationFormat, Callable[[Mapping[str, Any], GenerationTask, str], list[Message]]] = {
    ConversationFormat.columns: _columns,
    ConversationFormat.alpaca: _alpaca,
    ConversationFormat.sharegpt: _sharegpt,
    ConversationFormat.messages: _messages,
}
"""What an example of each format says."""
