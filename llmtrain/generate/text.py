"""Text from a model: prompts to samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from llmtrain.data.chat import ChatTemplate, Message
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.generate.decode import Decoder, Finish, Memory, Row
from llmtrain.generate.stream import TextStream
from llmtrain.model.assembled import Assembled
from llmtrain.schema.fields import SampleConfig


@dataclass(frozen=True)
class Sample:
    """What a model has written.

    Attributes:
        text: without the prompt, the token that ended it, or the stop string.
        ids: its tokens; with a stop string those up to its end.
        finish: why it ended.
    """

    text: str
    ids: list[int]
    finish: Finish

    @classmethod
    def of(cls, row: Row) -> Sample:
        """What has become of a row that has ended."""
        assert row.finish is not None
        return cls(row.text.text, row.ids, row.finish)


class Writer:
    """A language model with its tokenizer.

    Args:
        model: causal, in evaluation mode.
        tokenizer: of the model.
        max_positions: tokens that the model can look back on; see `Decoder.window` for what is beyond.
        device: of the model.

    Attributes:
        template: of conversations.
        stop_ids: tokens that end a text: a document, an answer, or what the model's settings name.
    """

    def __init__(
        self, model: Assembled, tokenizer: Tokenizer, max_positions: int, device: torch.device
    ) -> None:
        self.tokenizer, self.vocab_size = tokenizer, model.backbone.vocab_size
        self.decoder = Decoder(model, max_positions, device)
        self.template = ChatTemplate.of(tokenizer)
        self.stop_ids = frozenset(tokenizer.end_ids | self.template.stop_ids(tokenizer))

    def prompt_ids(self, text: str) -> list[int]:
        """Tokens of a prompt, with those that the tokenizer starts a text with; of an empty one those before
        the start of a document."""
        ids = self.tokenizer.start_ids + self.tokenizer.encode(text).tolist()
        return ids or [self.tokenizer.end_id]

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a conversation, up to where the assistant answers."""
        ids: list[int] = self.template.prompt(self.tokenizer, messages).tolist()
        return ids

    def row(self, prompt: list[int], number: int, config: SampleConfig) -> Row:
        """One text that is to be written."""
        text = TextStream(self.tokenizer, prompt, config.stop)
        return Row(prompt, number, text, config, self.stop_ids, self.vocab_size)

    def stream(
        self,
        row: Row,
        config: SampleConfig,
        poll: Callable[[], None] = lambda: None,
        memory: Memory | None = None,
    ) -> Iterator[str]:
        """One text, piece by piece; every piece is whole characters.

        Args:
            row: tells afterwards what has become of it.
            config: how tokens are drawn.
            poll: called before each token; may raise to stop.
            memory: of what the model has read before.
        """
        return (piece for _, piece in self.decoder.write([row], config, poll, memory))

    def write(
        self,
        prompts: Sequence[list[int]],
        config: SampleConfig,
        batch_size: int = 16,
        poll: Callable[[], None] = lambda: None,
    ) -> Iterator[Sample]:
        """The samples of all prompts: `num_samples` of the first, then those of the second, and so on.

        Args:
            prompts: tokens, at least one each.
            config: how tokens are drawn.
            batch_size: texts that are written at once, at most.
            poll: called before each token; may raise to stop.
        """
        wanted = [(prompt, number) for prompt in prompts for number in range(config.num_samples)]
        for start in range(0, len(wanted), batch_size):
            rows = [self.row(prompt, number, config) for prompt, number in wanted[start : start + batch_size]]
            for _ in self.decoder.write(rows, config, poll):
                pass
            yield from map(Sample.of, rows)
