"""Talking with a model, turn by turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from llmtrain.data.chat import ASSISTANT, Message
from llmtrain.generate.decode import Memory, Row
from llmtrain.generate.text import Writer
from llmtrain.schema.fields import SampleConfig

NEXT_TURN = "\n###"
"""What a model that was not taught to stop goes on with, where turns are marked by the plain template."""


class Conversation:
    """What was said so far. The model reads only what is new in each turn.

    Args:
        writer: the model.
        sample: how tokens are drawn; an answer has `max_new_tokens` at most.
        system: what the conversation starts with.

    Attributes:
        messages: so far; what no longer fits is not among them.
        dropped: messages that were taken out for the last answer, since the model cannot look back so far.
        row: the last answer in the making.
    """

    def __init__(self, writer: Writer, sample: SampleConfig, system: str | None = None) -> None:
        stops = [NEXT_TURN] if writer.template.plain else []
        self._writer = writer
        self._sample = replace(sample, num_samples=1, stop=[*sample.stop, *stops])
        self._memory = Memory()
        self.dropped = 0
        self.row: Row | None = None
        self.reset(system)

    def reset(self, system: str | None = None) -> None:
        """Start anew."""
        self.messages = [] if system is None else [Message("system", system)]

    def say(self, text: str, poll: Callable[[], None] = lambda: None) -> Iterator[str]:
        """Say something, and get the answer piece by piece.

        Args:
            text: what the user says.
            poll: called before each token; may raise to end the answer, of which what was said so far counts.

        Raises:
            DataError: the chat template does not take the conversation; it is as it was then.
        """
        asked = [*self.messages, Message("user", text)]
        prompt, asked = self._fitting(asked)
        self.messages = asked
        self.row = self._writer.row(prompt, 0, self._sample)
        started = False
        try:
            for piece in self._writer.stream(self.row, self._sample, poll, self._memory):
                piece = piece if started else piece.lstrip()
                started = started or bool(piece)
                if piece:
                    yield piece
        except BaseException:
            self._memory = Memory()  # what it holds is not known if it was left in the middle
            raise
        finally:
            self.messages = [*asked, Message(ASSISTANT, self.row.text.text.strip())]

    def _fitting(self, messages: list[Message]) -> tuple[list[int], list[Message]]:
        """Tokens of a conversation, without its oldest turns where it leaves no room for an answer.

        A quarter of what the model can look back on is kept for the answer, or less if it is to be shorter.
        """
        most = self._writer.decoder.max_positions
        room = min(self._sample.max_new_tokens, most // 4)
        first = int(messages[0].role == "system")
        ids = self._writer.chat_ids(messages)
        self.dropped = 0
        while len(ids) + room > most and len(messages) > first + 2:
            messages = messages[:first] + messages[first + 2 :]
            self.dropped += 2
            ids = self._writer.chat_ids(messages)
        return ids, messages
