"""Conversations as text and as tokens, by the Jinja template that comes with a tokenizer.

Templates are strangers' programs: they run in Jinja's immutable sandbox, with the names and filters that
Hugging Face's tools give them, and see nothing but strings. Special tokens that a template writes become
their ids; the same characters inside a message are text, so that nobody can write a turn for somebody else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

from llmtrain.data.tokenizer import Tokenizer
from llmtrain.utils.errors import DataError

ASSISTANT = "assistant"
"""Role of the model."""

PLAIN = """\
{% for message in messages %}
{% if message.role == 'system' %}
{{ message.content }}

{% elif message.role == 'assistant' %}
### Response:
{{ message.content }}{{ eos_token }}

{% else %}
### {{ 'Instruction' if message.role == 'user' else message.role | capitalize }}:
{{ message.content }}

{% endif %}
{% endfor %}
{% if add_generation_prompt %}
### Response:
{% endif %}
"""
"""Template for tokenizers without one: it needs no special token but the one that ends a document."""

NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Code points that Unicode keeps free for use inside programs."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: who speaks: system, user, assistant, or what else the template knows.
        content: what is said.
    """

    role: str
    content: str


@dataclass(frozen=True)
class ChatIds:
    """A conversation as tokens.

    Attributes:
        ids: (n,) int64.
        answer: (n,) bool, the tokens that the model writes: what the assistant says, and what ends its turn.
    """

    ids: np.ndarray
    answer: np.ndarray


class ChatTemplate:
    """A conversation's way to text.

    Args:
        text: the template, in Jinja.
        special: what the template knows special tokens by, such as `eos_token` -> `</s>`.
        where: the template comes from, for messages.

    Attributes:
        plain: whether it is `PLAIN`, for want of the tokenizer's own.
    """

    def __init__(
        self, text: str, special: Mapping[str, str] | None = None, where: str = "the chat template"
    ) -> None:
        self.text, self.special, self.where = text, dict(special or {}), where
        self.plain = text == PLAIN

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTemplate:
        """The template of a tokenizer, or else the plain one."""
        return cls(tokenizer.chat_template or PLAIN, tokenizer.named_tokens)

    def render(self, messages: Sequence[Message], *, answer_next: bool) -> str:
        """The text of a conversation.

        Args:
            messages: so far.
            answer_next: end it with what stands before an answer of the assistant.

        Raises:
            DataError: the template is broken, or does not take these messages.
        """
        return self._render(messages, answer_next)[0]

    def prompt(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> np.ndarray:
        """The tokens of a conversation up to where the assistant answers, (n,) int64.

        Raises:
            DataError: see `render`.
        """
        guard = Guard(tokenizer, messages)
        return guard.encode(self._render(guard.hide(messages), True)[0])[0]

    def encode(
        self, tokenizer: Tokenizer, messages: Sequence[Message], *, answer_next: bool = False
    ) -> ChatIds:
        """The tokens of a conversation, and which of them the model is to write.

        Where a template has no `{% generation %}` blocks, an answer is what is added to the text by it: it
        starts where a conversation without it, that asks for it, ends.

        Args:
            tokenizer: whose special tokens the template writes.
            messages: the conversation.
            answer_next: see `render`.

        Raises:
            DataError: see `render`; or what the template adds for an answer cannot be told.
        """
        guard = Guard(tokenizer, messages)
        hidden = guard.hide(messages)
        text, spans = self._render(hidden, answer_next)
        if "generation" not in self._tags:
            spans = [
                self._answer(guard, hidden, number, text)
                for number, message in enumerate(hidden)
                if message.role == ASSISTANT
            ]
        ids, offsets = guard.encode(text)
        answer = np.zeros(len(ids), bool)
        for span in spans:
            start, stop = (len(guard.reveal(text[:place])) for place in span)
            # A token without characters of its own (a piece of one, say) counts where it stands.
            answer |= (offsets[:, 0] < stop) & (np.maximum(offsets[:, 1], offsets[:, 0] + 1) > start)
        return ChatIds(ids, answer)

    def stop_ids(self, tokenizer: Tokenizer) -> set[int]:
        """Id of the special token that ends a turn of the assistant; none where there is no such token."""
        try:
            chat = self.encode(tokenizer, [Message("user", "a"), Message(ASSISTANT, "b")])
        except DataError:  # a template that wants other turns does not tell
            return set()
        return set(chat.ids[chat.answer][-1:].tolist()) & tokenizer.special_ids.keys()

    def _answer(self, guard: Guard, messages: Sequence[Message], number: int, text: str) -> tuple[int, int]:
        """Where one message of the assistant stands in the text of all."""
        before = self._render(messages[:number], True)[0]
        if not text.startswith(before):
            self._untold(number)
        start = len(before)
        through = self._render(messages[: number + 1], False)[0]
        if text.startswith(through) and len(through) > start:
            # What a template writes behind the token that ends a turn is not the model's: it stops there.
            ends = [place.end() for place in guard.special.finditer(text, start, len(through))]
            ended = bool(ends) and not text[ends[-1] : len(through)].strip()
            return start, ends[-1] if ended else len(through)
        # Some templates write the last answer otherwise than those before it: then the turn's end tells.
        end = guard.special.search(text, start)
        if end is None or messages[number].content.strip() not in text[start : end.start()]:
            self._untold(number)
        return start, end.end()

    def _untold(self, number: int) -> NoReturn:
        raise DataError(
            f"the chat template does not tell which part of the text is the answer in message {number + 1}",
            self.where,
            "put {% generation %} ... {% endgeneration %} around answers in the template",
        )

    def _render(self, messages: Sequence[Message], answer_next: bool) -> tuple[str, list[tuple[int, int]]]:
        """The text, and where its `{% generation %}` blocks stand."""
        template, (start, stop) = self._compiled, NONCHARACTERS[-2:]
        try:
            text = template.render(
                messages=[{"role": str(one.role), "content": str(one.content)} for one in messages],
                tools=None,
                documents=None,
                add_generation_prompt=answer_next,
                **self.special,
            )
        except Exception as error:  # whatever a stranger's program may do
            self._broken(error)
        if start not in text:
            return text, []
        parts, spans, length = re.split(f"([{start}{stop}])", text), [], 0
        for part in parts:
            if part == start:
                opened = length
            elif part == stop:
                spans.append((opened, length))
            else:
                length += len(part)
        return re.sub(f"[{start}{stop}]", "", text), spans

    def _broken(self, error: Exception) -> NoReturn:
        fix = "give messages as the template wants them, or repair it"
        line = getattr(error, "lineno", None)
        where = self.where if line is None else f"{self.where}, line {line}"
        raise DataError(f"the chat template cannot be used: {error}", where, fix) from error

    @cached_property
    def _tags(self) -> set[str]:
        """Names of the tags in the template."""
        return set(re.findall(r"\{%[-+]?\s*(\w+)", self.text))

    @cached_property
    def _compiled(self) -> Any:
        """The template, ready to be rendered."""
        import jinja2

        try:
            return _environment().from_string(self.text)
        except jinja2.TemplateError as error:
            self._broken(error)


def _environment() -> Any:
    """What templates run in: names, filters and tags as in Hugging Face's tools."""
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` ... `{% endgeneration %}`: what stands between is written by the model."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 has it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("marked"), [], [], body).set_lineno(line)

        def marked(self, caller: Any) -> str:
            start, stop = NONCHARACTERS[-2:]
            return f"{start}{caller()}{stop}"

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class Guard:
    """Keeps special tokens that are spelled out in messages from becoming their ids.

    While a template is rendered they are hidden behind a stand-in of characters that no text has.

    Args:
        tokenizer: whose special tokens they are.
        messages: to choose the stand-in for.

    Attributes:
        special: finds special tokens that are not hidden.
    """

    def __init__(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
        self.tokenizer = tokenizer
        self.names = sorted(tokenizer.special_ids.values(), key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, self.names)) or r"(?!)")
        used = {char for one in messages for char in one.role + one.content if char in NONCHARACTERS}
        free = [char for char in NONCHARACTERS[:-2] if char not in used]
        if not free or used & set(NONCHARACTERS[-2:]):
            raise DataError(
                "a message has code points that are no characters", "U+FDD0 to U+FDEF", "remove them"
            )
        self.mark = free[0]
        self.hidden = re.compile(f"{self.mark}([0-9]+){self.mark}")

    def hide(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with stand-ins."""

        def stand_in(found: re.Match[str]) -> str:
            return f"{self.mark}{self.names.index(found[0])}{self.mark}"

        return [
            Message(self.special.sub(stand_in, one.role), self.special.sub(stand_in, one.content))
            for one in messages
        ]

    def reveal(self, text: str) -> str:
        """The text as it was."""
        return self.hidden.sub(lambda found: self.names[int(found[1])], text)

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a rendered text, (n,) int64, and where they stand in the revealed one, (n, 2) int64."""
        found, length = [], 0
        for part in self._parts(text):
            plain = self.reveal(part)
            marked = plain == part  # nothing is hidden in it
            ids, offsets = self.tokenizer.encode_marked(plain) if marked else self._as_text(plain)
            found.append((ids, offsets + length))
            length += len(plain)
        if not found:
            return np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
        return np.concatenate([ids for ids, _ in found]), np.concatenate([places for _, places in found])

    def _as_text(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        return self.tokenizer.encode_offsets([text])[0]

    def _parts(self, text: str) -> Iterator[str]:
        """Stretches between special tokens that hide something, and the stretches between these."""
        done = 0
        borders = [0, *(edge for one in self.special.finditer(text) for edge in one.span()), len(text)]
        for start, stop in zip(borders[::2], borders[1::2], strict=True):
            if self.mark in text[start:stop]:
                yield from (part for part in (text[done:start], text[start:stop]) if part)
                done = stop
        if done < len(text):
            yield text[done:]
