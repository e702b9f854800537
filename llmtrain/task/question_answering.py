"""The span of a text that answers a question (extractive question answering, Rajpurkar et al. 2016).

A text that does not fit behind its question is read in windows that overlap by `stride` tokens: so it is
an overlap, as in Hugging Face's tools, and not the step of BERT's `run_squad.py` (`doc_stride`). The best
answer over all windows counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.fill import Poll
from llmtrain.data.samples import Frame, PackedRow, Sample, pack_batch
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.metrics.answers import AnswerScore, cmrc_score, squad_score
from llmtrain.model.assembled import Backbone
from llmtrain.model.heads.examples import SpanHead
from llmtrain.schema.task import AnswerNormalisation, QuestionAnsweringTask
from llmtrain.task.answers import best_spans, candidates, softmax
from llmtrain.task.base import Examples, Prediction, ScoreTable, in_blocks, nothing_to_ask, plain
from llmtrain.task.files import Faults
from llmtrain.task.squad import Answer, Question, SquadReader
from llmtrain.utils.errors import ConfigError


@dataclass
class WindowSample(Sample):
    """A question and a part of its context: `[CLS] question [SEP] part [SEP]`.

    `label` holds the positions of the first and last token of the answer, both 0 for none; it is None
    where that is not known: such a sample is no part of the loss.

    Attributes:
        example: number of the question.
        shift: position of the part's first token.
        offsets: (n, 2) int64, characters of the context at which each token of the part starts and ends.
    """

    example: int = 0
    shift: int = 0
    offsets: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))


class QuestionAnsweringKind:
    """Reads questions; there is nothing to settle."""

    def read(
        self,
        config: QuestionAnsweringTask,
        paths: Sequence[Path],
        labelled: bool,
        poll: Poll = nothing_to_ask,
    ) -> Examples:
        """Questions of SQuAD's JSON or (unlabelled) of JSON lines with `question` and `context`.

        Answers at wrong places are repaired where possible, see `SquadReader`; `skipped` has a line about
        them too.

        Raises:
            DataError: a file, a question or an answer cannot be used; names file and id, or file and line.
        """
        faults = Faults(config.on_error, poll)
        questions: list[Question] = []
        repairs = []
        for path in paths:
            reader = SquadReader(config, labelled, faults)
            questions += reader.read(path)
            if reader.repaired:
                what = "answers repaired that stand elsewhere in their text; the first"
                repairs.append(f"{path}: {len(reader.repaired)} {what}: {reader.repaired[0]}")
        if not questions:
            raise faults.nothing_left("question", paths)
        return Examples(questions, repairs + faults.noted)

    def resolve(self, config: QuestionAnsweringTask, examples: Examples) -> QuestionAnsweringTask:
        """The config as it is."""
        return config

    def build(self, config: QuestionAnsweringTask, causal: bool) -> QuestionAnswering:
        """The task.

        Raises:
            ConfigError: the backbone is causal: a token would not know what follows it.
        """
        if causal:
            raise ConfigError(
                "question answering marks a span, for which a model must look in both directions",
                "task",
                "take an encoder such as model=bert/small for init_from",
            )
        return QuestionAnswering(config)


class QuestionAnswering:
    """Cross-entropies of the positions at which the answer starts and ends.

    Args:
        config: the task's.
    """

    labelled_share = 1.0
    """Each position is scored as a start and an end."""

    def __init__(self, config: QuestionAnsweringTask) -> None:
        self.config = config

    def build_head(self, backbone: Backbone) -> SpanHead:
        """Two scores for each position."""
        return SpanHead(backbone)

    def count(self, batch: Batch) -> dict[str, float]:
        """Starts and ends."""
        assert batch.labels is not None
        return {"labels": int((batch.labels != IGNORE).sum())}

    def loss(self, sums: dict[str, Tensor], counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy over all starts and ends of the global batch."""
        loss = sums["loss"] / counts["labels"]
        return loss, {"loss": loss.detach()}

    def encode(
        self, examples: Sequence[Question], tokenizer: Tokenizer, length: int, poll: Poll = nothing_to_ask
    ) -> list[Sample]:
        """One sample for each window.

        A window that does not hold the whole answer is labelled with its first position, [CLS], as in
        BERT's `run_squad.py`, whether or not questions may have no answer: the best answer over all
        windows counts, so a model must learn to score low where there is none. (Without a label for such
        windows a small model was right on 86 % of made-up texts of two windows, with it on 94 %; means of
        5 seeds.) There is no label where it is not known whether a window holds the answer. Of several
        reference answers the first with a known place is the label. The first window of a question that
        was cut says by how much.

        Raises:
            ConfigError: there is no room for the context, or windows would not get on.
        """
        frame = Frame(tokenizer)
        asked = list({one.question: None for one in examples})
        contexts = list({one.context: None for one in examples})
        questions = dict(zip(asked, in_blocks(tokenizer.encode_batch, asked, poll), strict=True))
        encoded = dict(zip(contexts, in_blocks(tokenizer.encode_offsets, contexts, poll), strict=True))
        stride = length // 3 if self.config.stride is None else self.config.stride
        samples: list[Sample] = []
        for number, example in enumerate(examples):
            poll()
            question = questions[example.question][: self.config.max_question_length]
            context, offsets = encoded[example.context]
            room = length - frame.overhead(pair=True) - len(question)
            for start, end in windows(len(context), room, stride):
                ids, segments = frame.join(question, context[start:end])
                sample = WindowSample(
                    ids,
                    segments,
                    len(samples),
                    example=number,
                    shift=len(frame.start) + len(question) + len(frame.end),
                    offsets=offsets[start:end],
                    cut=0 if start else len(questions[example.question]) - len(question),
                )
                sample.label = self._label(example, offsets, start, end, sample.shift)
                samples.append(sample)
        return samples

    def _label(
        self, example: Question, offsets: np.ndarray, start: int, end: int, shift: int
    ) -> list[float] | None:
        """Positions of the answer in the window from token `start` to `end`, or None."""
        if example.answers is None:
            return None
        if example.answers:
            answer = next((one for one in example.answers if one.start is not None), None)
            span = None if answer is None else token_span(answer, offsets)
            if span is None:
                return None  # nobody knows where the answer stands
            if start <= span[0] and span[1] < end:
                return [span[0] - start + shift, span[1] - start + shift]
        return [0, 0]

    def batch(self, rows: Sequence[PackedRow], length: int, pad_id: int) -> Batch:
        """Rows with (B, 2) labels: first and last position of the answer."""
        labels = np.full((len(rows), 2), IGNORE, np.int64)
        for i, row in enumerate(rows):
            for sample in row.samples:
                if sample.label is not None:
                    labels[i] = sample.label
        return replace(pack_batch(rows, length, pad_id), labels=torch.from_numpy(labels))

    def output(self, scores: Tensor, batch: Batch) -> Tensor:
        """The best spans of the context, see `best_spans`: (B, 1 + 3 num_best), from scores (B, T, 2)."""
        assert batch.segments is not None
        assert batch.documents is not None
        real = batch.documents == 0
        last = real.sum(1, keepdim=True) - 1  # the end of the frame
        positions = torch.arange(real.shape[1], device=real.device)
        allowed = real & (batch.segments == 1) & (positions < last)
        return best_spans(scores, allowed, self.config.max_answer_length, self.config.num_best)

    def decode(
        self, outputs: np.ndarray, samples: Sequence[Sample], examples: Sequence[Question]
    ) -> list[Prediction]:
        """The best answer of each question over all its windows, its probability among the candidates, the
        character of the context at which it starts, and the candidates.

        With `no_answer` the answer is empty and its start None where having none scores higher by more
        than the threshold than the best answer; `no_answer_score` is how much higher it scores, and the
        empty answer is among the candidates.
        """
        k = self.config.num_best
        spans: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in examples]
        none = np.full(len(examples), np.inf)
        for sample, row in zip(samples, outputs, strict=True):
            assert isinstance(sample, WindowSample)
            found = row[1:].reshape(3, k).T
            found = found[np.isfinite(found[:, 2])]
            found[:, :2] -= sample.shift
            spans[sample.example].append((found, sample.offsets))
            none[sample.example] = min(none[sample.example], row[0])
        return [self._predict(*each) for each in zip(examples, spans, none.tolist(), strict=True)]

    def _predict(
        self, example: Question, spans: list[tuple[np.ndarray, np.ndarray]], none: float
    ) -> Prediction:
        found = candidates(spans, example.context, self.config.num_best)
        choices = [(one.text, one.score) for one in found]
        prediction: Prediction = {"id": example.id, "question": example.question}
        if example.answers is not None:
            prediction["expected"] = [answer.text for answer in example.answers]
        silent = not found
        if self.config.no_answer:
            excess = none - found[0].score if found else np.inf
            silent = excess > self.config.no_answer_threshold
            choices.append(("", none))
        choices.sort(key=lambda choice: -choice[1])
        chances = softmax([score for _, score in choices])
        listed = [
            {"text": text, "probability": chance} for (text, _), chance in zip(choices, chances, strict=True)
        ]
        answer = "" if silent else found[0].text
        prediction["answer"] = answer
        prediction["probability"] = next((one["probability"] for one in listed if one["text"] == answer), 0.0)
        prediction["start"] = None if silent else found[0].start
        if self.config.no_answer:
            prediction["no_answer_score"] = plain(excess) if found else None
        return prediction | {"candidates": listed}

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Question]) -> dict[str, float]:
        """exact_match and f1 over all questions; with `no_answer` also has_answer_f1 and
        no_answer_accuracy, where there are questions of the kind."""
        scores = self._scores(predictions, examples)
        result = _means(scores)
        if self.config.no_answer:
            some, none = _part(scores, examples)
            result |= {"has_answer_f1": _means(some)["f1"]} if some else {}
            result |= {"no_answer_accuracy": _means(none)["exact_match"]} if none else {}
        return result

    def tables(self, predictions: Sequence[Prediction], examples: Sequence[Question]) -> list[ScoreTable]:
        """With `no_answer`: scores of questions with and without an answer."""
        if not self.config.no_answer:
            return []
        parts = zip(
            ("answer", "no answer"), _part(self._scores(predictions, examples), examples), strict=True
        )
        rows = [[kind, *(f"{v:.3f}" for v in _means(part).values()), str(len(part))] for kind, part in parts]
        return [
            ScoreTable(
                "Questions with and without an answer", ["questions with", "exact_match", "f1", "count"], rows
            )
        ]

    def _scores(self, predictions: Sequence[Prediction], examples: Sequence[Question]) -> list[AnswerScore]:
        """Of each question."""
        pairs = [
            (prediction["answer"], [answer.text for answer in example.answers or ()])
            for prediction, example in zip(predictions, examples, strict=True)
        ]
        score = squad_score if self.config.normalisation is AnswerNormalisation.squad else cmrc_score
        return [score(answer, references, self.config.no_answer) for answer, references in pairs]


def _means(scores: Sequence[AnswerScore]) -> dict[str, float]:
    number = max(1, len(scores))
    return {
        "exact_match": sum(one.exact_match for one in scores) / number,
        "f1": sum(one.f1 for one in scores) / number,
    }


def _part(
    scores: Sequence[AnswerScore], examples: Sequence[Question]
) -> tuple[list[AnswerScore], list[AnswerScore]]:
    """Scores of the questions with and without an answer."""
    pairs = list(zip(scores, examples, strict=True))
    return [s for s, one in pairs if one.answers], [s for s, one in pairs if not one.answers]


def windows(num_tokens: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """Borders (start, end) of windows on a text, each but the last `room` long.

    Args:
        num_tokens: of the text.
        room: tokens of a window.
        overlap: tokens that a window shares with the next.

    Raises:
        ConfigError: there is no room, or more windows are needed and the next would start where this does.
    """
    fix = "make train.sequence_length longer, or task.max_question_length or task.stride shorter"
    if room < 1:
        raise ConfigError("a question leaves no room for its text", "train.sequence_length", fix)
    if num_tokens <= room:
        return [(0, num_tokens)]
    if overlap >= room:
        what = f"windows of {room} tokens cannot overlap by {overlap}"
        raise ConfigError(what, "task.stride", fix)
    starts = range(0, num_tokens - overlap, room - overlap)
    return [(start, min(start + room, num_tokens)) for start in starts]


def token_span(answer: Answer, offsets: np.ndarray) -> tuple[int, int] | None:
    """First and last token of an answer without the blanks around it, or None where it has no token.

    Args:
        answer: with its place.
        offsets: (n, 2) characters at which each token of the context starts and ends.
    """
    assert answer.start is not None
    begin = answer.start + len(answer.text) - len(answer.text.lstrip())
    end = answer.start + len(answer.text.rstrip())
    first = int(np.searchsorted(offsets[:, 1], begin, side="right"))  # the first that ends behind `begin`
    last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1  # the last that starts before `end`
    return (first, last) if first <= last else None
