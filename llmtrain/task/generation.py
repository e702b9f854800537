"""Answers to what is asked: instruction tuning of a decoder, with the loss on answers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.chat import ChatIds, ChatTemplate
from llmtrain.data.fill import Poll
from llmtrain.data.samples import PackedRow, Sample, pack_batch
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.model.assembled import Backbone
from llmtrain.model.heads.parts import labelled
from llmtrain.model.heads.vocabulary import LanguageModelHead
from llmtrain.schema.task import GenerationTask, TooLong
from llmtrain.task.base import Examples, Prediction, ScoreTable, nothing_to_ask
from llmtrain.task.conversations import Conversation, read_conversations
from llmtrain.task.files import Faults
from llmtrain.utils.errors import ConfigError, DataError

LABEL_STEPS = 8
"""Places for labels in a row are an eighth of its tokens, or two, and so on: few shapes."""


@dataclass
class AnswerSample(Sample):
    """A conversation as tokens.

    Attributes:
        answer: (n,) bool, tokens that the model is to write.
    """

    answer: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))


class AnswerHead(LanguageModelHead):
    """Scores of the next token, and how many of them are right."""

    sum_names: ClassVar[tuple[str, ...]] = ("loss", "correct")

    def sums(self, hidden_BTD: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Sums over the labelled positions: `loss`, cross-entropies; `correct`, labels that score highest."""
        loss, correct = self.projection.loss(*labelled(hidden_BTD, batch), count_correct=True)
        assert correct is not None
        return {"loss": loss, "correct": correct}


class GenerationKind:
    """Reads conversations; there is nothing to settle."""

    def read(
        self,
        config: GenerationTask,
        paths: Sequence[Path],
        labelled: bool,
        poll: Poll = nothing_to_ask,
    ) -> Examples:
        """Conversations of files; see `read_conversations`.

        Raises:
            DataError: a file or an example cannot be read, with file:line.
        """
        faults = Faults(config.on_error, poll)
        found = [one for path in paths for one in read_conversations(path, config, faults)]
        if not found:
            raise faults.nothing_left("conversation", paths)
        return Examples(found, faults.noted)

    def resolve(self, config: GenerationTask, examples: Examples) -> GenerationTask:
        """The config as it is."""
        return config

    def build(self, config: GenerationTask, causal: bool) -> Generation:
        """The task.

        Raises:
            ConfigError: the backbone looks at both sides of a token.
        """
        if not causal:
            raise ConfigError(
                "a model that looks at both sides of a token cannot write answers",
                "task",
                "take a decoder such as model=gpt/small for init_from",
            )
        return Generation(config)


class Generation:
    """Cross-entropies of the tokens of answers, given all that comes before in their conversation.

    Args:
        config: the task's.

    Attributes:
        labelled_share: labels for each token of the examples encoded last.
    """

    output = None
    """Nothing is kept of the scores: answers are written one token after the other, see `generate`."""

    def __init__(self, config: GenerationTask) -> None:
        self.config = config
        self.labelled_share = 1.0

    def build_head(self, backbone: Backbone) -> AnswerHead:
        """Projection onto the vocabulary."""
        return AnswerHead(backbone)

    def count(self, batch: Batch) -> dict[str, float]:
        """Tokens of answers."""
        assert batch.labels is not None
        return {"labels": int((batch.labels != IGNORE).sum())}

    def loss(self, sums: dict[str, Tensor], counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy over all tokens of answers in the global batch, and the share that is right."""
        loss = sums["loss"] / counts["labels"]
        return loss, {"loss": loss.detach(), "accuracy": sums["correct"] / counts["labels"]}

    def encode(
        self, examples: Sequence[Conversation], tokenizer: Tokenizer, length: int, poll: Poll = nothing_to_ask
    ) -> list[Sample]:
        """One sample for each conversation that has a token to learn within `length`.

        Raises:
            DataError: one is too long and `too_long=fail`, or the chat template does not take it.
        """
        template = ChatTemplate.of(tokenizer)
        samples: list[Sample] = []
        labels = tokens = 0
        for number, one in enumerate(examples):
            poll()
            chat = encode_conversation(one, template, tokenizer)
            cut = max(0, len(chat.ids) - length)
            if cut and self.config.too_long is TooLong.fail:
                raise DataError(
                    f"the example has {len(chat.ids):,} tokens, {cut:,} too many",
                    one.where,
                    "give a longer train.sequence_length, or task.too_long=cut or skip",
                )
            ids, answer = chat.ids[:length], chat.answer[:length]
            if (cut and self.config.too_long is TooLong.skip) or not answer[1:].any():
                continue
            segments = np.zeros(len(ids), np.int64)
            samples.append(AnswerSample(ids, segments, number, cut=cut, answer=answer))
            labels, tokens = labels + int(answer[1:].sum()), tokens + len(ids)
        if not samples:
            what = f"no answer begins within {length} tokens"
            raise DataError(what, "task.paths", "give a longer train.sequence_length")
        self.labelled_share = labels / tokens
        return samples

    def batch(self, rows: Sequence[PackedRow], length: int, pad_id: int) -> Batch:
        """Rows of samples; what is labelled are the positions before the tokens of answers."""
        most = max(1, *(len(row.samples) for row in rows)) if rows else 1
        batch = pack_batch(rows, length, pad_id, most)
        places = [label_places(row) for row in rows]
        step = max(1, length // LABEL_STEPS)
        width = min(length, -(-max(1, *map(len, places)) // step) * step)
        selected = torch.zeros((len(rows), width), dtype=torch.int64)
        labels = torch.full_like(selected, IGNORE)
        for i, found in enumerate(places):
            at = torch.from_numpy(found)
            selected[i, : len(found)] = at
            labels[i, : len(found)] = batch.ids[i, at + 1]
        return replace(batch, selected=selected, labels=labels, segments=None, first=None)

    def decode(
        self, outputs: np.ndarray, samples: Sequence[Sample], examples: Sequence[Conversation]
    ) -> list[Prediction]:
        """No predictions: see `output`."""
        return []

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Conversation]) -> dict[str, float]:
        """Nothing besides what is measured with the loss."""
        return {}

    def tables(self, predictions: Sequence[Prediction], examples: Sequence[Conversation]) -> list[ScoreTable]:
        """None."""
        return []


def label_places(row: PackedRow) -> np.ndarray:
    """Places of a row whose next token is to be predicted, in order, int64."""
    found, start = [np.zeros(0, np.int64)], 0
    for sample in row.samples:
        assert isinstance(sample, AnswerSample)
        found.append(start + np.flatnonzero(sample.answer[1:]))
        start += len(sample.ids)
    return np.concatenate(found)


def encode_conversation(one: Conversation, template: ChatTemplate, tokenizer: Tokenizer) -> ChatIds:
    """A conversation as tokens, by the chat template or with prompt and completion behind each other.

    What is joined ends with the token that ends a document, and starts with it if there is no prompt.

    Raises:
        DataError: the template does not take it; names the place of the conversation.
    """
    if not one.joined:
        try:
            return template.encode(tokenizer, one.messages)
        except DataError as error:
            error.problems = [replace(problem, where=one.where) for problem in error.problems]
            raise
    asked = prompt_tokens(one, template, tokenizer)
    answer = np.append(tokenizer.encode(one.messages[-1].content), tokenizer.end_id)
    ids = np.concatenate([asked, answer]).astype(np.int64)
    return ChatIds(ids, np.arange(len(ids)) >= len(asked))


def prompt_tokens(one: Conversation, template: ChatTemplate, tokenizer: Tokenizer) -> np.ndarray:
    """What a conversation begins with, up to where its first answer is to be written, (n,) int64."""
    if not one.joined:
        return template.encode(tokenizer, one.prompt, answer_next=True).ids
    text = "".join(message.content for message in one.prompt)
    ids = np.append(np.array(tokenizer.start_ids, np.int64), tokenizer.encode(text).astype(np.int64))
    return ids if len(ids) else np.array([tokenizer.end_id], np.int64)
