"""Rows for next-sentence prediction: `[CLS] a [SEP] b [SEP]`, where b follows a or comes from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llmtrain.data.mask import Masker
from llmtrain.data.packed import PackedRows
from llmtrain.data.samples import Sample
from llmtrain.data.sentences import Places
from llmtrain.data.spans import Contents, cut
from llmtrain.data.store import View
from llmtrain.utils.errors import ConfigError, DataError
from llmtrain.utils.seed import generator

FOLLOWS, RANDOM = 0, 1
"""Labels of a pair, as in BERT."""

SHORTEST = 8
"""Tokens of both segments together, at least."""

SHORTEST_DRAWN = 16
"""Shortest length that is drawn for a short sample."""

STRETCH = 256
"""Chunks, roughly, of a part of a document whose chunks are drawn one behind the other; all such parts are
worked on at once."""

PART = 16
"""Rows of text, roughly, of each of the documents that a single one is taken for."""

SINGLE = (
    "the text to validate on is a single document: second segments that do not follow come from another "
    "part of it, which makes them harder to tell than those of another document"
)
"""What a user is told of that."""

ROUNDS = 16
"""Times that a second segment is drawn anew where it does not fit."""


@dataclass
class Chunks:
    """Parts of the joined documents that give one pair each. All (N,).

    Attributes:
        document: number of the document that a chunk lies in.
        start: int64, where the first segment starts.
        middle: int64, where it ends, and what follows starts.
        end: int64, end of what follows.
        random: bool, whether another text stands for what follows.
        is_sentence: bool, whether a sentence starts at the middle.
    """

    document: np.ndarray
    start: np.ndarray
    middle: np.ndarray
    end: np.ndarray
    random: np.ndarray
    is_sentence: np.ndarray

    def pick(self, chosen: np.ndarray) -> Chunks:
        """Some of them, by number or by mask."""
        return Chunks(**{name: values[chosen] for name, values in vars(self).items()})


class PairRows(PackedRows):
    """Rows of pairs of segments with labels FOLLOWS or RANDOM.

    Each document is read from its start on in chunks of T minus 3 tokens, or (`short_rate`) of fewer, or
    what is left. A chunk is divided at the place (see `Places`) next to one that is drawn uniformly. With
    the chance `random_next_rate` its second part is not used: the next chunk starts with it, and as many
    tokens of another document, as far as they go, take its place. So first segments never overlap; they and
    the second ones of true pairs cover each document once, but for parts that are too short for a pair or
    have no place to divide them.

    What does not tell the two apart: the lengths; the place of the division; how the second segment starts
    (as a sentence, or as a word in a long one: it is the same kind of place, next to a token that is drawn
    uniformly from all other documents); whether it ends with its document.

    A text to validate on may be a single document: the end of a book of which the rest is for training, say.
    It is read as several, each of PART rows: then what does not follow comes from another part of the text.
    It never follows by chance, for no chunk reaches into the next part; but it is of the same text, so that
    it is harder to tell than in training. A single document to train on is refused.

    Args:
        view: the tokens.
        sequence_length: T.
        seed: of all draws.
        shuffle: False keeps the order of the view, and all epochs alike, for validation.
        masker: chooses the tokens to predict.
        random_next_rate: share of pairs from two documents.
        short_rate: share of chunks of random length.

    Raises:
        ConfigError: a row is too short for a pair.
        DataError: the text has fewer than two documents (to validate on: too few tokens for two), or none
            that gives a pair.

    Attributes:
        note: what a user should know of these rows, or None.
    """

    label_names = ("b follows a", "b is random")

    def __init__(
        self,
        view: View,
        *,
        sequence_length: int,
        seed: int,
        shuffle: bool,
        masker: Masker,
        random_next_rate: float,
        short_rate: float,
    ) -> None:
        self.note: str | None = None
        if not shuffle and (Contents(view).lengths > 0).sum() == 1:
            view, self.note = in_parts(view, PART * sequence_length), SINGLE
        super().__init__(
            view,
            sequence_length=sequence_length,
            seed=seed,
            shuffle=shuffle,
            masker=masker,
            key=f"pairs {random_next_rate} {short_rate}",
        )
        self.overhead = self.frame.overhead(pair=True)
        self.size = sequence_length - self.overhead
        if self.size < SHORTEST:
            raise ConfigError(
                f"a row of {sequence_length} tokens has no room for a pair of segments",
                "train.sequence_length",
                f"make it at least {SHORTEST + self.overhead}",
            )
        self.random_next_rate = random_next_rate
        self.short_rate = short_rate
        self.contents = Contents(view)
        if (self.contents.lengths > 0).sum() < 2:
            raise DataError(
                "next-sentence prediction needs two documents at least, to take second segments from another",
                "data",
                "give more documents, or make them smaller (data.documents=paragraph or line), or set "
                "objective=mlm",
            )
        self.rows_per_epoch = self._count_rows(0)

    @cached_property
    def places(self) -> Places:
        """Where second segments may start; only who makes a plan has to know it."""
        return Places(self.contents, self.view.store.tokenizer)

    def _draw_samples(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rng = generator(self.seed, "pairs", epoch)
        chunks = self._draw_chunks(rng)
        starts, ends = chunks.middle.copy(), chunks.end.copy()
        documents = chunks.document.copy()
        random = np.flatnonzero(chunks.random)
        starts[random], ends[random] = self._draw_partners(chunks.pick(random), rng)
        documents[random] = np.searchsorted(self.contents.ends, starts[random], side="right")
        lengths = chunks.middle - chunks.start + ends - starts + self.overhead
        first, second = self.contents.shifts[chunks.document], self.contents.shifts[documents]
        label = np.where(chunks.random, RANDOM, FOLLOWS)
        columns = [chunks.start + first, chunks.middle + first, starts + second, ends + second, label]
        return lengths, np.stack(columns)

    def _draw_chunks(self, rng: np.random.Generator) -> Chunks:
        """The chunks of all documents, in the order of the text."""
        places, lengths, stretch = self.places, self.contents.lengths, STRETCH * self.size
        phases = rng.integers(0, stretch, len(lengths)) * self.shuffle
        document, start, stop = cut(lengths, stretch, phases)
        start, stop = start + self.contents.begins[document], stop + self.contents.begins[document]
        drawn: list[Chunks] = []
        while len(places.every) and len(long_enough := np.flatnonzero(stop - start >= SHORTEST)):
            document, start, stop = document[long_enough], start[long_enough], stop[long_enough]
            num = len(start)
            size = rng.integers(min(SHORTEST_DRAWN, self.size), self.size, num, endpoint=True)
            size[rng.random(num) >= self.short_rate] = self.size
            end = np.minimum(start + size, stop)
            draw = start + 1 + (rng.random(num) * (end - start - 1)).astype(np.int64)
            place = _nearest(places.every, draw, start, end)
            found = place >= 0
            random = rng.random(num) < self.random_next_rate
            middle, kind = places.every[place], places.is_sentence[place]
            drawn.append(Chunks(document, start, middle, end, random, kind).pick(found))
            start = np.where(found & random, middle, end)
        if not sum(len(part.start) for part in drawn):
            raise DataError(
                f"no document has {SHORTEST} tokens with the start of a word among them",
                "data",
                "give longer documents, or set objective=mlm",
            )
        columns = zip(*(vars(part).values() for part in drawn), strict=True)
        joined = Chunks(*(np.concatenate(values) for values in columns))
        return joined.pick(np.argsort(joined.start, kind="stable"))

    def _draw_partners(self, chunks: Chunks, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Second segments from other documents: start and end of each in the joined documents."""
        starts, ends = np.empty_like(chunks.start), np.empty_like(chunks.end)
        for kind, places in enumerate(self.places.of_kind):
            waiting = np.flatnonzero(chunks.is_sentence == kind)
            for _ in range(ROUNDS):
                if not len(waiting):
                    break
                start, end, fits = self._try_partners(chunks.pick(waiting), places, rng)
                starts[waiting[fits]], ends[waiting[fits]] = start[fits], end[fits]
                waiting = waiting[~fits]
            starts[waiting], ends[waiting] = self._any_partners(chunks.pick(waiting), places, rng)
        return starts, ends

    def _try_partners(
        self, chunks: Chunks, places: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw second segments of the length of what they replace; those that do not fit are told.

        Where what they replace ends with its document they end with theirs too, and their length may
        differ by as much as the next place is away.
        """
        contents, num = self.contents, len(chunks.start)
        need, room = chunks.end - chunks.middle, self.size - (chunks.middle - chunks.start)
        at_end = chunks.end == contents.ends[chunks.document]
        by_document = (rng.random(num) * (len(contents.ends) - 1)).astype(np.int64)
        by_document += by_document >= chunks.document
        by_token = self._other_tokens(chunks, rng)
        target = np.where(at_end, contents.ends[by_document] - need, by_token)
        place = _nearest(places, target, np.full(num, -1), np.full(num, contents.num_tokens))
        start = places[place]
        other = np.searchsorted(contents.ends, start, side="right")
        end = np.where(at_end, contents.ends[other], start + need)
        fits = (place >= 0) & (other != chunks.document) & (end <= contents.ends[other])
        fits &= ~at_end | ((other == by_document) & (end - start <= room))
        return start, end, fits

    def _any_partners(
        self, chunks: Chunks, places: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Second segments from any of the places in other documents, else from the start of one; they may be
        shorter than what they replace."""
        contents = self.contents
        own = np.searchsorted(places, contents.begins[chunks.document])
        num_own = np.searchsorted(places, contents.ends[chunks.document]) - own
        number = (rng.random(len(own)) * (len(places) - num_own)).astype(np.int64)
        number += np.where(number >= own, num_own, 0)
        start = self._other_tokens(chunks, rng)
        start = contents.begins[np.searchsorted(contents.ends, start, side="right")]
        some = np.flatnonzero(len(places) > num_own)
        start[some] = places[number[some]]
        other = np.searchsorted(contents.ends, start, side="right")
        return start, np.minimum(start + chunks.end - chunks.middle, contents.ends[other])

    def _other_tokens(self, chunks: Chunks, rng: np.random.Generator) -> np.ndarray:
        """For each chunk a uniformly drawn token of another document."""
        own = self.contents.lengths[chunks.document]
        token = (rng.random(len(own)) * (self.contents.num_tokens - own)).astype(np.int64)
        return token + np.where(token >= self.contents.begins[chunks.document], own, 0)

    def _sample(self, values: Sequence[int], number: int) -> Sample:
        start, middle, second_start, second_end, label = values
        ids, segments = self.frame.join(
            self.view.read(start, middle), self.view.read(second_start, second_end)
        )
        return Sample(ids, segments, number, label)


def in_parts(view: View, size: int) -> View:
    """The same text, in which every `size` tokens are taken for a document; there are at least two.

    Args:
        view: with one document, and others that are empty at most.
        size: tokens of a part, about.
    """
    longest = int(view.lengths.max())
    size = -(-longest // max(2, longest // size))
    document, starts, ends = cut(view.lengths, size, np.zeros(view.num_documents, np.int64))
    begins = view.starts[document]
    return View(view.store, begins + starts, begins + ends)


def _nearest(places: np.ndarray, targets: np.ndarray, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """For each target the number of the nearest place between two bounds, exclusive; -1 where none is.

    Args:
        places: ascending.
        targets: (N,).
        above: (N,) bound below the target.
        below: (N,) bound above it.
    """
    if not len(places):
        return np.full(len(targets), -1)
    right = np.searchsorted(places, targets)
    candidates = np.clip(np.stack([right - 1, right]), 0, len(places) - 1)
    found = places[candidates]
    distances = np.abs(found - targets)
    distances[(found <= above) | (found >= below)] = np.iinfo(np.int64).max
    best, each = distances.argmin(axis=0), np.arange(len(targets))
    return np.where(distances[best, each] < np.iinfo(np.int64).max, candidates[best, each], -1)
