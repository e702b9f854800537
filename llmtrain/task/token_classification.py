"""A tag for each word of a sentence: named entities and their like.

A word is encoded by itself; its tag belongs to its first piece or, for models that only look back, to its
last one, which has seen the whole word. A sentence that is too long is cut between words into parts of
about the same size, so that each word gets a tag.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.fill import Poll
from llmtrain.data.samples import Frame, PackedRow, Sample, pack_batch
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.metrics.entities import OUTSIDE, EntityCounts, count_entities, entities
from llmtrain.model.assembled import Backbone
from llmtrain.model.heads.examples import TokenHead
from llmtrain.schema.task import FileFormat, TokenClassificationTask
from llmtrain.task.base import Examples, Prediction, ScoreTable, in_blocks, nothing_to_ask
from llmtrain.task.columns import Sentence, holds_columns, read_columns, read_sentences
from llmtrain.task.files import Faults, holds_plain_text
from llmtrain.utils.errors import ConfigError, DataError


@dataclass
class WordsSample(Sample):
    """A sentence, or a part of one, with m words.

    Attributes:
        example: number of the sentence.
        places: (m,) int64, position of the piece that stands for each word.
        tags: (m,) int64, number of the tag of each word, or IGNORE.
    """

    example: int = 0
    places: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    tags: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


class TokenClassificationKind:
    """Reads CoNLL columns, and settles which tags there are."""

    def read(
        self,
        config: TokenClassificationTask,
        paths: Sequence[Path],
        labelled: bool,
        poll: Poll = nothing_to_ask,
    ) -> Examples:
        """Sentences of files: CoNLL columns, or (unlabelled .txt without tags) one sentence a line.

        Raises:
            DataError: a file or a row cannot be read; names the line.
        """
        faults = Faults(config.on_error, poll)
        sentences: list[Sentence] = []
        for path in paths:
            plain = not labelled and holds_plain_text(path, FileFormat.auto)
            if plain and not holds_columns(path, config):
                sentences += read_sentences(path, config.joined, faults)
            else:
                sentences += read_columns(path, config, labelled, faults)
        if not sentences:
            raise faults.nothing_left("sentence", paths)
        return Examples(sentences, faults.noted)

    def resolve(self, config: TokenClassificationTask, examples: Examples) -> TokenClassificationTask:
        """The config with the tags of the training examples, O first and then sorted, if it names none.

        Raises:
            DataError: an example has a tag that the config does not list.
            ConfigError: there are not as many weights as tags.
        """
        found = {tag for sentence in examples.items for tag in sentence.tags or ()}
        labels = config.labels or sorted(found, key=lambda tag: (tag != OUTSIDE, tag))
        unknown = found - set(labels)
        if unknown:
            tag, where = next(
                (tag, sentence.where(word))
                for sentence in examples.items
                for word, tag in enumerate(sentence.tags or ())
                if tag in unknown
            )
            raise DataError(
                f"task.labels does not list {tag!r}", where, "add it to task.labels, or leave them out"
            )
        if config.class_weights and len(config.class_weights) != len(labels):
            what = f"{len(config.class_weights)} weights for {len(labels)} tags"
            raise ConfigError(what, "task.class_weights", f"give one for each of: {', '.join(labels)}")
        return replace(config, labels=labels)

    def build(self, config: TokenClassificationTask, causal: bool) -> TokenClassification:
        """The task."""
        return TokenClassification(config, causal)


class TokenClassification:
    """Cross-entropy of the tag of each word.

    A tag of an example that training did not know carries no label; in the scores it counts as missed.

    Args:
        config: with labels.
        causal: whether a position of the backbone sees only what stands before it.
    """

    labelled_share = 1.0
    """At most: words for each token. The head is small beside the backbone."""

    def __init__(self, config: TokenClassificationTask, causal: bool) -> None:
        assert config.labels, "labels are not resolved"
        self.config = config
        self.causal = causal
        self._denominator = "weight" if config.class_weights else "labels"
        self.width = 0  # most words of a sample: those of the longest one allowed

    def build_head(self, backbone: Backbone) -> TokenHead:
        """A linear classifier at each word."""
        return TokenHead(backbone, len(self.config.labels), self.config.class_weights)

    def count(self, batch: Batch) -> dict[str, float]:
        """Words with labels; where tags are weighted, the sum of their weights."""
        assert batch.labels is not None
        labels = batch.labels[batch.labels != IGNORE]
        if self._denominator == "weight":
            return {"weight": float(torch.tensor(self.config.class_weights)[labels].sum())}
        return {"labels": len(labels)}

    def loss(self, sums: dict[str, Tensor], counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy over all words of the global batch, weighted where there are weights."""
        loss = sums["loss"] / counts[self._denominator]
        return loss, {"loss": loss.detach()}

    def encode(
        self, examples: Sequence[Sentence], tokenizer: Tokenizer, length: int, poll: Poll = nothing_to_ask
    ) -> list[Sample]:
        """One sample for a sentence, or several for one of more than `length` tokens.

        Raises:
            ConfigError: there is no room for a word.
            DataError: the examples have tags besides O, and none of them is known.
        """
        self._check_tags(examples)
        frame = Frame(tokenizer)
        room = length - frame.overhead(pair=False)
        if room < 1:
            what = f"rows of {length} tokens have no room for a word between special tokens"
            raise ConfigError(what, f"train.sequence_length={length}", "set it to 16 or more")
        self.width = max(self.width, room)
        number_of = {tag: number for number, tag in enumerate(self.config.labels)}
        samples: list[Sample] = []
        for example, pieces in enumerate(word_pieces(examples, tokenizer, self.config.joined, room, poll)):
            poll()
            sizes = np.array([len(ids) for ids in pieces], np.int64)
            tags = examples[example].tags or [""] * len(pieces)
            numbers = np.array([number_of.get(tag, IGNORE) for tag in tags], np.int64)
            for start, end in cut_evenly(sizes, room):
                ids, segments = frame.join(np.concatenate([np.zeros(0, np.int64), *pieces[start:end]]))
                ends = len(frame.start) + np.cumsum(sizes[start:end])
                places = ends - 1 if self.causal else ends - sizes[start:end]
                samples.append(
                    WordsSample(
                        ids, segments, len(samples), example=example, places=places, tags=numbers[start:end]
                    )
                )
        return samples

    def _check_tags(self, examples: Sequence[Sentence]) -> None:
        """Whether these examples can be of the data that the labels come from."""
        named = [(tag, s.where(i)) for s in examples for i, tag in enumerate(s.tags or ()) if tag != OUTSIDE]
        if named and not {tag for tag, _ in named} & set(self.config.labels):
            tag, where = named[0]
            fix = f"known: {', '.join(self.config.labels)}; give files with such tags"
            raise DataError(f"none of the tags is known, such as {tag!r}", where, fix)

    def batch(self, rows: Sequence[PackedRow], length: int, pad_id: int) -> Batch:
        """Rows with the positions of their words, (B, M) `selected`, and their tags; M: most words."""
        batch = pack_batch(rows, length, pad_id)
        filled = [
            (i, sample)
            for i, row in enumerate(rows)
            for sample in row.samples
            if isinstance(sample, WordsSample)
        ]
        most = max([1, *(len(sample.places) for _, sample in filled)])
        selected = np.zeros((len(rows), most), np.int64)
        labels = np.full((len(rows), most), IGNORE, np.int64)
        for i, sample in filled:
            selected[i, : len(sample.places)] = sample.places
            labels[i, : len(sample.tags)] = sample.tags
        return replace(batch, selected=torch.from_numpy(selected), labels=torch.from_numpy(labels))

    def output(self, scores: Tensor, batch: Batch) -> Tensor:
        """Number of the best tag of each word, (B, W), from scores (B, M, C); the rest has no meaning."""
        tags = scores.argmax(-1).float()
        return F.pad(tags, (0, self.width - tags.shape[1]), value=-1.0)

    def decode(
        self, outputs: np.ndarray, samples: Sequence[Sample], examples: Sequence[Sentence]
    ) -> list[Prediction]:
        """Words, expected tags where known, tags, entities (`start` and `end` count words, end behind)."""
        tags: list[list[str]] = [[] for _ in examples]
        for sample, numbers in zip(samples, outputs, strict=True):
            assert isinstance(sample, WordsSample)
            tags[sample.example] += [self.config.labels[int(n)] for n in numbers[: len(sample.places)]]
        blank = "" if self.config.joined else " "
        predictions = []
        for sentence, own_tags in zip(examples, tags, strict=True):
            words = sentence.words
            assert len(words) == len(own_tags), (len(words), len(own_tags))
            found = [
                {"type": kind, "text": blank.join(words[start:end]), "start": start, "end": end}
                for kind, start, end in entities(own_tags)
            ]
            expected = {"expected": sentence.tags} if sentence.tags is not None else {}
            predictions.append({"words": words, **expected, "tags": own_tags, "entities": found})
        return predictions

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Sentence]) -> dict[str, float]:
        """precision, recall, f1 of entities over all types, as conlleval counts; accuracy of words."""
        total = sum(self._counts(predictions, examples).values(), EntityCounts())
        pairs = [
            tag == other
            for prediction, sentence in zip(predictions, examples, strict=True)
            for tag, other in zip(prediction["tags"], sentence.tags or (), strict=True)
        ]
        return {
            "precision": total.precision,
            "recall": total.recall,
            "f1": total.f1,
            "accuracy": sum(pairs) / max(1, len(pairs)),
        }

    def tables(self, predictions: Sequence[Prediction], examples: Sequence[Sentence]) -> list[ScoreTable]:
        """Scores of each type of entity."""
        rows = [
            [kind or "(none)", f"{c.precision:.3f}", f"{c.recall:.3f}", f"{c.f1:.3f}", str(c.actual)]
            for kind, c in self._counts(predictions, examples).items()
        ]
        return [ScoreTable("Each type of entity", ["type", "precision", "recall", "f1", "count"], rows)]

    def _counts(
        self, predictions: Sequence[Prediction], examples: Sequence[Sentence]
    ) -> dict[str, EntityCounts]:
        said = [prediction["tags"] for prediction in predictions]
        return count_entities(said, [sentence.tags or [] for sentence in examples])


def word_pieces(
    sentences: Sequence[Sentence],
    tokenizer: Tokenizer,
    joined: bool,
    room: int,
    poll: Poll = nothing_to_ask,
) -> Iterator[list[np.ndarray]]:
    """Ids of each word of each sentence, at least one and at most `room`, int64.

    A word that gives no piece, such as a lone control character, is the unknown token. All but the first
    word of a sentence are encoded with the blank in front of them where the tokenizer keeps blanks, as in
    running text.

    Args:
        sentences: with words.
        tokenizer: encodes each different word once.
        joined: there are no blanks between words.
        room: most pieces of a word; the rest of a longer one is left out.
        poll: called often; may raise to give up.
    """
    blank = " " if not joined and _keeps_blanks(tokenizer) else ""
    texts = [[word if i == 0 else blank + word for i, word in enumerate(one.words)] for one in sentences]
    different = sorted({text for one in texts for text in one})
    nothing = tokenizer.end_id if tokenizer.unknown_id is None else tokenizer.unknown_id
    encoded = [
        ids[:room].astype(np.int64) if len(ids) else np.array([nothing])
        for ids in in_blocks(tokenizer.encode_batch, different, poll)
    ]
    pieces = dict(zip(different, encoded, strict=True))
    for one in texts:
        yield [pieces[text] for text in one]


def _keeps_blanks(tokenizer: Tokenizer) -> bool:
    """Whether a word inside a text is encoded like the word with a blank, and not like the word alone."""
    alone, spaced, both = (ids.tolist() for ids in tokenizer.encode_batch(["a", " a", "a a"]))
    return alone != spaced and both == alone + spaced


def cut_evenly(sizes: np.ndarray, room: int) -> Iterator[tuple[int, int]]:
    """Borders (start, end) of parts of at most `room` tokens that hold all words, and about equally much.

    Args:
        sizes: (words,) tokens of each word, none above `room`.
        room: tokens of a part.
    """
    total = int(sizes.sum())
    share = -(-total // max(1, -(-total // room)))
    start = held = 0
    for word, size in enumerate(sizes.tolist()):
        if held and (held + size > room or held >= share):
            yield start, word
            start, held = word, 0
        held += size
    yield start, len(sizes)
